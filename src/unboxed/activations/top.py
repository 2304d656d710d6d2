"""Top examples: for every unit the examples that excite it most, in one pass over data of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..box import Box
from ..cards import card
from ..engine.read.edits import check_units
from ..engine.read.examples import fetch_inputs
from ..engine.read.items import SkippedExamples
from ..engine.read.packing import is_single_pass, pack_data
from ..errors import InputError
from ..model.batching import BatchSize
from ..model.hooks import Acts
from ..validation import check_int
from .distributions import accumulator_dtype
from .statistics import ScoreKind, SurveyState, UnitStatistics, UnitSurvey, run_pass
from .units import peak_positions, unit_layers, unravel_positions


@dataclass(frozen=True, eq=False)
class TopExamples:
    """The k examples that excite each unit of one layer most, best first; of equals the earlier one.

    `spread` is the mean cosine distance between a unit's top examples in the features; near `usual`, that between any
    two examples of the data, the unit answers to many things; far below, to one.
    """

    path: str
    ranked_by: ScoreKind
    example_index: Tensor  # (C, k) places in the data
    value: Tensor  # (C, k); NaN, where fewer examples have a number
    position: Tensor  # (C, k, P) of the largest value, on the layer's axes beside the units'
    mean_distance: Tensor  # (C,); NaN for fewer than two examples
    baseline_distance: float
    features: str | None  # the layer that the spread is measured in
    statistics: UnitStatistics
    inputs: Mapping[int, Tensor] = field(default_factory=dict)  # the top examples, of data that can be read only once

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never above zero, or the same everywhere."""
        return self.statistics.dead

    def fetch_examples(self, data: Any, units: Sequence[int] | int | None = None) -> Tensor:
        """The top examples (U, k, ...) of some units out of the data passed over. Raises DataError, InputError."""
        index = self.example_index[check_units(units, len(self.example_index), self.path)]
        flat_index = index.flatten().tolist()
        unique_index = {i: position for position, i in enumerate(sorted(set(flat_index)))}
        examples = (
            torch.stack([self.inputs[i] for i in unique_index])
            if self.inputs
            else fetch_inputs(data, list(unique_index))
        )
        inverse = torch.tensor([unique_index[i] for i in flat_index], device=examples.device).view(index.shape)
        return examples[inverse]


@card(
    name="Top examples",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 4, figure 2",
    shows="Which real examples, and which part of each, excite a unit most.",
    does_not_show="What they have in common that the unit answers to, and what else it answers to less strongly.",
    example=lambda method, box, x, y: method(box, x, unit_layers(box, None)[-1:], k=2),
)
def top_examples(
    box: Box,
    data: Any,
    layers: Sequence[str] | str | None = None,
    k: int = 9,
    *,
    by: ScoreKind = "peak",
    features: str | None = "auto",
    axis: int = 1,
    batch_size: BatchSize = "auto",
) -> tuple[TopExamples, ...]:
    """The k examples that excite every unit of some layers most, with the units' statistics, in one pass.

    Layers and data as for `statistics`. Ranked `by` an example's largest value ("peak") or its mean over positions.
    `features` is the layer in which the spread of a unit's top examples is measured: by default what the last layer
    with weights receives; None leaves it out. Ctrl-C ends the pass and gives what was seen.
    Raises DataError, InputError, LayerError.
    """
    if by not in ("peak", "mean"):
        raise InputError(f'by is "peak" or "mean"; got {by!r}')
    paths, k = unit_layers(box, layers, axis), check_int("k", k, minimum=1)
    features = _penultimate_input(box) if features == "auto" else features
    if features is not None:
        (features,) = unit_layers(box, [features])
    data = pack_data(box, data)
    ranking = _TopRanking({path: UnitSurvey(path, axis, by) for path in paths}, k, by, features, is_single_pass(data))
    read = [features] if features else []
    skipped = SkippedExamples()
    state, interrupted = run_pass(
        box, data, paths, ranking.observe, ranking.next_state, read, batch_size=batch_size, skipped=skipped
    )
    results = ranking.results(state, box.dtype, interrupted)
    return (
        tuple(replace(top, example_index=skipped.dataset_rows(top.example_index)) for top in results)
        if skipped.rows
        else results
    )


