"""Activation patching: the activations of one input in the forward pass of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edited_runs import ReplaceWhereEdit, run_variants
from ..engine.read.edits import (
    count_units_or_positions,
    require_unit_layer,
    resolve_target,
    unit_layer_addresses,
    unit_or_position_masks,
)
from ..engine.results import ResultMixin
from ..engine.rows import broadcast_rows
from ..errors import InputError, LayerError
from ..inputs.tokens import Tokens
from ..model.hooks import Edit
from ..objectives import Objective
from ..parameters import BatchSize, LayerAddresses, Target
from ..settings import ValueRole, check_settings
from ..validation import address_list

PatchingGranularity = Literal["layer", "channel", "position"]
AXIS_BY_GRANULARITY: dict[str, int | None] = {"layer": None, "channel": 1, "position": 2}
EQUAL_SCORES_TOLERANCE_ULPS = 64  # times the precision: scores closer than this are equal


@dataclass(frozen=True, eq=False, repr=False)
class PatchedLayer(ResultMixin):
    """The scores with one layer's activations, or parts of them, patched.

    Both tensors are (N,) for a whole layer, (N, C) per channel, (N, ...) per position.
    """

    path: str  # the layer's address
    score: Tensor
    restored_fraction: Tensor  # of the score: 0 as corrupted, 1 as clean


@dataclass(frozen=True, eq=False, repr=False)
class Patching(ResultMixin):
    """The scores of corrupted inputs with activations of clean inputs."""

    returns: ClassVar[str] = "table"

    clean: Tensor  # (N,) score
    corrupted: Tensor  # (N,) score
    layers: tuple[PatchedLayer, ...]

    def summary_lines(self) -> Iterator[str]:
        clean, corrupted = float(self.clean.mean()), float(self.corrupted.mean())
        yield f"score {clean:.3g} of the clean inputs, {corrupted:.3g} of the corrupted ones"
        for layer, restored in zip(self.layers, self.matrix.double().mean(0).tolist(), strict=True):
            yield f"{layer.path}: restores {restored:.0%} of the difference"

    @property
    def matrix(self) -> Tensor:
        """The restored fraction of each layer, (N, L); the mean over channels or positions where those were patched."""
        fractions = [layer.restored_fraction for layer in self.layers]
        return torch.stack([f.flatten(1).mean(1) if f.ndim > 1 else f for f in fractions], 1)


@card(
    name="Activation patching",
    aliases=("activation_patching",),
    source="Vig et al. 2020, arXiv:2004.12265; normalized as in Zhang & Nanda 2024, arXiv:2309.16042, section 2",
    shows="Where in the model the difference between two inputs that changes the prediction is carried.",
    does_not_show="That a part is needed: it was sufficient here, and others may carry the same.",
    example=lambda method, box, x, y: method(
        box,
        box.validate_inputs(x),
        box.validate_inputs(x).roll(1, 0),
        unit_layer_addresses(box)[-1:],
        y,
        part="channel",
    ),
    exempt={"rows": "its example takes each input's neighbor for the corrupted one"},
    texts=True,
    order=11,
)
def patching(
    box: Box,
    clean: Annotated[Tensor, ValueRole("inputs"), "Inputs (N, ...) whose activations are put in."],
    corrupted: Annotated[Tensor, ValueRole("inputs"), "Inputs (N, ...) whose activations are replaced."],
    layers: LayerAddresses = None,
    target: Target = None,
    *,
    part: Annotated[PatchingGranularity, "Part of a layer that is replaced at a time."] = "layer",
    batch_size: BatchSize = "auto",
) -> Patching:
    """The score of `corrupted` with a layer's activation replaced by that of `clean`, layer by layer.

    To locate where the difference between two inputs is processed. To see what the model depends on without a second
    input use `ablation`; for edits of your own `rewrite`.

    Args:
        box: The opened model.
        clean: Inputs (N, ...) whose activations are put in.
        corrupted: Inputs (N, ...) whose activations are replaced. As many as `clean`.
        layers: Addresses of the layers, as `box.layers` lists them. None: all that have such parts.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for `clean`.
        part: Part of a layer that is replaced at a time. "layer": all of it; "channel"; "position". Of texts a position
            is a token, a channel one of the values that each token has.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Patching`: for each of its `layers` the `score` and `restored_fraction` (patched - corrupted) / (clean -
        corrupted), (N,) per layer, (N, C) per channel, (N, ...) per position; 0 where clean and corrupted have equal
        scores. `matrix` (N, L) has one value per layer.

    Raises:
        InputError: for unequal numbers of inputs or tokens, or another part.
        LayerError: for an unknown layer, or one without such parts.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> result = ub.activations.patching(box, x[:2], x[2:], ["relu1", "relu3"])
        >>> tuple(result.matrix.shape), result.layers[0].path
        ((2, 2), 'relu1')

    Source:
        Vig et al. 2020, arXiv:2004.12265; normalized as in Zhang & Nanda 2024, arXiv:2309.16042, section 2.
    """
    check_settings(patching, locals())
    clean, corrupted = box.validate_inputs(clean), box.validate_inputs(corrupted)
    if len(clean) != len(corrupted):
        raise InputError(f"clean and corrupted must be as many; got {len(clean)} and {len(corrupted)}")
    if clean.shape != corrupted.shape:  # of texts
        raise InputError(
            f"clean and corrupted texts must have as many tokens; got {clean.shape[1]} and {corrupted.shape[1]}"
        )
    paths = _resolve_patched_layers(box, layers, part)
    objective = resolve_target(box, target, clean, batch_size)
    a, b = (
        run_variants(box, x, objective, logits=False, batch_size=batch_size).score[:, 0] for x in (clean, corrupted)
    )
    scores = [_patched_scores(box, clean, corrupted, path, objective, part, batch_size) for path in paths]
    patched_layers = [PatchedLayer(p, s, restored_fraction_of(s, a, b)) for p, s in zip(paths, scores, strict=True)]
    return Patching(a, b, tuple(patched_layers))


def _resolve_patched_layers(box: Box, layers: Sequence[str] | str | None, part: PatchingGranularity) -> list[str]:
    if layers is not None:
        return [_resolve_patched_path(box, path, part) for path in address_list(layers)]
    paths = [path for path in unit_layer_addresses(box) if part != "position" or len(box.layers[path].shape) > 1]
    if not paths:
        raise LayerError("no layer of this model has positions; patch by channel or by layer")
    return paths


def _resolve_patched_path(box: Box, path: str, part: PatchingGranularity) -> str:
    resolved = require_unit_layer(box, path)
    if part == "position" and ":" not in resolved and len(box.layers[resolved].shape) < 2:
        raise LayerError(f"{path!r} has no positions: its shape is {box.layers[resolved].shape}; patch it by channel")
    return resolved


def _patched_scores(
    box: Box,
    clean: Tensor,
    corrupted: Tensor,
    path: str,
    objective: Objective,
    part: PatchingGranularity,
    batch_size: BatchSize,
) -> Tensor:
    """The scores of `corrupted` with each part of one layer replaced."""
    first = clean if box.batch_dependent else clean[:1]
    shape = box.read(first, [path])[path].shape[1:]
    axis = _patched_axis(box, part, len(shape))
    n_parts = count_units_or_positions(shape, axis)

    def make_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
        unique_examples, inverse = torch.unique(examples, return_inverse=True)
        with box.isolated(grad=False):
            h = box.forward(clean[unique_examples], [path])[path]
        return {path: ReplaceWhereEdit(unit_or_position_masks(variants, n_parts, shape, axis), h[inverse])}

    score = run_variants(box, corrupted, objective, make_edits, n_parts, logits=False, batch_size=batch_size).score
    return score[:, 0] if axis is None else score if axis == 1 else score.view(-1, *shape[1:])


def _patched_axis(box: Box, part: PatchingGranularity, n_axes: int) -> int | None:
    """The axis of the parts: units come first, but for texts, whose layers are (N, T, F)."""
    is_token_layer = isinstance(box.inputs, Tokens) and n_axes == 2
    return {"layer": None, "channel": 2, "position": 1}[part] if is_token_layer else AXIS_BY_GRANULARITY[part]


def restored_fraction_of(score: Tensor, clean: Tensor, corrupted: Tensor) -> Tensor:
    """(score - corrupted) / (clean - corrupted), 0 where clean and corrupted are equal up to rounding."""
    difference = clean - corrupted
    tolerance = (
        EQUAL_SCORES_TOLERANCE_ULPS * torch.finfo(difference.dtype).eps * torch.maximum(clean.abs(), corrupted.abs())
    )
    is_equal = difference.abs() <= tolerance
    divisor = broadcast_rows(torch.where(is_equal, 1, difference), score)
    return torch.where(broadcast_rows(is_equal, score), 0, (score - broadcast_rows(corrupted, score)) / divisor)
