"""Deconvnet: each ReLU passes back only the positive part of the signal, whether it was active or not.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, section 2.1.
"""

from __future__ import annotations

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.gradients.score import attribute_by_gradient
from ..model import relu_rules
from ..parameters import BatchSize, InputBatch, Target
from ..settings import check_settings


@card(
    name="Deconvnet",
    aliases=("deconvolution",),
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1",
    shows="The pattern in the input that the positive weights behind this score project back to.",
    does_not_show="Which of it this input has: without pooling, the input enters only through the choice of target.",
    needs=("relu",),
    example=lambda method, box, x, y: method(box, x, y),
)
def deconvnet(box: Box, x: InputBatch, target: Target = None, *, batch_size: BatchSize = "auto") -> Attribution:
    """The score projected back to the input through x's pooling switches, with ReLUs applied to the backward signal.

    Shows what kind of pattern a unit responds to in models with max pooling. For what this input contributes take
    `guided_backprop` (sharper), or a method that passes the randomization test, such as `grad_cam` or
    `integrated_gradients`.

    Args:
        box: The opened model; it must have ReLUs.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The backward signal at the input, signed, shaped like x. It has no natural unit.

    Raises:
        RuleError: where a ReLU would escape the rule (written as a minimum, or inside code that cannot be seen into),
            or there is none. An UnboxedWarning says where one may have escaped (a mask, `torch.where`).
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.deconvnet(box, x, y).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1. Deviation: the paper, and captum, treat ReLU only. Here the
        rule holds for ReLU, ReLU6, hardtanh, threshold, leaky and parametric ReLU, however they are written: each
        passes back the positive part of the signal. The paper rectifies the signal to keep reconstructions positive,
        which needs no more at ReLU6 and leaky ReLU, so their cap and their leak are not applied to it. Other
        activations (GELU, SiLU, hardswish) keep their gradient.
    """
    check_settings(deconvnet, locals())
    return attribute_by_gradient(
        box, x, target, method="Deconvnet", rule=relu_rules.DECONVNET_RULE, batch_size=batch_size
    )
