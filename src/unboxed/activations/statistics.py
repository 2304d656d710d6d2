"""What values the units of a layer take over data: moments, histograms, dead units, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.examples import for_each_batch
from ..engine.read.items import SkippedExamples
from ..errors import InputError, LayerError
from ..model.batching import BatchSize
from ..model.hooks import Acts
from ..objectives import MODEL_ENDS
from .distributions import BatchMoments, Histograms, Moments
from .units import unit_layers, units_to_axis_1

T = TypeVar("T")
F = TypeVar("F")
DEFAULT_BINS = 64
MAX_PENDING_VALUES = 2**18  # values
ScoreKind = Literal["peak", "mean"]
HistogramKind = Literal["positions", "peak", "mean"]


@dataclass(frozen=True, eq=False)
class UnitStatistics:
    """Of each unit of one layer, (C,): over all positions of all examples without NaN or infinite values."""

    path: str
    n_examples: int  # seen
    n_finite: Tensor  # (C,) of them without NaN or infinite values
    mean: Tensor
    std: Tensor
    minimum: Tensor  # NaN, as `high`, where nothing is known
    maximum: Tensor
    active_share: Tensor  # share of the examples in which it is above zero somewhere
    histogram_of: HistogramKind  # what the histogram counts: every position, or each example's largest or mean value
    counts: Tensor  # (C, B)
    edges: Tensor  # (C, B + 1) powers of two apart: as narrow as B bins over all values can be
    interrupted: bool

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never above zero, or the same everywhere."""
        return (self.maximum <= 0) | (self.maximum == self.minimum)


@card(
    name="Unit statistics",
    source="dead units: Zeiler & Fergus 2014, arXiv:1311.2901, section 4.1; moments: Chan, Golub & LeVeque 1979",
    shows="Which values each unit takes over the data, and which units never answer to any of it.",
    does_not_show="Whether a unit that answers is of any use, or a dead one would answer to other data.",
    example=lambda method, box, x, y: method(box, x, unit_layers(box, None)[-1:]),
)
def statistics(
    box: Box,
    data: Any,
    layers: Sequence[str] | str | None = None,
    *,
    histogram_of: HistogramKind = "positions",
    axis: int = 1,
    batch_size: BatchSize = "auto",
) -> tuple[UnitStatistics, ...]:
    """Moments and a histogram of every unit of some layers, in one pass.

    By default of all leaves with weights whose units are on `axis`.

    `data` is a tensor, a pair (x, y), a Dataset or any iterable of inputs, of any size. Units lie on `axis`, 1 as
    everywhere (for tokens (N, T, C) those are the tokens: pass -1 for the features); all others are positions.
    Ctrl-C ends the pass and gives what was seen. Raises DataError, InputError, LayerError.
    """
    if histogram_of not in ("positions", "peak", "mean"):
        raise InputError(f'histogram_of must be "positions", "peak" or "mean"; got {histogram_of!r}')
    paths = unit_layers(box, layers, axis)
    surveys = {path: UnitSurvey(path, axis, histogram_of) for path in paths}

    def observe(state: dict[str, SurveyState] | None, path: str, h: Tensor) -> SurveyState:
        return surveys[path].observe(state[path] if state else None, h)[0]

    def next_state(
        state: dict[str, SurveyState] | None, surveys_by_path: dict[str, SurveyState], acts: Acts
    ) -> dict[str, SurveyState]:
        return surveys_by_path

    states, interrupted = run_pass(box, data, paths, observe, next_state, batch_size=batch_size)
    return tuple(survey.to_statistics(states[path], box.dtype, interrupted) for path, survey in surveys.items())