def _penultimate_input(box: Box) -> str:
    """What the last layer with weights receives."""
    embedding_types = (nn.Embedding, nn.EmbeddingBag)  # what they receive are numbers of rows, no features
    rows = [row for row in box.layers.leaves if row.has_input and row.has_batch_axis and row.n_parameters]
    rows = [row for row in rows if not isinstance(box.modules[row.path], embedding_types)]
    if not rows:
        return "logits"
    last = rows[-1]
    return f"{last.path}:input" + (f"#{last.n_calls - 1}" if last.n_calls > 1 else "")


@dataclass(frozen=True)
class _TopK:
    """The best so far, best first: at most k columns."""

    value: Tensor  # (C, w)
    index: Tensor  # (C, w)
    flat_position: Tensor  # (C, w)
    feature: Tensor  # (C, w, D) of length 1

    def merge_batch(self, new: _TopK, units: Tensor | None, k: int) -> _TopK:
        """With the best of one batch more, of some units or of all."""
        if units is None:
            return self._merge(new, k)
        if not len(units):
            return self
        merged = _TopK(*(t[units] for t in self._tensors))._merge(new, k)
        return _TopK(*(t.index_copy(0, units, n) for t, n in zip(self._tensors, merged._tensors, strict=True)))

    def improved_units(self, scores: Tensor, k: int) -> tuple[Tensor | None, int]:
        """The units that have new top examples, and how many at most.

        None for all, and on an accelerator, where asking means waiting.
        """
        if scores.device.type != "cpu" or self.value.shape[1] < k:
            return None, k
        worst = self.value[:, -1]
        n_better = (scores > worst).sum(0)
        n_better = n_better.masked_fill(worst.isnan(), k)
        return n_better.nonzero()[:, 0], min(k, int(n_better.max()))

    def _merge(self, new: _TopK, k: int) -> _TopK:
        joined = [torch.cat(pair, 1) for pair in zip(self._tensors, new._tensors, strict=True)]
        order = _top_indices(joined[0], k)
        units = torch.arange(len(order), device=order.device)[:, None]
        return _TopK(*(t[units, order] for t in joined))

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.index, self.flat_position, self.feature

    def mean_distance(self) -> Tensor:
        """The mean cosine distance between each two, (C,)."""
        is_known = ~self.value.isnan()
        f = self.feature.to(accumulator_dtype(self.value)) * is_known[..., None]
        return _mean_pair_distance(f.sum(1), f.square().sum((1, 2)), is_known.sum(1))


def _top_indices(scores: Tensor, k: int) -> Tensor:
    """The places (C, w) of the k largest of each row, NaN last, the earlier of equals first."""
    ranked = torch.where(scores.isnan(), -torch.inf, scores)
    return ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _mean_pair_distance(total: Tensor, squares: Tensor, n: Tensor) -> Tensor:
    """One minus the mean of u_i . u_j over all pairs of n unit vectors, from their sum (..., D) and sum of squares."""
    n_pairs = n * (n - 1)
    return 1 - (total.square().sum(-1) - squares) / n_pairs.to(total).masked_fill(n_pairs == 0, torch.nan)


@dataclass(frozen=True)
class _PassState:
    """What is kept of the examples so far."""

    n_examples: int
    layers: dict[
        str, tuple[SurveyState, _TopK, tuple[int, ...]]
    ]  # statistics, best examples, the shape of the positions
    feature_sum: Tensor  # (D,) the sum of the features
    squared_norm_sum: Tensor  # () of their squared lengths, which are 1, or 0 where all of one is 0
    inputs: Mapping[int, Tensor]


@dataclass(frozen=True)
class _BatchTop:
    """What one look at a layer gave: the best of this batch, of all units or of those that have new ones."""

    survey: SurveyState
    units: Tensor | None
    value: Tensor  # (c, w)
    batch_row: Tensor  # (c, w) of the batch
    flat_position: Tensor  # (c, w)
    positions: tuple[int, ...]


