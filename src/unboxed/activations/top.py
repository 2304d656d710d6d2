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
from ..engine.read.edits import chosen
from ..engine.read.examples import pick
from ..engine.read.items import Skipped
from ..engine.read.packing import packed, read_once
from ..errors import InputError
from ..model.batching import BatchSize
from ..model.hooks import Acts
from ..validation import check_int
from .distributions import wide
from .statistics import Scored, Survey, UnitStatistics, UnitSurvey, passed
from .units import peaks, unit_layers, unraveled


@dataclass(frozen=True, eq=False)
class TopExamples:
    """The k examples that excite each unit of one layer most, best first; of equals the earlier one.

    `spread` is the mean cosine distance between a unit's top examples in the features; near `usual`, that between any
    two examples of the data, the unit answers to many things; far below, to one.
    """

    path: str
    by: Scored
    index: Tensor  # (C, k) places in the data
    value: Tensor  # (C, k); NaN, where fewer examples have a number
    position: Tensor  # (C, k, P) of the largest value, on the layer's axes beside the units'
    spread: Tensor  # (C,); NaN for fewer than two examples
    usual: float
    features: str | None  # the layer that the spread is measured in
    statistics: UnitStatistics
    inputs: Mapping[int, Tensor] = field(default_factory=dict)  # the top examples, of data that can be read only once

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never above zero, or the same everywhere."""
        return self.statistics.dead

    def fetch(self, data: Any, units: Sequence[int] | int | None = None) -> Tensor:
        """The top examples (U, k, ...) of some units out of the data passed over. Raises DataError, InputError."""
        index = self.index[chosen(units, len(self.index), self.path)]
        places = index.flatten().tolist()
        once = {i: place for place, i in enumerate(sorted(set(places)))}
        found = torch.stack([self.inputs[i] for i in once]) if self.inputs else pick(data, list(once))
        back = torch.tensor([once[i] for i in places], device=found.device).view(index.shape)
        return found[back]


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
    by: Scored = "peak",
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
    features = _penultimate(box) if features == "auto" else features
    if features is not None:
        (features,) = unit_layers(box, [features])
    data = packed(box, data)
    plan = _Plan({path: UnitSurvey(path, axis, by) for path in paths}, k, by, features, read_once(data))
    read = [features] if features else []
    skipped = Skipped()
    seen, interrupted = passed(box, data, paths, plan.look, plan.noted, read, batch_size=batch_size, skipped=skipped)
    found = plan.results(seen, box.dtype, interrupted)
    return tuple(replace(top, index=skipped.places(top.index)) for top in found) if skipped.rows else found


def _penultimate(box: Box) -> str:
    """What the last layer with weights receives."""
    tables = (nn.Embedding, nn.EmbeddingBag)  # what they receive are numbers of rows, no features
    rows = [row for row in box.layers.leaves if row.has_input and row.has_batch_axis and row.n_parameters]
    rows = [row for row in rows if not isinstance(box.modules[row.path], tables)]
    if not rows:
        return "logits"
    last = rows[-1]
    return f"{last.path}:input" + (f"#{last.n_calls - 1}" if last.n_calls > 1 else "")


@dataclass(frozen=True)
class _Top:
    """The best so far, best first: at most k columns."""

    value: Tensor  # (C, w)
    index: Tensor  # (C, w)
    place: Tensor  # (C, w)
    feature: Tensor  # (C, w, D) of length 1

    def updated(self, new: _Top, units: Tensor | None, k: int) -> _Top:
        """With the best of one batch more, of some units or of all."""
        if units is None:
            return self._merged(new, k)
        if not len(units):
            return self
        mine = _Top(*(t[units] for t in self._parts))._merged(new, k)
        return _Top(*(t.index_copy(0, units, n) for t, n in zip(self._parts, mine._parts, strict=True)))

    def changed(self, scores: Tensor, k: int) -> tuple[Tensor | None, int]:
        """The units that have new top examples, and how many at most.

        None for all, and on an accelerator, where asking means waiting.
        """
        if scores.device.type != "cpu" or self.value.shape[1] < k:
            return None, k
        worst = self.value[:, -1]
        better = (scores > worst).sum(0)
        better = better.masked_fill(worst.isnan(), k)
        return better.nonzero()[:, 0], min(k, int(better.max()))

    def _merged(self, new: _Top, k: int) -> _Top:
        both = [torch.cat(pair, 1) for pair in zip(self._parts, new._parts, strict=True)]
        order = _best(both[0], k)
        units = torch.arange(len(order), device=order.device)[:, None]
        return _Top(*(t[units, order] for t in both))

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.index, self.place, self.feature

    def spread(self) -> Tensor:
        """The mean cosine distance between each two, (C,)."""
        known = ~self.value.isnan()
        f = self.feature.to(wide(self.value)) * known[..., None]
        return _distance(f.sum(1), f.square().sum((1, 2)), known.sum(1))


def _best(scores: Tensor, k: int) -> Tensor:
    """The places (C, w) of the k largest of each row, NaN last, the earlier of equals first."""
    ranked = torch.where(scores.isnan(), -torch.inf, scores)
    return ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _distance(total: Tensor, squares: Tensor, n: Tensor) -> Tensor:
    """One minus the mean of u_i . u_j over all pairs of n unit vectors, from their sum (..., D) and sum of squares."""
    pairs = n * (n - 1)
    return 1 - (total.square().sum(-1) - squares) / pairs.to(total).masked_fill(pairs == 0, torch.nan)


@dataclass(frozen=True)
class _Seen:
    """What is kept of the examples so far."""

    n: int
    layers: dict[str, tuple[Survey, _Top, tuple[int, ...]]]  # statistics, best examples, the shape of the positions
    total: Tensor  # (D,) the sum of the features
    squares: Tensor  # () of their squared lengths, which are 1, or 0 where all of one is 0
    inputs: Mapping[int, Tensor]


@dataclass(frozen=True)
class _Best:
    """What one look at a layer gave: the best of this batch, of all units or of those that have new ones."""

    survey: Survey
    units: Tensor | None
    value: Tensor  # (c, w)
    row: Tensor  # (c, w) of the batch
    place: Tensor  # (c, w)
    positions: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    surveys: dict[str, UnitSurvey]
    k: int
    by: Scored
    features: str | None
    keeps: bool  # the inputs of the top examples

    def look(self, seen: _Seen | None, path: str, h: Tensor) -> _Best:
        before, top, _ = seen.layers[path] if seen else (None, None, None)
        survey, h, rows = self.surveys[path].looked(before, h)
        scores = rows.high if self.by == "peak" else rows.mean  # (n, C)
        units, most = top.changed(scores, self.k) if top else (None, self.k)
        which = torch.arange(h.shape[1], device=h.device) if units is None else units
        mine = scores.T[which]  # (c, n)
        row = _best(mine, most)
        place = peaks(h[row, which[:, None]])
        return _Best(survey, units, mine.gather(1, row), row, place, tuple(h.shape[2:]))

    def noted(self, seen: _Seen | None, found: dict[str, _Best], acts: Acts) -> _Seen:
        """With one batch more."""
        x, start = acts["input"], seen.n if seen else 0
        f = _units(acts[self.features]) if self.features else x.new_empty(len(x), 0)
        layers = {}
        for path, best in found.items():
            top = _Top(best.value, best.row + start, best.place, f[best.row])
            old = seen.layers[path][1] if seen else None
            layers[path] = best.survey, old.updated(top, best.units, self.k) if old else top, best.positions
        total, squares = f.sum(0, dtype=wide(f)), f.square().sum(dtype=wide(f))
        if seen:
            total, squares = seen.total + total, seen.squares + squares
        inputs = _kept(seen, [top for _, top, _ in layers.values()], x) if self.keeps else {}
        return _Seen(start + len(x), layers, total, squares, inputs)

    def results(self, seen: _Seen, dtype: torch.dtype, interrupted: bool) -> tuple[TopExamples, ...]:
        n = torch.tensor(seen.n, device=seen.total.device)
        usual = float(_distance(seen.total, seen.squares, n)) if self.features else math.nan
        found = []
        for path, plan in self.surveys.items():
            survey, top, positions = seen.layers[path]
            place, value = unraveled(top.place, positions), top.value.to(dtype)
            spread = top.spread().to(dtype) if self.features else torch.full_like(value[:, 0], math.nan)
            done = plan.result(survey, dtype, interrupted)
            found.append(
                TopExamples(
                    plan.path, self.by, top.index, value, place, spread, usual, self.features, done, seen.inputs
                )
            )
        return tuple(found)


def _kept(seen: _Seen | None, tops: Sequence[_Top], x: Tensor) -> dict[int, Tensor]:
    """The inputs of the top examples so far, and no others."""
    n, old = (seen.n, seen.inputs) if seen else (0, {})
    live = {i for top in tops for i in top.index.flatten().tolist()}
    return {i: old[i] if i < n else x[i - n].clone() for i in live}


def _units(f: Tensor) -> Tensor:
    """Features (n, ...) as vectors of length 1 (n, D), means over positions; of what is not finite or all 0, zeros."""
    f = f.flatten(2).mean(2) if f.ndim == 4 else f.flatten(1) if f.ndim > 1 else f[:, None]
    f = f if f.dtype in (torch.float32, torch.float64) else f.float()
    return torch.nn.functional.normalize(torch.where(f.isfinite(), f, 0), dim=1)
