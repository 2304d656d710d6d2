"""HiResCAM: gradient times activation, summed over a layer's channels; no weight is averaged over positions.

Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
arXiv:2011.08891.
"""

from __future__ import annotations

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.gradients.cams import cam
from ..parameters import BatchSize, InputBatch, LayerAddress, Target, Upsample
from ..settings import check_settings


@card(
    name="HiResCAM",
    source="Draelos & Carin 2020, arXiv:2011.08891",
    shows="Where a layer's activations raise this score and where they lower it, position by position.",
    does_not_show="Details finer than a position of the layer; it is exact only where the rest of the model is linear.",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, y),
)
def hires_cam(
    box: Box, x: InputBatch, target: Target = None, *,
    layer: LayerAddress = None, upsample: Upsample = True, batch_size: BatchSize = "auto",
) -> Attribution:  # fmt: skip
    """Gradient times activation, summed over the channels of a layer: a signed class activation map.

    Prefer it to `grad_cam` where several positions matter or where evidence against the score is of interest. Where a
    linear layer follows the activations, the map sums to the score without its bias.

    Args:
        box: The opened model; one of its inputs must be an image.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        layer: Address of the layer, as `box.layers` lists them. None is the last one with positions, as in `grad_cam`.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        sum_k (d score / d A_k) A_k, signed, (N, 1, H, W), or (N, 1, h, w) without `upsample`.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> ub.attribution.hires_cam(box, ub.data.digits("test").first(2)[0]).shape
        torch.Size([2, 1, 28, 28])
    """
    check_settings(hires_cam, locals())
    return cam(box, x, target, layer, lambda h, g: (g * h).sum(1), name="HiResCAM",
               upsample=upsample, batch_size=batch_size, clamp=False)  # fmt: skip