@dataclass(frozen=True)
class _TopRanking:
    surveys: dict[str, UnitSurvey]
    k: int
    ranked_by: ScoreKind
    features: str | None
    keeps_inputs: bool  # the inputs of the top examples

    def observe(self, state: _PassState | None, path: str, h: Tensor) -> _BatchTop:
        survey_before, top, _ = state.layers[path] if state else (None, None, None)
        survey, h, rows = self.surveys[path].observe(survey_before, h)
        scores = rows.maximum if self.ranked_by == "peak" else rows.mean  # (n, C)
        units, n_new = top.improved_units(scores, self.k) if top else (None, self.k)
        unit_index = torch.arange(h.shape[1], device=h.device) if units is None else units
        unit_scores = scores.T[unit_index]  # (c, n)
        batch_row = _top_indices(unit_scores, n_new)
        flat_position = peak_positions(h[batch_row, unit_index[:, None]])
        return _BatchTop(survey, units, unit_scores.gather(1, batch_row), batch_row, flat_position, tuple(h.shape[2:]))

    def next_state(self, state: _PassState | None, batch_tops: dict[str, _BatchTop], acts: Acts) -> _PassState:
        """With one batch more."""
        x, start = acts["input"], state.n_examples if state else 0
        f = _unit_vectors(acts[self.features]) if self.features else x.new_empty(len(x), 0)
        layers = {}
        for path, batch_top in batch_tops.items():
            top = _TopK(batch_top.value, batch_top.batch_row + start, batch_top.flat_position, f[batch_top.batch_row])
            old_top = state.layers[path][1] if state else None
            layers[path] = (
                batch_top.survey,
                old_top.merge_batch(top, batch_top.units, self.k) if old_top else top,
                batch_top.positions,
            )
        total, squares = f.sum(0, dtype=accumulator_dtype(f)), f.square().sum(dtype=accumulator_dtype(f))
        if state:
            total, squares = state.feature_sum + total, state.squared_norm_sum + squares
        inputs = _top_inputs(state, [top for _, top, _ in layers.values()], x) if self.keeps_inputs else {}
        return _PassState(start + len(x), layers, total, squares, inputs)

    def results(self, state: _PassState, dtype: torch.dtype, interrupted: bool) -> tuple[TopExamples, ...]:
        n = torch.tensor(state.n_examples, device=state.feature_sum.device)
        baseline_distance = (
            float(_mean_pair_distance(state.feature_sum, state.squared_norm_sum, n)) if self.features else math.nan
        )
        tops = []
        for path, unit_survey in self.surveys.items():
            survey, top, positions = state.layers[path]
            position, value = unravel_positions(top.flat_position, positions), top.value.to(dtype)
            mean_distance = top.mean_distance().to(dtype) if self.features else torch.full_like(value[:, 0], math.nan)
            statistics = unit_survey.to_statistics(survey, dtype, interrupted)
            tops.append(
                TopExamples(
                    unit_survey.path,
                    self.ranked_by,
                    top.index,
                    value,
                    position,
                    mean_distance,
                    baseline_distance,
                    self.features,
                    statistics,
                    state.inputs,
                )
            )
        return tuple(tops)


def _top_inputs(state: _PassState | None, tops: Sequence[_TopK], x: Tensor) -> dict[int, Tensor]:
    """The inputs of the top examples so far, and no others."""
    n, old_inputs = (state.n_examples, state.inputs) if state else (0, {})
    needed = {i for top in tops for i in top.index.flatten().tolist()}
    return {i: old_inputs[i] if i < n else x[i - n].clone() for i in needed}


def _unit_vectors(f: Tensor) -> Tensor:
    """Features (n, ...) as vectors of length 1 (n, D), means over positions; of what is not finite or all 0, zeros."""
    f = f.flatten(2).mean(2) if f.ndim == 4 else f.flatten(1) if f.ndim > 1 else f[:, None]
    f = f if f.dtype in (torch.float32, torch.float64) else f.float()
    return torch.nn.functional.normalize(torch.where(f.isfinite(), f, 0), dim=1)
