"""Activation patching: put what a layer made of one input into the run of another, and see whose answer comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edited_runs import ReplaceWhere, run_variants
from ..engine.read.edits import count_parts, part_masks, require_units, resolve_target, unit_addresses
from ..errors import InputError, LayerError
from ..model.batching import BatchSize
from ..model.hooks import Edit
from ..objectives import Objective

PatchUnit = Literal["layer", "channel", "position"]
AXIS_BY_PATCH_UNIT: dict[str, int | None] = {"layer": None, "channel": 1, "position": 2}
ROUNDING_ULPS = 64  # times the precision: scores that lie closer than this are the same


@dataclass(frozen=True, eq=False)
class PatchedLayer:
    """One layer's activations, or its parts, exchanged: (N,) by layer, (N, C) by channel, (N, ...) by position."""

    path: str
    score: Tensor
    restored_fraction: Tensor  # how much of the score came back: 0 as corrupted, 1 as clean


@dataclass(frozen=True, eq=False)
class Patching:
    clean: Tensor  # (N,) score
    corrupted: Tensor  # (N,) score
    layers: tuple[PatchedLayer, ...]

    @property
    def matrix(self) -> Tensor:
        """What each whole layer restored, (N, L)."""
        return torch.stack(
            [
                layer.restored_fraction.flatten(1).mean(1)
                if layer.restored_fraction.ndim > 1
                else layer.restored_fraction
                for layer in self.layers
            ],
            1,
        )


@card(
    name="Activation patching",
    source="Vig et al. 2020, arXiv:2004.12265; normalized as in Zhang & Nanda 2024, arXiv:2309.16042, section 2",
    shows="Where the difference between two inputs that makes the answer differ is carried through the model.",
    does_not_show="That a part is needed: it was enough here, and others may carry the same.",
    example=lambda method, box, x, y: method(
        box, box.validate_inputs(x), box.validate_inputs(x).roll(1, 0), unit_addresses(box)[-1:], y, by="channel"
    ),
    exempt={"rows": "its example takes each input's neighbor for the corrupted one"},
)
def patching(
    box: Box,
    clean: Tensor,
    corrupted: Tensor,
    layers: Sequence[str] | None = None,
    target: int | Tensor | Objective | None = None,
    *,
    by: PatchUnit = "layer",
    batch_size: BatchSize = "auto",
) -> Patching:
    """Run `corrupted` with a layer's activation taken from `clean`: (patched - corrupted) / (clean - corrupted) scores.

    `layers` are by default all, `target` is the class predicted for `clean`; `by` exchanges a whole layer, or one
    channel or one position of it at a time. Where the two inputs score alike, nothing can come back, and 0 is given.
    Raises InputError for inputs that are not as many as one another, LayerError for a layer without such parts.
    """
    if by not in AXIS_BY_PATCH_UNIT:
        raise InputError(f'by is "layer", "channel" or "position"; got {by!r}')
    clean, corrupted = box.validate_inputs(clean), box.validate_inputs(corrupted)
    if len(clean) != len(corrupted):
        raise InputError(f"each corrupted input goes with a clean one; got {len(corrupted)} and {len(clean)}")
    paths = _resolve_paths(box, layers, by)
    objective = resolve_target(box, target, clean, batch_size)
    a, b = (
        run_variants(box, x, objective, logits=False, batch_size=batch_size).score[:, 0] for x in (clean, corrupted)
    )
    scores = [_patched_scores(box, clean, corrupted, path, objective, by, batch_size) for path in paths]
    patched_layers = [PatchedLayer(p, s, restored(s, a, b)) for p, s in zip(paths, scores, strict=True)]
    return Patching(a, b, tuple(patched_layers))


def _resolve_paths(box: Box, layers: Sequence[str] | None, by: PatchUnit) -> list[str]:
    if layers is not None:
        if isinstance(layers, str):
            raise InputError(f"layers is a list of addresses; got the text {layers!r}")
        return [_require_parts(box, path, by) for path in layers]
    paths = [path for path in unit_addresses(box) if by != "position" or len(box.layers[path].shape) > 1]
    if not paths:
        raise LayerError("no layer of this model has positions; patch by channel or by layer")
    return paths


def _require_parts(box: Box, path: str, by: PatchUnit) -> str:
    resolved = require_units(box, path)
    if by == "position" and ":" not in resolved and len(box.layers[resolved].shape) < 2:
        raise LayerError(f"{path!r} has no positions: it gives {box.layers[resolved].shape}; patch it by channel")
    return resolved


def _patched_scores(
    box: Box, clean: Tensor, corrupted: Tensor, path: str, objective: Objective, by: PatchUnit, batch_size: BatchSize
) -> Tensor:
    """The scores of `corrupted` with each part of one layer exchanged."""
    first = clean if box.batch_dependent else clean[:1]
    shape, axis = box.read(first, [path])[path].shape[1:], AXIS_BY_PATCH_UNIT[by]
    n_parts = count_parts(shape, axis)

    def make_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
        unique_examples, inverse = torch.unique(examples, return_inverse=True)
        with box.isolated(grad=False):
            h = box.forward(clean[unique_examples], [path])[path]
        return {path: ReplaceWhere(part_masks(variants, n_parts, shape, axis), h[inverse])}

    score = run_variants(box, corrupted, objective, make_edits, n_parts, logits=False, batch_size=batch_size).score
    return score[:, 0] if axis is None else score if axis == 1 else score.view(-1, *shape[1:])


def restored(score: Tensor, clean: Tensor, corrupted: Tensor) -> Tensor:
    """(score - corrupted) / (clean - corrupted), 0 where both are the same up to rounding."""
    difference = clean - corrupted
    tolerance = ROUNDING_ULPS * torch.finfo(difference.dtype).eps * torch.maximum(clean.abs(), corrupted.abs())
    is_equal, trailing_axes = difference.abs() <= tolerance, [1] * (score.ndim - 1)
    fraction = (score - corrupted.view(-1, *trailing_axes)) / torch.where(is_equal, 1, difference).view(
        -1, *trailing_axes
    )
    return torch.where(is_equal.view(-1, *trailing_axes), 0, fraction)
