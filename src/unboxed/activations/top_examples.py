"""Top examples: the examples that excite each unit most, in one pass over data of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..box import Box
from ..cards import card
from ..engine.read.edits import check_units
from ..engine.read.examples import fetch_inputs
from ..engine.result_views import ResultTuple
from ..engine.results import ResultMixin
from ..inputs.base import Inputs
from ..inputs.examples import is_single_pass_data, open_data
from ..inputs.items import SkippedExamples
from ..model.hooks import Acts
from ..parameters import BatchSize, Data, LayerAddresses, NExamplesToFind, UnitAxis
from ..settings import ValueRole, check_settings
from .distributions import accumulator_dtype
from .statistics import AccumulatorState, UnitAccumulator, UnitScoreKind, UnitStatistics, accumulate_over_data
from .units import argmax_positions, resolve_unit_layers, unravel_positions


@dataclass(frozen=True, eq=False, repr=False)
class TopExamples(ResultMixin):
    """The k examples that excite each unit of one layer most, best first; of equals the earlier one.

    A `mean_distance` near `baseline_distance` means that a unit responds to many different things; one far below, to
    one kind of thing.
    """

    returns: ClassVar[str] = "activations"

    path: str  # the layer's address
    ranked_by: UnitScoreKind
    example_index: Tensor  # (C, k) in the data
    value: Tensor  # (C, k) NaN where fewer examples have a finite value
    position: Tensor  # (C, k, P) of the largest value, on the layer's other axes
    mean_distance: Tensor  # (C,) mean pairwise cosine distance of a unit's top examples; NaN for fewer than two
    baseline_distance: float  # the same of all examples of the data
    features: str | None  # address of the layer in which distances are measured
    statistics: UnitStatistics = field(repr=False)
    inputs: Mapping[int, Tensor] = field(default_factory=dict)  # the top examples, of data that can be read only once

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never above zero, or constant."""
        return self.statistics.dead

    def fetch_examples(
        self, data: Any, units: Sequence[int] | int | None = None, like: Inputs | None = None
    ) -> Tensor:  # fmt: skip
        """The top examples (U, k, ...) of some units, from the data of the pass. Raises DataError, InputError.

        `like` is what images become where the data hold files, Pillow images or arrays: `box.inputs`.
        """
        index = self.example_index[check_units(units, len(self.example_index), self.path)]
        flat_index = index.flatten().tolist()
        unique_index = {i: row for row, i in enumerate(sorted(set(flat_index)))}
        examples = (
            torch.stack([self.inputs[i] for i in unique_index])
            if self.inputs
            else fetch_inputs(data, list(unique_index), like)
        )
        inverse = torch.tensor([unique_index[i] for i in flat_index], device=examples.device).view(index.shape)
        return examples[inverse]


@card(
    name="Top examples",
    aliases=("top_activating_examples",),
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 4, figure 2",
    shows="Which real examples, and which part of each, excite a unit most.",
    does_not_show="Which common property the unit responds to, and what else excites it less.",
    example=lambda method, box, x, y: method(box, x, resolve_unit_layers(box, None)[-1:], k=2),
    order=3,
)
def top_examples(
    box: Box,
    data: Data,
    layers: LayerAddresses = None,
    k: NExamplesToFind = 9,
    *,
    rank_by: Annotated[UnitScoreKind, "Value of a unit by which examples are ranked."] = "max",
    features: Annotated[
        str | None, ValueRole("layer"), "Address of the layer in which distances are measured."
    ] = "auto",
    axis: UnitAxis = 1,
    batch_size: BatchSize = "auto",
) -> tuple[TopExamples, ...]:
    """The k examples that excite each unit of some layers most, with the units' statistics, in one pass.

    To see on real data what units respond to; `projections` and `receptive_field` show which part of an example excited
    a unit, `ub.synthesis.channels` what would excite it most. Data of any size are read once.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors.
        layers: Addresses of the layers, as `box.layers` lists them. None: all modules without children that have
            weights and units on `axis`.
        k: Number of examples to find. For each unit.
        rank_by: Value of a unit by which examples are ranked. "max": the largest over positions; "mean".
        features: Address of the layer in which distances are measured. "auto": the input of the last layer with
            weights; None measures none.
        axis: Axis of the layer's units; its other axes, but for the batch, are positions. For tokens (N, T, C) give -1.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        One `TopExamples` per layer: `example_index` (C, k), `value` (C, k), `position` (C, k, P), `statistics`,
        `fetch_examples(data)`. Ctrl-C gives those of the examples until then.

    Raises:
        DataError: for data without examples.
        InputError: for inputs that do not fit the model, or settings out of their range.
        LayerError: for an unknown layer, or one without units.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(16)
        >>> (result,) = ub.activations.top_examples(box, x, "relu2", k=3)
        >>> tuple(result.value.shape), tuple(result.fetch_examples(x, [0, 1]).shape)
        ((32, 3), (2, 3, 1, 28, 28))

    Source:
        Zeiler & Fergus 2014, arXiv:1311.2901, section 4, figure 2.
    """
    check_settings(top_examples, locals())
    paths = resolve_unit_layers(box, layers, axis)
    features = _last_weighted_layer_input(box) if features == "auto" else features
    if features is not None:
        (features,) = resolve_unit_layers(box, [features])
    data = open_data(data, box.inputs)
    ranking = _TopExamplesAccumulator(
        {path: UnitAccumulator(path, axis, rank_by) for path in paths}, k, rank_by, features, is_single_pass_data(data)
    )
    read = [features] if features else []
    skipped = SkippedExamples()
    state, interrupted = accumulate_over_data(
        box, data, paths, ranking.observe, ranking.next_state, read, batch_size=batch_size, skipped=skipped
    )
    results = ranking.top_examples_by_layer(state, box.dtype, interrupted)
    if not skipped.rows:
        return results
    return ResultTuple(replace(top, example_index=skipped.dataset_rows(top.example_index)) for top in results)


