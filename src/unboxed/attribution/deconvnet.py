"""Deconvnet: each ReLU passes down only what is positive above it, open or not.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, section 2.1.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import attribute
from ..model import relu_rules
from ..model.batching import BatchSize
from ..objectives import Objective


@card(
    name="Deconvnet",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1",
    shows="The pattern that this score's positive weights draw when they are read downwards through the model.",
    does_not_show="Which of it this input has: without pooling, the input enters only through the choice of target.",
    needs=("relu",),
    example=lambda method, box, x, y: method(box, x, y),
)
def deconvnet(
    box: Box, x: Tensor, target: int | Tensor | Objective | None = None, *, batch_size: BatchSize = "auto"
) -> Tensor:
    """The score's signal sent down through x's pooling switches, ReLUs applied to the signal; signed, shaped like x.

    The rule holds for ReLU, ReLU6, hardtanh, threshold, leaky and parametric ReLU, however they are spelled: each sends
    down the positive part of the signal. Other activations (GELU, SiLU, hardswish) keep their gradient.

    Raises RuleError where a ReLU would escape the rule (spelled as a minimum, inside opaque code) or there is none; an
    UnboxedWarning says where one may have (a mask, `torch.where`).

    Deviation: the paper, and captum, know ReLU only. The signal is rectified so that reconstructions are positive,
    which asks for no more at ReLU6 and leaky ReLU: their cap and their leak are not applied to the signal.
    """
    return attribute(box, x, target, rule=relu_rules.deconvnet, batch_size=batch_size)
