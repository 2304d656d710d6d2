"""Guided Grad-CAM: guided backprop where Grad-CAM finds the score's reasons.

Selvaraju et al. 2017, arXiv:1610.02391, section 3.2.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.cams import cam
from ..engine.gradients.score import attribute
from ..engine.read.sizes import require_images
from ..model import relu_rules
from ..model.batching import BatchSize
from ..objectives import Objective, logit
from .grad_cam import weigh_by_mean_gradient


@card(
    name="Guided Grad-CAM",
    source="Selvaraju et al. 2017, arXiv:1610.02391, section 3.2",
    shows="Fine structure of the image, at the places that speak for this score.",
    does_not_show="Why this structure speaks for the score: that part is close to an edge detector's picture.",
    needs=("relu", "pixels"),
    example=lambda method, box, x, y: method(box, x, -logit(y)),  # what speaks against y: section 3.3
    exempt={"one forward": "it runs the model once for each of its two factors, whose backward passes differ"},
)
def guided_grad_cam(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    layer: str | None = None,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """Guided backprop times Grad-CAM at the image's size; signed, shaped like x (N, C, H, W).

    `layer` as in `grad_cam`. Raises LayerError where it has no positions, and RuleError where a ReLU would escape.
    """
    require_images(box, "Guided Grad-CAM")
    x = box.validate_inputs(x)
    objective = box.objective(target, len(x))
    guided: Tensor = attribute(box, x, objective, rule=relu_rules.guided, batch_size=batch_size)
    cam_map = cam(
        box, x, objective, layer, weigh_by_mean_gradient, name="Grad-CAM", upsample=True, batch_size=batch_size
    )
    return guided * cam_map
