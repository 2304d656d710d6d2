"""LayerCAM: each position of a layer's maps weighed by its own gradient, so that earlier layers give fine maps.

Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions on
Image Processing 30.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.cams import cam
from ..model.batching import BatchSize
from ..objectives import Objective


def weigh_by_position(h: Tensor, g: Tensor) -> Tensor:
    """sum_k relu(g_kij) A_kij."""
    return (g.clamp(min=0) * h).sum(1)


@card(
    name="LayerCAM",
    source="Jiang et al. 2021, IEEE Transactions on Image Processing 30",
    shows="Where a layer's maps speak for this score, position by position; of earlier layers in finer detail.",
    does_not_show="What speaks against the score; and of early layers it shows edges more than reasons.",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, y),
)
def layer_cam(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    layer: str | None = None,
    upsample: bool = True,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """relu(sum_k relu(d score / d A_k) A_k), (N, 1, H, W), or (N, 1, h, w) without `upsample`; >= 0.

    `layer` as in `grad_cam`. Raises LayerError where a layer has no positions.
    """
    return cam(box, x, target, layer, weigh_by_position, name="LayerCAM", upsample=upsample, batch_size=batch_size)
