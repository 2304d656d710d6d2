"""Unit statistics: moments, histograms and dead units of a layer over data, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.channel_axes import units_to_axis_1
from ..engine.read.examples import for_each_batch
from ..engine.result_views import ResultTuple
from ..engine.results import ResultMixin
from ..errors import LayerError
from ..inputs.items import SkippedExamples
from ..model.hooks import Acts
from ..objectives import INPUT_OUTPUT_ADDRESSES
from ..parameters import BatchSize, Data, LayerAddresses, UnitAxis
from ..settings import check_settings
from .distributions import PerExampleUnitMoments, RunningUnitMoments, UnitHistograms
from .units import resolve_unit_layers

StateT = TypeVar("StateT")
ObservedT = TypeVar("ObservedT")
DEFAULT_N_BINS = 64
MAX_PENDING_PER_EXAMPLE_MOMENTS = 2**18  # of batches that are added to the moments together
UnitScoreKind = Literal["max", "mean"]
HistogramValueKind = Literal["positions", "max", "mean"]


@dataclass(frozen=True, eq=False, repr=False)
class UnitStatistics(ResultMixin):
    """Statistics of each unit of one layer, over all positions of all examples without NaN or infinite values."""

    returns: ClassVar[str] = "table"

    path: str  # the layer's address
    n_examples: int  # that were read
    n_finite: Tensor  # (C,) of them without NaN or infinite values
    mean: Tensor  # (C,)
    std: Tensor  # (C,)
    minimum: Tensor  # (C,) NaN, as the others, where no example is finite
    maximum: Tensor  # (C,)
    active_fraction: Tensor  # (C,) of the examples, in which the unit is above zero somewhere
    histogram_of: (
        HistogramValueKind  # what the histogram counts: every position, or each example's largest or mean value
    )
    counts: Tensor  # (C, B)
    edges: (
        Tensor  # (C, B + 1) bins have a power of two as their width, the smallest for which B of them hold all values
    )
    histogram_range: Tensor  # (C, 2) the smallest and the largest value that the histogram counts; NaN for none
    interrupted: bool  # by Ctrl-C: of the examples until then

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never above zero, or constant."""
        return (self.maximum <= 0) | (self.maximum == self.minimum)


@card(
    name="Unit statistics",
    source="dead units: Zeiler & Fergus 2014, arXiv:1311.2901, section 4.1; moments: Chan, Golub & LeVeque 1979",
    shows="The distribution of each unit's activation over the data, and which units are dead.",
    does_not_show="Whether an active unit is of any use, or whether other data would activate a dead one.",
    example=lambda method, box, x, y: method(box, x, resolve_unit_layers(box, None)[-1:]),
    order=4,
)
def statistics(
    box: Box,
    data: Data,
    layers: LayerAddresses = None,
    *,
    histogram_of: Annotated[HistogramValueKind, "Values of a unit that its histogram counts."] = "positions",
    axis: UnitAxis = 1,
    batch_size: BatchSize = "auto",
) -> tuple[UnitStatistics, ...]:
    """Moments and a histogram of every unit of some layers, in one pass over data of any size.

    To find dead units, thresholds, and the usual range of an activation. `top_examples` gives the same with the
    examples that excite each unit most.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors.
        layers: Addresses of the layers, as `box.layers` lists them. None: all modules without children that have
            weights and units on `axis`.
        histogram_of: Values of a unit that its histogram counts. "positions": all of them; "max" or "mean": the
            largest, or the mean, of each example.
        axis: Axis of the layer's units; its other axes, but for the batch, are positions. For tokens (N, T, C) give -1.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        One `UnitStatistics` per layer: `mean`, `std`, `minimum`, `maximum`, `active_fraction`, `dead`, each (C,), and
        `counts` (C, B), `edges` (C, B + 1), `histogram_range` (C, 2). Ctrl-C gives those of the examples until then.

    Raises:
        DataError: for data without examples.
        InputError: for inputs that do not fit the model, or settings out of their range.
        LayerError: for an unknown layer, or one without units.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(16)
        >>> (result,) = ub.activations.statistics(box, x, "relu1")
        >>> result.n_examples, tuple(result.mean.shape), bool((result.minimum >= 0).all())
        (16, (16,), True)

    Source:
        Dead units: Zeiler & Fergus 2014, arXiv:1311.2901, section 4.1. Moments: Chan, Golub & LeVeque 1979, "Updating
        Formulae and a Pairwise Algorithm for Computing Sample Variances", equation 2.1.
    """
    check_settings(statistics, locals())
    paths = resolve_unit_layers(box, layers, axis)
    accumulators = {path: UnitAccumulator(path, axis, histogram_of) for path in paths}

    def observe(state: dict[str, AccumulatorState] | None, path: str, h: Tensor) -> AccumulatorState:
        return accumulators[path].observe(state[path] if state else None, h)[0]

    def next_state(
        state: dict[str, AccumulatorState] | None, state_by_path: dict[str, AccumulatorState], acts: Acts
    ) -> dict[str, AccumulatorState]:
        return state_by_path

    states, interrupted = accumulate_over_data(box, data, paths, observe, next_state, batch_size=batch_size)
    return ResultTuple(
        accumulator.to_unit_statistics(states[path], box.dtype, interrupted)
        for path, accumulator in accumulators.items()
    )