def run_pass(
    box: Box,
    data: Any,
    paths: Sequence[str],
    observe: Callable[[T | None, str, Tensor], F],
    next_state: Callable[[T | None, dict[str, F], Acts], T],
    read_layers: Sequence[str] = (),
    *,
    batch_size: BatchSize = "auto",
    skipped: SkippedExamples | None = None,
) -> tuple[T, bool]:
    """A state that `look`s at each layer's activations while the model runs, batch after batch; and if Ctrl-C ended it.

    `noted` makes the next state of the last, of what the looks gave and of the activations `read`, and leaves the old
    one as it is: Ctrl-C may come at any time after the first batch.
    """
    state: T | None = None

    def observe_batch(x: Tensor) -> None:
        nonlocal state
        observer = _ActivationObserver(partial(observe, state))
        edits = {path: partial(observer, path) for path in paths if path not in (*MODEL_ENDS, *read_layers)}
        with box.isolated(grad=False):
            acts = box.forward(x, {*read_layers, *(path for path in paths if path not in edits)}, edits)
        for path in paths:
            if path not in edits:
                observer(path, acts[path])
        state = next_state(state, observer.collected(paths), acts)

    interrupted = False
    try:
        for_each_batch(box, data, observe_batch, batch_size=batch_size, skipped=skipped)
    except KeyboardInterrupt:
        interrupted = True
    if state is None:
        raise KeyboardInterrupt
    return state, interrupted


class _ActivationObserver(Generic[F]):
    """Edits that change nothing: no activation is copied. What a look raises waits, for a model may swallow it."""

    def __init__(self, observe: Callable[[str, Tensor], F]) -> None:
        self.observe = observe
        self.results: dict[str, F] = {}
        self.error: Exception | None = None

    def __call__(self, path: str, h: Tensor) -> Tensor:
        try:
            self.results[path] = self.observe(path, h)
        except Exception as error:
            self.error = self.error or error
        return h

    def collected(self, paths: Sequence[str]) -> dict[str, F]:
        if self.error is not None:
            raise self.error
        if missing := [path for path in paths if path not in self.results]:
            raise LayerError(f"{missing[0]!r} did not run for this input")
        return self.results


@dataclass(frozen=True)
class SurveyState:
    """One layer's running statistics. The last rows wait until they are many: counting a few takes as long."""

    n_examples: int
    moments: Moments
    histograms: Histograms
    pending: tuple[BatchMoments, ...] = ()


@dataclass(frozen=True)
class UnitSurvey:
    """How one layer is looked at."""

    path: str
    axis: int
    histogram_of: HistogramKind
    n_bins: int = DEFAULT_BINS

    def observe(self, state: SurveyState | None, h: Tensor) -> tuple[SurveyState, Tensor, BatchMoments]:
        """The state with one batch more, the batch's activations (n, C, *P) and what they come to, row by row."""
        h = units_to_axis_1(h, self.axis, self.path)
        flat = h.flatten(2) if h.ndim > 2 else h[..., None]  # (n, C, P)
        rows, state = BatchMoments.from_values(flat), state or self._empty_state(flat)
        histograms = state.histograms
        if self.histogram_of == "positions":
            is_finite = rows.is_finite[..., None].expand_as(flat)
            histograms = histograms.update(flat.transpose(0, 1).flatten(1), is_finite.transpose(0, 1).flatten(1))
        state = SurveyState(state.n_examples + len(h), state.moments, histograms, (*state.pending, rows))
        is_full = sum(r.mean.numel() for r in state.pending) >= MAX_PENDING_VALUES
        return self._count_pending(state) if is_full else state, h, rows

    def _empty_state(self, flat: Tensor) -> SurveyState:
        units, positions = flat.shape[1:]
        return SurveyState(0, Moments.empty(units, positions, flat), Histograms.empty(units, self.n_bins, flat))

    def _count_pending(self, state: SurveyState) -> SurveyState:
        """The rows that waited are counted."""
        if not state.pending:
            return state
        rows, histograms = BatchMoments.concat(state.pending), state.histograms
        if self.histogram_of != "positions":
            histograms = histograms.update(
                (rows.maximum if self.histogram_of == "peak" else rows.mean).T, rows.is_finite.T
            )
        return SurveyState(state.n_examples, state.moments.update(rows), histograms)

    def to_statistics(self, state: SurveyState, dtype: torch.dtype, interrupted: bool) -> UnitStatistics:
        state = self._count_pending(state)
        moments, h = state.moments, state.histograms
        values = {
            "mean": moments.mean,
            "std": moments.std,
            "minimum": moments.minimum,
            "maximum": moments.maximum,
            "active_share": moments.n_active / moments.n_examples,
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
            interrupted=interrupted,
        )
