"""Guided backprop: each ReLU passes back only the positive part of the signal, and only where it was active.

Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net", arXiv:1412.6806, section 3.4.
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
    name="Guided backprop",
    aliases=("guided_backpropagation", "guided_bp"),
    source="Springenberg et al. 2015, arXiv:1412.6806, section 3.4",
    shows="Details of the input through which paths of only positive influence lead to this score.",
    does_not_show="Why this class and not another: it is close to an edge detector, and similar for most classes.",
    needs=("relu",),
    example=lambda method, box, x, y: method(box, x, y),
    order=6,
    first_choice=True,
)
def guided_backprop(box: Box, x: InputBatch, target: Target = None, *, batch_size: BatchSize = "auto") -> Attribution:
    """The gradient of the score in the input, with negative signals stopped at every ReLU.

    Gives sharp maps of the details a unit responds to. It hardly depends on the class or on the upper layers' weights
    (Adebayo et al. 2018), so take `grad_cam` or `integrated_gradients` to compare classes, and `guided_grad_cam` to
    keep the detail where the class is.

    Args:
        box: The opened model; it must have ReLUs.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The ruled gradient, signed, shaped like x.

    Raises:
        RuleError: where a ReLU would escape the rule (written as a minimum, or inside code that cannot be seen into),
            or there is none. An UnboxedWarning says where one may have escaped (a mask, `torch.where`).
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.guided_backprop(box, x, y).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Springenberg et al. 2015, arXiv:1412.6806, section 3.4. Deviation: the paper, and captum, treat ReLU only. Here
        the rule holds for ReLU, ReLU6, hardtanh, threshold, leaky and parametric ReLU, however they are written: each
        passes back its own gradient of the positive part of the signal. At ReLU the slope is 0 or 1 and the rule is the
        paper's; ReLU6 has slope 0 above its cap too, and a leaky ReLU its leak below 0. Other activations (GELU, SiLU,
        hardswish) keep their gradient.
    """
    check_settings(guided_backprop, locals())
    return attribute_by_gradient(
        box, x, target, method="Guided backprop", rule=relu_rules.GUIDED_BACKPROP_RULE, batch_size=batch_size
    )
