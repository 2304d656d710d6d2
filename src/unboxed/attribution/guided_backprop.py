"""Guided backprop: each ReLU passes down only what is positive above it, and only where it was open.

Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net", arXiv:1412.6806, section 3.4.
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
    name="Guided backprop",
    source="Springenberg et al. 2015, arXiv:1412.6806, section 3.4",
    shows="Details of the input through which paths of only positive influence run up to this score.",
    does_not_show="Why this class and not another: it is close to an edge detector, and looks alike for most classes.",
    needs=("relu",),
    example=lambda method, box, x, y: method(box, x, y),
)
def guided_backprop(
    box: Box, x: Tensor, target: int | Tensor | Objective | None = None, *, batch_size: BatchSize = "auto"
) -> Tensor:
    """The score's gradient in x with negative signals stopped at every ReLU; signed, shaped like x.

    The rule holds for ReLU, ReLU6, hardtanh, threshold, leaky and parametric ReLU, however they are spelled: each sends
    down its own gradient of the positive part of the signal. Other activations (GELU, SiLU, hardswish) keep their own.

    Raises RuleError where a ReLU would escape the rule (spelled as a minimum, inside opaque code) or there is none; an
    UnboxedWarning says where one may have (a mask, `torch.where`).

    Deviation: the paper, and captum, know ReLU only. There the slope is 0 or 1 and the rule is the paper's; ReLU6 has
    slope 0 above its cap too, and a leaky ReLU its leak below 0.
    """
    return attribute(box, x, target, rule=relu_rules.guided, batch_size=batch_size)
