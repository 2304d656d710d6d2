"""Attention rollout: attention multiplied through the layers of a vision transformer.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928, section 3 (attention rollout).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.position_grids import PositionGrid, image_size, layers_with_grids, token_grid, upsample_bilinear
from ..engine.read.sizes import require_images
from ..engine.results import warn_not_finite
from ..errors import InputError, LayerError
from ..model.attention import capture_attention
from ..model.batching import BatchSize, in_batches

Heads = Literal["mean", "max", "min"]
HEAD_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean(1),
    "max": lambda a: a.amax(1),
    "min": lambda a: a.amin(1),
}


@dataclass(frozen=True, eq=False)
class Rollout:
    map: Tensor  # (N, 1, H, W), or (N, 1, h, w) of the patches; >= 0
    attention: Tensor  # (N, T, T): of each last token to each first one; rows sum to one
    n_layers: int  # of attention, that were multiplied


@card(
    name="Attention rollout",
    source="Abnar & Zuidema 2020, arXiv:2005.00928, section 3",
    shows="From which patches attention can have brought something to the end of the model.",
    does_not_show="Why this class and not another: no score is in it, so it is the same map for every target.",
    needs=("pixels", "attention"),
    example=lambda method, box, x, y: method(box, x),
)
def rollout(
    box: Box, x: Tensor, *, heads: Heads = "mean", upsample: bool = True, batch_size: BatchSize = "auto"
) -> Rollout:
    """The product over layers of 0.5 A + 0.5 I, where A is a layer's attention, its heads' mean (max, min).

    The map is the class token's row where there is one, else the mean of all rows, laid on the patches' grid and
    enlarged to the image (bilinear). Raises LayerError for a model without attention of all tokens to all, or whose
    tokens lie on no grid that can be told.
    """
    if heads not in HEAD_FUSIONS:
        raise InputError(f"heads is {', '.join(map(repr, HEAD_FUSIONS))}; got {heads!r}")
    if not isinstance(upsample, bool):
        raise InputError(f"upsample is True or False; got {upsample!r}")
    require_images(box, "attention rollout")
    x = box.validate_inputs(x)
    parts = in_batches(
        lambda rows: _rollout_of_batch(box, x[rows], HEAD_FUSIONS[heads]), len(x), *box.batch_plan(len(x), batch_size)
    )
    attention = torch.cat([a for a, _ in parts])
    grid = _token_grid(box, attention.shape[-1])
    patch_attention = attention[:, 0] if grid.n_extra_tokens else attention.mean(1)  # (N, T)
    maps = patch_attention[:, grid.n_extra_tokens :].reshape(-1, 1, *grid.size)
    warn_not_finite("attention rollout", maps)
    return Rollout(upsample_bilinear(maps, image_size(box)) if upsample else maps, attention, parts[0][1])


def _rollout_of_batch(box: Box, x: Tensor, fuse_heads: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """The rollout (n, T, T), and of how many layers; one matrix is held at a time."""
    total: list[Tensor] = []
    count = 0

    def on_attention(weights: Tensor) -> None:  # (n, heads, T, T)
        nonlocal count
        a = fuse_heads(weights.to(box.dtype))
        a = 0.5 * a / a.sum(-1, keepdim=True) + 0.5 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        if total and total[0].shape != a.shape:
            sizes = f"{total[0].shape[-1]} and {a.shape[-1]}"
            raise LayerError(f"the model attends among {sizes} tokens in turn; rollout is for the same in all layers")
        total[:] = [a @ total[0]] if total else [a]
        count += 1

    size = max(len(x), box.min_rows)
    with box.isolated(grad=False), capture_attention(size, on_attention):
        box.forward(x, {"output"})
    if not total:
        raise LayerError("no layer of this model attends from all tokens to all, so there is nothing to roll out")
    return total[0][: len(x)], count


def _token_grid(box: Box, n_tokens: int) -> PositionGrid:
    maps: list[Any] = [grid.size for _, grid in layers_with_grids(box) if not grid.is_tokens]
    grid = token_grid(box, n_tokens, maps[-1] if maps else None) or (token_grid(box, n_tokens) if maps else None)
    if grid is None:
        raise LayerError(
            f"the model attends among {n_tokens} tokens, which lie on no grid over the image that can be told"
        )
    return grid