def _last_weighted_layer_input(box: Box) -> str:
    """The input of the last layer with weights."""
    embedding_types = (nn.Embedding, nn.EmbeddingBag)  # their inputs are indices, not features
    rows = [row for row in box.layers.leaves if row.runs_per_example and row.n_parameters]
    rows = [row for row in rows if not isinstance(box.modules[row.path], embedding_types)]
    if not rows:
        return "logits"
    last = rows[-1]
    return f"{last.path}:input" + (f"#{last.n_calls - 1}" if last.n_calls > 1 else "")


@dataclass(frozen=True)
class _TopKPerUnit:
    """The top examples of each unit so far, best first: at most k columns."""

    value: Tensor  # (C, w)
    index: Tensor  # (C, w)
    flat_position: Tensor  # (C, w)
    feature: Tensor  # (C, w, D) of length 1

    def merge_batch(self, new: _TopKPerUnit, units: Tensor | None, k: int) -> _TopKPerUnit:
        """With the top examples of one batch more, of some units or of all."""
        if units is None:
            return self._merge_top_k(new, k)
        if not len(units):
            return self
        merged = _TopKPerUnit(*(t[units] for t in self._all_tensors))._merge_top_k(new, k)
        return _TopKPerUnit(
            *(t.index_copy(0, units, n) for t, n in zip(self._all_tensors, merged._all_tensors, strict=True))
        )

    def units_with_new_top_examples(self, scores: Tensor, k: int) -> tuple[Tensor | None, int]:
        """The units that have new top examples, and how many at most.

        None for all, and on an accelerator, where this would wait for the device.
        """
        if scores.device.type != "cpu" or self.value.shape[1] < k:
            return None, k
        worst = self.value[:, -1]
        n_better = (scores > worst).sum(0)
        n_better = n_better.masked_fill(worst.isnan(), k)
        return n_better.nonzero()[:, 0], min(k, int(n_better.max()))

    def _merge_top_k(self, new: _TopKPerUnit, k: int) -> _TopKPerUnit:
        joined = [torch.cat(pair, 1) for pair in zip(self._all_tensors, new._all_tensors, strict=True)]
        order = _top_indices(joined[0], k)
        units = torch.arange(len(order), device=order.device)[:, None]
        return _TopKPerUnit(*(t[units, order] for t in joined))

    @property
    def _all_tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.index, self.flat_position, self.feature

    def mean_distance(self) -> Tensor:
        """The mean pairwise cosine distance, (C,)."""
        is_known = ~self.value.isnan()
        f = self.feature.to(accumulator_dtype(self.value)) * is_known[..., None]
        return _mean_pairwise_cosine_distance(f.sum(1), f.square().sum((1, 2)), is_known.sum(1))


def _top_indices(scores: Tensor, k: int) -> Tensor:
    """Indices (C, w) of the k largest per row, NaN last, the earlier of equals first, as `topk` does not promise."""
    ranked = torch.where(scores.isnan(), -torch.inf, scores)
    return ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _mean_pairwise_cosine_distance(vector_sum: Tensor, squared_norm_sum: Tensor, n: Tensor) -> Tensor:
    """One minus the mean of u_i . u_j over all pairs of n unit vectors, by their sum (..., D) and squared norms."""
    n_pairs = n * (n - 1)
    return 1 - (vector_sum.square().sum(-1) - squared_norm_sum) / n_pairs.to(vector_sum).masked_fill(
        n_pairs == 0, torch.nan
    )


@dataclass(frozen=True)
class _TopExamplesState:
    """The state of a pass after some examples."""

    n_examples: int
    layers: dict[
        str, tuple[AccumulatorState, _TopKPerUnit, tuple[int, ...]]
    ]  # statistics, top examples, shape of the positions
    feature_sum: Tensor  # (D,) the sum of the features
    squared_norm_sum: Tensor  # () of their squared lengths, which are 1, or 0 where all of one is 0
    inputs: Mapping[int, Tensor]


