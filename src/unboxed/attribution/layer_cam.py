"""LayerCAM: each position of a layer weighted by its own gradient, so that earlier layers give finer maps.

Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions on
Image Processing 30.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.gradients.cams import cam
from ..parameters import BatchSize, InputBatch, LayerAddress, Target, Upsample
from ..settings import check_settings


def combine_by_position_gradient(h: Tensor, g: Tensor) -> Tensor:
    """sum_k relu(g_kij) A_kij."""
    return (g.clamp(min=0) * h).sum(1)


@card(
    name="LayerCAM",
    source="Jiang et al. 2021, IEEE Transactions on Image Processing 30",
    shows="Where a layer's activations raise this score, position by position; in finer detail for earlier layers.",
    does_not_show="What lowers the score; and for early layers it shows edges more than evidence.",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, y),
    order=13,
)
def layer_cam(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    layer: LayerAddress = None,
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """A class activation map whose weights differ by position: sharper than Grad-CAM at earlier layers.

    Name an earlier `layer` for finer maps, where Grad-CAM's one weight per channel no longer localizes. At the last
    layer take `grad_cam`, or `hires_cam`, which keeps what lowers the score.

    Args:
        box: The opened model; one of its inputs must be an image.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        layer: Address of the layer, as `box.layers` lists them. None is the last one with positions, as in `grad_cam`.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        relu(sum_k relu(d score / d A_k) A_k) over a layer's channels A_k, (N, 1, H, W), or (N, 1, h, w) without
        `upsample`; 0 or more.

    Raises:
        LayerError: where the layer has no positions.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.layer_cam(box, x, y).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Jiang et al. 2021, IEEE Transactions on Image Processing 30.
    """
    check_settings(layer_cam, locals())
    return cam(
        box, x, target, layer, combine_by_position_gradient, name="LayerCAM", upsample=upsample, batch_size=batch_size
    )
