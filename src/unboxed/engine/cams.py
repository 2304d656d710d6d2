"""Class activation maps: a layer's activations, weighed by what the score's gradient says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..errors import InputError, LayerError, OutputError, UnboxedWarning
from ..net.batching import BatchSize, in_batches
from ..net.layers import Layer
from ..net.taps import Acts, Address
from ..objectives import ENDS, Objective
from .gradients import pull
from .grids import Grid, grids, image_size, of_address, upsampled

Weigh = Callable[[Tensor, Tensor], Tensor]
"""Activations and gradients, (n, C, h, w) both -> the map (n, h, w) before its ReLU."""

ASIDE = ("Pool", "Dropout", "Identity")  # layers that no one means by the last convolutional one
RELUS = ("relu", "relu_", "clamp", "clamp_min", "threshold", "maximum")
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
    chosen = default(box, objective) if layer is None else Chosen((_with_rows(box, layer),))

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        return _looked(box, objective.rows(rows), x[rows], chosen, weigh)

    parts = in_batches(part, len(x), *box.splits(len(x), batch_size, objective.coupled))
    maps, clamped = (torch.cat(h) for h in zip(*parts, strict=True))
    _tell(f"{objective.name} is clamped at 0 by a final ReLU for", clamped, ": maps taken before the clamp")
    _tell(f"{name} is zero everywhere for", ~maps.flatten(1).any(1), ": nothing at the layer speaks for the score")
    return upsampled(maps, size) if upsample else maps


def _tell(what: str, rows: Tensor, then: str) -> None:
    if n := int(rows.sum()):
        warnings.warn(f"{what} {n} of {len(rows)} inputs{then}", UnboxedWarning, stacklevel=4)


def _with_rows(box: Box, layer: str) -> str:
    real = box.layers.resolve(layer)
    if not box.has_rows(real):
        raise LayerError(f"{layer!r} mixes examples: its first axis is not the batch")
    return real


@dataclass(frozen=True)
class Chosen:
    """The layers to look at, the best guess first; which of them it is, their values tell."""

    addresses: tuple[str, ...]
    grid: Grid | None = None  # told beforehand, for tokens

    def one(self, acts: Acts, grads: Sequence[Tensor]) -> int:
        if len(self.addresses) == 1:
            return 0
        if self.grid is not None and self.grid.tokens:
            spoken = [bool(self.grid.maps(g).any()) for g in grads]  # after the last mixing only the class token has
            return spoken.index(True) if True in spoken else 0
        h = acts[self.addresses[0]].clamp(min=0)
        rectified = [i for i, a in enumerate(self.addresses) if i and torch.equal(acts[a], h)]
        return rectified[0] if rectified else 0


def _looked(box: Box, objective: Objective, x: Tensor, chosen: Chosen, weigh: Weigh) -> tuple[Tensor, Tensor]:
    """Maps (n, 1, h, w) and the rows (n,) taken before a clamp: one forward, one backward down to the layer."""
    with box.quiet():
        x = x.detach().requires_grad_()
        acts = box.forward(x, {*objective.layers, *chosen.addresses})
        edges = [acts.edges[a] for a in chosen.addresses]
        if (cut := edges.index(None) if None in edges else -1) >= 0:
            raise OutputError(f"nothing has a gradient at {chosen.addresses[cut]!r}")
        leaves: list[Any] = edges
        like = [acts[a] for a in chosen.addresses]
        grids = [chosen.grid or of_address(box, a, tuple(acts[a].shape[1:])) for a in chosen.addresses[:1]]
        grads, clamped = pull(objective(acts), acts, objective, leaves, like=like)
        i = chosen.one(acts, grads)
        h, g = (grids[0].maps(t.detach().to(box.dtype)) for t in (like[i], grads[i]))
        return weigh(h, g).clamp(min=0)[:, None], clamped


# -- the layer, where none is named ------------------------------------------------------------------------------------


def default(box: Box, objective: Objective) -> Chosen:
    """The last layer below the score with positions, after its ReLU and its block; of a ViT the last tokens.

    Raises LayerError where there is none.
    """
    below = _below(box, objective)
    output = (box.n_outputs, *box._found_shape)
    found = [
        (row, grid)
        for row, grid in grids(box)
        if row in below and row.shape != output and not any(part in row.type for part in ASIDE)
    ]
    if not found:
        raise LayerError(
            "no layer below this score has positions on the image: its maps have rows and columns, or are tokens of a "
            "patch grid. Methods on the input need none; name a functional op by its address, such as ':relu#0'"
        )
    row, grid = found[-1]
    if grid.tokens:
        return _tokens(found, row, grid)
    outer = _block(box, row, objective)
    if outer is not None or grid.last or "ReLU" in row.type:
        return Chosen((outer or row.addresses[-1],), grid)
    whole = bool(objective.layers & {"logits", "output"})  # else a ReLU of the same name may lie above the score
    return Chosen((row.addresses[-1], *(_rectified(box, row) if whole else ())), grid)


def _below(box: Box, objective: Objective) -> list[Layer]:
    """The leaves that surely run before what the objective looks at."""
    leaves = list(box.layers.leaves)
    if objective.layers & set(ENDS) - {"input"}:
        return leaves
    paths = [Address.parse(box.layers.resolve(a)).path for a in objective.layers if a not in ENDS]
    if not paths or "" in paths:
        raise LayerError(f"which layers lie below {objective.name} can't be told: say layer=")
    if not set(paths) - {leaves[0].path}:
        return leaves[:1]  # nothing lies below the first: then it is looked at itself
    inside = [i for i, row in enumerate(leaves) if any(row.path.startswith(f"{path}.") for path in paths)]
    own = [i for i, row in enumerate(leaves) if row.path in paths]
    return leaves[: max([i + 1 for i in inside] + own, default=0)]


def _block(box: Box, row: Layer, objective: Objective) -> str | None:
    """The outermost module around a layer that gives maps of the same shape: a residual block ends with its sum."""
    parts = row.path.split(".")
    for n in range(1, len(parts)):
        path = ".".join(parts[:n])
        around = next((r for r in box.layers if r.path == path), None)
        own = any(Address.parse(a).path.startswith(path) for a in objective.layers if a not in ENDS)
        if around is not None and around.shape == row.shape and around.rows and around.calls == 1 and not own:
            return path
    return None


def _rectified(box: Box, row: Layer) -> tuple[str, ...]:
    """Where a ReLU may stand that follows the layer: functional, or a module that runs more than once."""
    parts = row.path.split(".")
    around = {".".join(parts[:n]) for n in range(len(parts))}
    found = [r.addresses[-1] for r in box.layers.leaves if r.calls > 1 and r.shape == row.shape and r.path != row.path]
    for (path, op), calls in box.layers._ops.items():
        if path in around and op in RELUS and box.has_rows(f"{path}:{op}#0"):
            found += [f"{path}:{op}#{k}" for k in range(max(0, calls - 4), calls)]
    return tuple(found)


def _tokens(found: Sequence[tuple[Layer, Grid]], row: Layer, grid: Grid) -> Chosen:
    """The last layers of such tokens, the last first; normalized ones if there are any."""
    alike = [r for r, g in found if g == grid and r.shape == row.shape]
    normalized = [r for r in alike if "Norm" in r.type] or alike
    return Chosen(tuple(r.addresses[-1] for r in reversed(normalized[-LATEST:])), grid)
