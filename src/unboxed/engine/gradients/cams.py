"""Class activation maps: a layer's activations, weighed by what the score's gradient says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError, OutputError
from ...model.answers import check_scores
from ...model.batching import BatchSize, in_batches
from ...model.hooks import Acts
from ...model.layers import Layer
from ...objectives import Objective
from ..read.position_grids import Grid, grids, image_size, of_address, upsampled
from ..results import tell_not_finite, tell_rows
from .cam_layers import Trace
from .score import pull

Weigh = Callable[[Tensor, Tensor], Tensor]
"""Activations and gradients, (n, C, h, w) both -> the map (n, h, w) before its ReLU."""

Looked = tuple[Tensor, Tensor, Tensor]
"""Maps (n, 1, h, w), the rows (n,) taken before a clamp, and scores (n,)."""

LATEST = 6  # token layers among which the last is sought that the patches still have a say in


def cam(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None,
    layer: str | None,
    weigh: Weigh,
    *,
    name: str,
    upsample: bool,
    batch_size: BatchSize,
) -> Tensor:
    """The map (N, 1, H, W), or of the layer's grid (N, 1, h, w). Raises LayerError for a layer without positions."""
    if not isinstance(upsample, bool):
        raise InputError(f"upsample is True or False; got {upsample!r}")
    x = box.accept(x)
    size = image_size(box)
    objective = box.checked(box.objective(target, len(x)), len(x))
    chosen = None if layer is None else Chosen((_with_rows(box, layer),))

    def part(rows: slice) -> Looked:
        if rows.stop - rows.start == len(x):
            return _looked(box, objective, x, chosen, weigh)
        return _looked(box, objective.rows(rows), x[rows], chosen, weigh)

    parts = in_batches(part, len(x), *box.splits(len(x), batch_size, objective.coupled))
    maps, clamped, score = parts[0] if len(parts) == 1 else (torch.cat(h) for h in zip(*parts, strict=True))
    check_scores(score)
    tell_rows(f"{objective.name} is clamped at 0 by a final ReLU for", clamped, ": maps taken before the clamp")
    tell_not_finite(name, maps)
    tell_rows(f"{name} is zero everywhere for", ~maps.flatten(1).any(1), ": nothing at the layer speaks for the score")
    return upsampled(maps, size) if upsample else maps


def _with_rows(box: Box, layer: str) -> str:
    real = box.layers.resolve(layer)
    if not box.has_rows(real):
        raise LayerError(f"{layer!r} mixes examples: its first axis is not the batch")
    return real


@dataclass(frozen=True)
class Chosen:
    """The layers to look at, the best guess first; of tokens, which of them it is their gradients tell."""

    addresses: tuple[str, ...]
    grid: Grid | None = None  # told beforehand, where no layer was named

    def one(self, grads: Sequence[Tensor]) -> int:
        """The first that anything but the class token has a say in: after the last mixing only that has."""
        if self.grid is None or len(self.addresses) == 1:
            return 0
        return next((i for i, g in enumerate(grads) if self.grid.maps(g).any()), 0)


def _looked(box: Box, objective: Objective, x: Tensor, chosen: Chosen | None, weigh: Weigh) -> Looked:
    """One forward, one backward down to the layer."""
    with box.quiet():
        x = x.detach().requires_grad_()
        if chosen is None:
            chosen, acts, score = _sought(box, objective, x)
        else:
            acts = box.forward(x, {*objective.layers, *chosen.addresses})
            score = objective(acts)
        if all(a in acts for a in chosen.addresses):
            return _weighed(box, objective, score, acts, chosen, weigh)
    return _looked(box, objective, x, chosen, weigh)  # its values were let go of, or written over: once more


def _weighed(box: Box, objective: Objective, score: Tensor, acts: Acts, chosen: Chosen, weigh: Weigh) -> Looked:
    edges = [acts.edges[a] for a in chosen.addresses]
    if (cut := edges.index(None) if None in edges else -1) >= 0:
        raise OutputError(f"nothing has a gradient at {chosen.addresses[cut]!r}")
    leaves: list[Any] = edges
    like = [acts[a] for a in chosen.addresses]
    grid = chosen.grid or of_address(box, chosen.addresses[0], tuple(like[0].shape[1:]))
    grads, clamped = pull(score, acts, objective, leaves, like=like)
    i = chosen.one(grads)
    h, g = (grid.maps(t.detach().to(box.dtype)) for t in (like[i], grads[i]))
    return weigh(h, g).clamp(min=0)[:, None], clamped, score.detach()


# -- the layer, where none is named ------------------------------------------------------------------------------------


def _sought(box: Box, objective: Objective, x: Tensor) -> tuple[Chosen, Acts, Tensor]:
    """The last maps that all of the score passes through, or the last tokens of a ViT; found while the model runs.

    Raises LayerError where there is none, and OutputError where the score does not depend on the input.
    """
    trace = Trace(box, max(len(x), box.min_rows))
    guess = _guessed(box) if objective.layers & {"logits", "output"} else ()
    with trace.watching():
        acts = box.forward(x, {*objective.layers, *guess})
    score = objective(acts)
    if not score.requires_grad:
        raise OutputError(f"{objective.name} does not depend on the input by any path with a gradient (detached?)")
    own = {edge.node for a in objective.layers if (edge := acts.edges.get(a)) is not None}
    if (tokens := trace.tokens(score, own)) is not None:
        rows, grid = tokens
        return Chosen(_latest(rows), grid), acts, score
    met = trace.last(score, own)
    if met.value._version == met.version and met.value.numel():
        acts[met.address], acts.edges[met.address] = met.value[: len(x)], met.edge
    return Chosen((met.address,), met.grid), acts, score


def _guessed(box: Box) -> tuple[str, ...]:
    """The layers of the last tokens, as far as the layers' order tells: read in the run that tells for sure."""
    found = list(grids(box))
    if not found or not found[-1][1].tokens:
        return ()
    row, grid = found[-1]
    return _latest([r for r, g in reversed(found) if g == grid and r.shape == row.shape])


def _latest(rows: Sequence[Layer]) -> tuple[str, ...]:
    """The latest of these layers of tokens, the last first; normalized ones if there are any."""
    normalized = [r for r in rows if "Norm" in r.type] or rows
    return tuple(r.addresses[-1] for r in normalized[:LATEST])