@dataclass(frozen=True)
class _BatchTopExamples:
    """The top examples of one batch at one layer, of all units or of those that have new ones."""

    accumulated: AccumulatorState
    units: Tensor | None
    value: Tensor  # (c, w)
    batch_row: Tensor  # (c, w) rows of the batch
    flat_position: Tensor  # (c, w)
    positions: tuple[int, ...]


@dataclass(frozen=True)
class _TopExamplesAccumulator:
    accumulators: dict[str, UnitAccumulator]
    k: int
    ranked_by: UnitScoreKind
    features: str | None
    keeps_inputs: bool  # the inputs of the top examples

    def observe(self, state: _TopExamplesState | None, path: str, h: Tensor) -> _BatchTopExamples:
        state_before, top, _ = state.layers[path] if state else (None, None, None)
        accumulated, h, rows = self.accumulators[path].observe(state_before, h)
        scores = rows.maximum if self.ranked_by == "max" else rows.mean  # (n, C)
        units, n_new = top.units_with_new_top_examples(scores, self.k) if top else (None, self.k)
        unit_index = torch.arange(h.shape[1], device=h.device) if units is None else units
        unit_scores = scores.T[unit_index]  # (c, n)
        batch_row = _top_indices(unit_scores, n_new)
        flat_position = argmax_positions(h[batch_row, unit_index[:, None]])
        return _BatchTopExamples(
            accumulated, units, unit_scores.gather(1, batch_row), batch_row, flat_position, tuple(h.shape[2:])
        )

    def next_state(
        self, state: _TopExamplesState | None, batch_tops: dict[str, _BatchTopExamples], acts: Acts
    ) -> _TopExamplesState:
        """With one batch more."""
        x, start = acts["input"], state.n_examples if state else 0
        f = _pooled_unit_vectors(acts[self.features]) if self.features else x.new_empty(len(x), 0)
        layers = {}
        for path, batch_top in batch_tops.items():
            top = _TopKPerUnit(
                batch_top.value, batch_top.batch_row + start, batch_top.flat_position, f[batch_top.batch_row]
            )
            old_top = state.layers[path][1] if state else None
            layers[path] = (
                batch_top.accumulated,
                old_top.merge_batch(top, batch_top.units, self.k) if old_top else top,
                batch_top.positions,
            )
        total, squares = f.sum(0, dtype=accumulator_dtype(f)), f.square().sum(dtype=accumulator_dtype(f))
        if state:
            total, squares = state.feature_sum + total, state.squared_norm_sum + squares
        inputs = _inputs_of_top_examples(state, [top for _, top, _ in layers.values()], x) if self.keeps_inputs else {}
        return _TopExamplesState(start + len(x), layers, total, squares, inputs)

    def top_examples_by_layer(
        self, state: _TopExamplesState, dtype: torch.dtype, interrupted: bool
    ) -> tuple[TopExamples, ...]:
        n = torch.tensor(state.n_examples, device=state.feature_sum.device)
        distance = _mean_pairwise_cosine_distance(state.feature_sum, state.squared_norm_sum, n)
        baseline_distance = float(distance) if self.features else math.nan
        return ResultTuple(
            self._layer_top_examples(path, state, baseline_distance, dtype, interrupted) for path in self.accumulators
        )

    def _layer_top_examples(
        self, path: str, state: _TopExamplesState, baseline_distance: float, dtype: torch.dtype, interrupted: bool
    ) -> TopExamples:
        accumulated, top, positions = state.layers[path]
        value = top.value.to(dtype)
        return TopExamples(
            path=path,
            ranked_by=self.ranked_by,
            example_index=top.index,
            value=value,
            position=unravel_positions(top.flat_position, positions),
            mean_distance=top.mean_distance().to(dtype) if self.features else torch.full_like(value[:, 0], math.nan),
            baseline_distance=baseline_distance,
            features=self.features,
            statistics=self.accumulators[path].to_unit_statistics(accumulated, dtype, interrupted),
            inputs=state.inputs,
        )


def _inputs_of_top_examples(
    state: _TopExamplesState | None, tops: Sequence[_TopKPerUnit], x: Tensor
) -> dict[int, Tensor]:
    """The inputs of the top examples so far, and no others."""
    n, old_inputs = (state.n_examples, state.inputs) if state else (0, {})
    needed = {i for top in tops for i in top.index.flatten().tolist()}
    return {i: old_inputs[i] if i < n else x[i - n].clone() for i in needed}


def _pooled_unit_vectors(features: Tensor) -> Tensor:
    """Features (n, ...) as unit vectors (n, D), means over positions; zero where they are not finite or all 0."""
    features = (
        features.flatten(2).mean(2)
        if features.ndim == 4
        else features.flatten(1)
        if features.ndim > 1
        else features[:, None]
    )
    features = features if features.dtype in (torch.float32, torch.float64) else features.float()
    return torch.nn.functional.normalize(torch.where(features.isfinite(), features, 0), dim=1)
