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
from ..engine.read.examples import each_batch
from ..engine.read.items import Skipped
from ..errors import InputError, LayerError
from ..model.batching import BatchSize
from ..model.hooks import Acts
from ..objectives import MODEL_ENDS
from .distributions import Histograms, Moments, Rows
from .units import by_unit, unit_layers

T = TypeVar("T")
F = TypeVar("F")
BINS = 64
WAITING = 2**18  # values
Scored = Literal["peak", "mean"]
Counted = Literal["positions", "peak", "mean"]


@dataclass(frozen=True, eq=False)
class UnitStatistics:
    """Of each unit of one layer, (C,): over all positions of all examples without NaN or infinite values."""

    path: str
    examples: int  # seen
    known: Tensor  # (C,) of them without NaN or infinite values
    mean: Tensor
    std: Tensor
    low: Tensor  # NaN, as `high`, where nothing is known
    high: Tensor
    active: Tensor  # share of the examples in which it is above zero somewhere
    of: Counted  # what the histogram counts: every position, or each example's largest or mean value
    counts: Tensor  # (C, B)
    edges: Tensor  # (C, B + 1) powers of two apart: as narrow as B bins over all values can be
    interrupted: bool

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never above zero, or the same everywhere."""
        return (self.high <= 0) | (self.high == self.low)


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
    of: Counted = "positions",
    axis: int = 1,
    batch_size: BatchSize = "auto",
) -> tuple[UnitStatistics, ...]:
    """Moments and a histogram of every unit of some layers, in one pass.

    By default of all leaves with weights whose units are on `axis`.

    `data` is a tensor, a pair (x, y), a Dataset or any iterable of inputs, of any size. Units lie on `axis`, 1 as
    everywhere (for tokens (N, T, C) those are the tokens: pass -1 for the features); all others are positions.
    Ctrl-C ends the pass and gives what was seen. Raises DataError, InputError, LayerError.
    """
    if of not in ("positions", "peak", "mean"):
        raise InputError(f'of is "positions", "peak" or "mean"; got {of!r}')
    paths = unit_layers(box, layers, axis)
    surveys = {path: UnitSurvey(path, axis, of) for path in paths}

    def look(state: dict[str, Survey] | None, path: str, h: Tensor) -> Survey:
        return surveys[path].looked(state[path] if state else None, h)[0]

    def noted(state: dict[str, Survey] | None, found: dict[str, Survey], acts: Acts) -> dict[str, Survey]:
        return found

    states, interrupted = passed(box, data, paths, look, noted, batch_size=batch_size)
    return tuple(survey.result(states[path], box.dtype, interrupted) for path, survey in surveys.items())


def passed(
    box: Box,
    data: Any,
    paths: Sequence[str],
    look: Callable[[T | None, str, Tensor], F],
    noted: Callable[[T | None, dict[str, F], Acts], T],
    read: Sequence[str] = (),
    *,
    batch_size: BatchSize = "auto",
    skipped: Skipped | None = None,
) -> tuple[T, bool]:
    """A state that `look`s at each layer's activations while the model runs, batch after batch; and if Ctrl-C ended it.

    `noted` makes the next state of the last, of what the looks gave and of the activations `read`, and leaves the old
    one as it is: Ctrl-C may come at any time after the first batch.
    """
    state: T | None = None

    def work(x: Tensor) -> None:
        nonlocal state
        glance = _Glance(partial(look, state))
        edits = {path: partial(glance, path) for path in paths if path not in (*MODEL_ENDS, *read)}
        with box.isolated(grad=False):
            acts = box.forward(x, {*read, *(path for path in paths if path not in edits)}, edits)
        for path in paths:
            if path not in edits:
                glance(path, acts[path])
        state = noted(state, glance.given(paths), acts)

    interrupted = False
    try:
        each_batch(box, data, work, batch_size=batch_size, skipped=skipped)
    except KeyboardInterrupt:
        interrupted = True
    if state is None:
        raise KeyboardInterrupt
    return state, interrupted


class _Glance(Generic[F]):
    """Edits that change nothing: no activation is copied. What a look raises waits, for a model may swallow it."""

    def __init__(self, look: Callable[[str, Tensor], F]) -> None:
        self.look = look
        self.found: dict[str, F] = {}
        self.error: Exception | None = None

    def __call__(self, path: str, h: Tensor) -> Tensor:
        try:
            self.found[path] = self.look(path, h)
        except Exception as error:
            self.error = self.error or error
        return h

    def given(self, paths: Sequence[str]) -> dict[str, F]:
        if self.error is not None:
            raise self.error
        if missing := [path for path in paths if path not in self.found]:
            raise LayerError(f"{missing[0]!r} did not run for this input")
        return self.found


@dataclass(frozen=True)
class Survey:
    """One layer's running statistics. The last rows wait until they are many: counting a few takes as long."""

    examples: int
    moments: Moments
    histograms: Histograms
    waiting: tuple[Rows, ...] = ()


@dataclass(frozen=True)
class UnitSurvey:
    """How one layer is looked at."""

    path: str
    axis: int
    of: Counted
    bins: int = BINS

    def looked(self, state: Survey | None, h: Tensor) -> tuple[Survey, Tensor, Rows]:
        """The state with one batch more, the batch's activations (n, C, *P) and what they come to, row by row."""
        h = by_unit(h, self.axis, self.path)
        flat = h.flatten(2) if h.ndim > 2 else h[..., None]  # (n, C, P)
        rows, state = Rows.of(flat), state or self._start(flat)
        histograms = state.histograms
        if self.of == "positions":
            known = rows.known[..., None].expand_as(flat)
            histograms = histograms.updated(flat.transpose(0, 1).flatten(1), known.transpose(0, 1).flatten(1))
        state = Survey(state.examples + len(h), state.moments, histograms, (*state.waiting, rows))
        many = sum(r.mean.numel() for r in state.waiting) >= WAITING
        return self._counted(state) if many else state, h, rows

    def _start(self, flat: Tensor) -> Survey:
        units, positions = flat.shape[1:]
        return Survey(0, Moments.none(units, positions, flat), Histograms.none(units, self.bins, flat))

    def _counted(self, state: Survey) -> Survey:
        """The rows that waited are counted."""
        if not state.waiting:
            return state
        rows, histograms = Rows.joined(state.waiting), state.histograms
        if self.of != "positions":
            histograms = histograms.updated((rows.high if self.of == "peak" else rows.mean).T, rows.known.T)
        return Survey(state.examples, state.moments.updated(rows), histograms)

    def result(self, state: Survey, dtype: torch.dtype, interrupted: bool) -> UnitStatistics:
        state = self._counted(state)
        m, h = state.moments, state.histograms
        found = {"mean": m.mean, "std": m.std, "low": m.low, "high": m.high, "active": m.active / m.n}
        rows = {name: v.masked_fill(m.n == 0, torch.nan).to(dtype) for name, v in found.items()}
        return UnitStatistics(
            path=self.path, examples=state.examples, known=m.n.long(), **rows, of=self.of, counts=h.counts,
            edges=h.edges.to(dtype), interrupted=interrupted,
        )  # fmt: skip
