"""Guided Grad-CAM: guided backprop where Grad-CAM finds evidence for the score.

Selvaraju et al. 2017, arXiv:1610.02391, section 3.2.
"""

from __future__ import annotations

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.gradients.cams import cam
from ..engine.gradients.score import attribute_by_gradient
from ..engine.read.sizes import require_images
from ..model import relu_rules
from ..objectives import logit
from ..parameters import BatchSize, InputBatch, LayerAddress, Target
from ..settings import check_settings
from .grad_cam import combine_by_mean_gradient


@card(
    name="Guided Grad-CAM",
    source="Selvaraju et al. 2017, arXiv:1610.02391, section 3.2",
    shows="Fine structure of the image, at the positions that raise this score.",
    does_not_show="Why this structure raises the score: the fine part is close to an edge detector's output.",
    needs=("relu", "pixels"),
    example=lambda method, box, x, y: method(box, x, -logit(y)),  # evidence against y: section 3.3
    exempt={"one forward": "it runs the model once for each of its two factors, whose backward passes differ"},
    runs=2,
    order=14,
)
def guided_grad_cam(
    box: Box, x: InputBatch, target: Target = None, *, layer: LayerAddress = None, batch_size: BatchSize = "auto"
) -> Attribution:
    """Guided backprop times Grad-CAM at the size of the image: fine detail, where the class is.

    For figures that show both where and what. The detail comes from `guided_backprop`, and depends little on the
    class; `grad_cam` alone is the safer explanation.

    Args:
        box: The opened model; it must take images and have ReLUs.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        layer: Address of the layer, as `box.layers` lists them. None is the last one with positions, as in `grad_cam`.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The product, signed, shaped like x (N, C, H, W); `layer` is the layer that Grad-CAM read.

    Raises:
        LayerError: where the layer has no positions.
        RuleError: where a ReLU would escape guided backprop's rule, or there is none.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.guided_grad_cam(box, x, y).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Selvaraju et al. 2017, arXiv:1610.02391, section 3.2.
    """
    check_settings(guided_grad_cam, locals())
    pack = require_images(box, "Guided Grad-CAM").pack
    x = box.validate_inputs(x)
    objective = box.objective(target, len(x))
    guided = attribute_by_gradient(
        box, x, objective, method="Guided backprop", rule=relu_rules.GUIDED_BACKPROP_RULE, batch_size=batch_size
    )
    cam_map = cam(
        box, x, target, layer, combine_by_mean_gradient, name="Grad-CAM", batch_size=batch_size, warn_clamped=False
    )
    return make_attribution(
        box,
        pack(guided.map) * pack(cam_map.map),
        x=x,
        method="Guided Grad-CAM",
        target=cam_map.target,
        score=cam_map.score,
        layer=cam_map.layer,
    )
