"""Attention rollout: attention multiplied through the layers of a vision transformer.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928, section 3 (attention rollout).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.read.position_grids import PositionGrid, image_size, layers_with_grids, token_grid, upsample_bilinear
from ..engine.read.sizes import require_images
from ..engine.results import warn_not_finite
from ..errors import LayerError
from ..model.attention import capturing_attention
from ..model.batching import map_in_batches
from ..parameters import BatchSize, InputBatch, Upsample
from ..settings import check_settings

HeadFusion = Literal["mean", "max", "min"]
HEAD_FUSION_FN_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean(1),
    "max": lambda a: a.amax(1),
    "min": lambda a: a.amin(1),
}


@card(
    name="Attention rollout",
    source="Abnar & Zuidema 2020, arXiv:2005.00928, section 3",
    shows="From which patches attention can have carried information to the end of the model.",
    does_not_show="Why this class and not another: no score is involved, so the map is the same for every target.",
    needs=("pixels", "attention"),
    example=lambda method, box, x, y: method(box, x),
)
def rollout(
    box: Box,
    x: InputBatch,
    *,
    heads: Annotated[HeadFusion, "How a layer's heads are combined."] = "mean",
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The attention of a vision transformer multiplied through its layers: where information can have come from.

    Takes one forward pass and no target. For a map of a class take `lrp`, `grad_cam` or `integrated_gradients`, which
    work on transformers too.

    Args:
        box: The opened model; its inputs must be images, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        heads: How a layer's heads are combined.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map (N, 1, H, W), or (N, 1, h, w) of the patches without `upsample`; 0 or more. It is the class token's row
        of the product over layers of 0.5 A + 0.5 I, A being a layer's attention, or the mean of all rows where there is
        no class token. Besides: `attention` (N, T, T), from each last token to each first one, whose rows sum to one;
        `n_layers`, how many layers were multiplied.

    Raises:
        LayerError: for a model without attention of all tokens to all, or whose tokens have no grid that can be
            determined.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.rollout(box, x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Abnar & Zuidema 2020, arXiv:2005.00928, section 3 (attention rollout).
    """
    check_settings(rollout, locals())
    require_images(box, "attention rollout")
    x = box.validate_inputs(x)
    parts = map_in_batches(
        lambda rows: _rollout_of_batch(box, x[rows], HEAD_FUSION_FN_BY_NAME[heads]),
        len(x),
        *box.batch_size_and_max_rows(len(x), batch_size),
    )
    attention = torch.cat([a for a, _ in parts])
    grid = _require_grid_of_tokens(box, attention.shape[-1])
    patch_attention = attention[:, 0] if grid.n_extra_tokens else attention.mean(1)  # (N, T)
    maps = patch_attention[:, grid.n_extra_tokens :].reshape(-1, 1, *grid.size)
    warn_not_finite("attention rollout", maps)
    return Attribution(
        upsample_bilinear(maps, image_size(box)) if upsample else maps,
        input=box.restore_structure(x),
        method="Attention rollout",
        classes=box.classes,
        attention=attention,
        n_layers=parts[0][1],
    )


def _rollout_of_batch(box: Box, x: Tensor, fuse_heads: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """The rollout (n, T, T), and the number of layers; one matrix is held at a time."""
    total: list[Tensor] = []
    count = 0

    def multiply_attention_into_rollout(weights: Tensor) -> None:  # (n, heads, T, T)
        nonlocal count
        a = fuse_heads(weights.to(box.dtype))
        a = 0.5 * a / a.sum(-1, keepdim=True) + 0.5 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        if total and total[0].shape != a.shape:
            sizes = f"{total[0].shape[-1]} and {a.shape[-1]}"
            raise LayerError(f"the model attends among {sizes} tokens in turn; rollout is for the same in all layers")
        total[:] = [a @ total[0]] if total else [a]
        count += 1

    size = max(len(x), box.min_rows)
    with box.isolated(grad=False), capturing_attention(size, multiply_attention_into_rollout):
        box.forward(x, {"output"})
    if not total:
        raise LayerError("no layer of this model attends from all tokens to all, so there is nothing to roll out")
    return total[0][: len(x)], count


def _require_grid_of_tokens(box: Box, n_tokens: int) -> PositionGrid:
    maps: list[Any] = [grid.size for _, grid in layers_with_grids(box) if not grid.is_tokens]
    grid = token_grid(box, n_tokens, maps[-1] if maps else None) or (token_grid(box, n_tokens) if maps else None)
    if grid is None:
        raise LayerError(
            f"the model attends among {n_tokens} tokens, which have no grid over the image that can be determined"
        )
    return grid