def accumulate_over_data(
    box: Box,
    data: Any,
    paths: Sequence[str],
    observe: Callable[[StateT | None, str, Tensor], ObservedT],
    next_state: Callable[[StateT | None, dict[str, ObservedT], Acts], StateT],
    read_layers: Sequence[str] = (),
    *,
    batch_size: BatchSize = "auto",
    skipped: SkippedExamples | None = None,
) -> tuple[StateT, bool]:
    """The last state of a pass over data, and whether Ctrl-C ended it.

    `observe(state, path, activation)` is called for each layer while the model runs; `next_state(state, observed,
    activations of read_layers)` after each batch. It leaves the old state unchanged: Ctrl-C may come at any time.
    """
    state: StateT | None = None

    def observe_batch(x: Tensor) -> None:
        nonlocal state
        observer = _ActivationObserver(partial(observe, state))
        edits = {path: partial(observer, path) for path in paths if path not in (*INPUT_OUTPUT_ADDRESSES, *read_layers)}
        with box.isolated(grad=False):
            acts = box.forward(x, {*read_layers, *(path for path in paths if path not in edits)}, edits)
        for path in paths:
            if path not in edits:
                observer(path, acts[path])
        state = next_state(state, observer.observations_or_raise(paths), acts)

    interrupted = False
    try:
        for_each_batch(box, data, observe_batch, batch_size=batch_size, skipped=skipped)
    except KeyboardInterrupt:
        interrupted = True
    if state is None:
        raise KeyboardInterrupt
    return state, interrupted


class _ActivationObserver(Generic[ObservedT]):
    """Edits that change nothing: no activation is copied. An error is raised after the run: models may catch it."""

    def __init__(self, observe: Callable[[str, Tensor], ObservedT]) -> None:
        self.observe = observe
        self.results: dict[str, ObservedT] = {}
        self.error: Exception | None = None

    def __call__(self, path: str, h: Tensor) -> Tensor:
        try:
            self.results[path] = self.observe(path, h)
        except Exception as error:
            self.error = self.error or error
        return h

    def observations_or_raise(self, paths: Sequence[str]) -> dict[str, ObservedT]:
        if self.error is not None:
            raise self.error
        if missing := [path for path in paths if path not in self.results]:
            raise LayerError(f"{missing[0]!r} did not run for this input")
        return self.results


@dataclass(frozen=True)
class AccumulatorState:
    """One layer's running statistics. Small batches wait until they are many, and are counted together."""

    n_examples: int
    moments: RunningUnitMoments
    histograms: UnitHistograms
    pending: tuple[PerExampleUnitMoments, ...] = ()


@dataclass(frozen=True)
class UnitAccumulator:
    """What is computed of one layer."""

    path: str
    axis: int
    histogram_of: HistogramValueKind
    n_bins: int = DEFAULT_N_BINS

    def observe(
        self, state: AccumulatorState | None, h: Tensor
    ) -> tuple[AccumulatorState, Tensor, PerExampleUnitMoments]:
        """The state with one batch more, the batch's activations (n, C, *P), and its moments per example."""
        h = units_to_axis_1(h, self.axis, self.path)
        flat = h.flatten(2) if h.ndim > 2 else h[..., None]  # (n, C, P)
        rows, state = PerExampleUnitMoments.from_values(flat), state or self._initial_state(flat)
        histograms = state.histograms
        if self.histogram_of == "positions":
            is_finite = rows.is_finite[..., None].expand_as(flat)
            histograms = histograms.update(flat.transpose(0, 1).flatten(1), is_finite.transpose(0, 1).flatten(1))
        state = AccumulatorState(state.n_examples + len(h), state.moments, histograms, (*state.pending, rows))
        is_full = sum(r.mean.numel() for r in state.pending) >= MAX_PENDING_PER_EXAMPLE_MOMENTS
        return self._merge_pending(state) if is_full else state, h, rows

    def _initial_state(self, flat: Tensor) -> AccumulatorState:
        units, positions = flat.shape[1:]
        return AccumulatorState(
            0, RunningUnitMoments.empty(units, positions, flat), UnitHistograms.empty(units, self.n_bins, flat)
        )

    def _merge_pending(self, state: AccumulatorState) -> AccumulatorState:
        """The state with the pending batches counted."""
        if not state.pending:
            return state
        rows, histograms = PerExampleUnitMoments.concat(state.pending), state.histograms
        if self.histogram_of != "positions":
            histograms = histograms.update(
                (rows.maximum if self.histogram_of == "max" else rows.mean).T, rows.is_finite.T
            )
        return AccumulatorState(state.n_examples, state.moments.update(rows), histograms)

    def to_unit_statistics(self, state: AccumulatorState, dtype: torch.dtype, interrupted: bool) -> UnitStatistics:
        state = self._merge_pending(state)
        moments, h = state.moments, state.histograms
        values = {
            "mean": moments.mean,
            "std": moments.std,
            "minimum": moments.minimum,
            "maximum": moments.maximum,
            "active_fraction": moments.n_active / moments.n_examples,
        }
        rows = {name: v.masked_fill(moments.n_examples == 0, torch.nan).to(dtype) for name, v in values.items()}
        return UnitStatistics(
            path=self.path,
            n_examples=state.n_examples,
            n_finite=moments.n_examples.long(),
            **rows,
            histogram_of=self.histogram_of,
            counts=h.counts,
            edges=h.edges.to(dtype),
            histogram_range=torch.stack([h.minimum, h.maximum], 1)
            .masked_fill((h.minimum > h.maximum)[:, None], torch.nan)
            .to(dtype),
            interrupted=interrupted,
        )
