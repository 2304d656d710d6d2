"""The table beside a dictionary: its twin with frozen directions, NMF and PCA of the same size, and the mean alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from ..engine.intervals import Interval, bootstrap_mean_interval
from ..engine.linear.factors import Factors, fit_factors
from ..engine.linear.principal import PrincipalBasis
from ..engine.linear.sparse_autoencoder import SparseAutoencoder, matched_cosines
from ..engine.read.unit_rows import UnitRowLayout
from ..engine.results import ResultMixin
from ..engine.rows import evenly_spaced_indices, row_chunks
from ._rebuild import EvaluatedExamples, Rebuild, Rebuilt, mean_rebuild

DICTIONARY, FROZEN, NMF, PCA, MEAN = "dictionary", "frozen directions", "NMF", "PCA", "mean"
MAX_NMF_ROWS = 2000  # that NMF is fitted to
MAX_ROWS_FOR_DEAD_TEST = 10_000  # fitted rows, evenly spread, none of which has a dead direction


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryScore(ResultMixin):
    """How well one dictionary rebuilds held-out activations, and the model's answers.

    Attributes:
        name: "dictionary", "frozen directions" (its twin), "NMF", "PCA" or "mean" (no direction at all).
        n_features: Number of directions.
        explained_variance: Share of the variance of held-out activations, with its interval over examples and seeds.
        explained_at_k: The same with only the k largest amounts of each row.
        active: Directions per row, on average.
        dead: Share of the directions that none of 10,000 fitted rows has.
        stability: Mean cosine of directions that are matched between seeds; None where nothing is drawn.
        rebuilt: What is left of the model's answers with the layer rebuilt.
    """

    name: str
    n_features: int
    explained_variance: Interval
    explained_at_k: float
    active: float
    dead: float
    stability: float | None
    rebuilt: Rebuilt


@dataclass(frozen=True, eq=False)
class _Coder:
    """One way to rebuild rows (..., C) from amounts (..., F) of directions (F, C)."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    directions: Tensor

    @property
    def width(self) -> int:
        """Values per row of its amounts and of what they rebuild, whichever are more."""
        return max(self.directions.shape)

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, P, C) rebuilt."""
        flat = rows.flatten(0, 1)
        parts = [self.decode(self.encode(flat[part])) for part in row_chunks(len(flat), self.width)]
        return torch.cat(parts).view(rows.shape)

    def rebuilt_and_counted(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor, int]:
        """Rows (N, P, C) rebuilt, rebuilt from the k largest amounts of each alone, and how many amounts are not 0."""
        flat, parts, n_active = rows.flatten(0, 1), [], 0
        for part in row_chunks(len(flat), self.width):
            amounts = self.encode(flat[part])
            parts.append((self.decode(amounts), self.decode(_keep_largest_by_magnitude(amounts, k))))
            n_active += int((amounts != 0).sum())
        rebuilt, at_k = (torch.cat(of).view(rows.shape) for of in zip(*parts, strict=True))
        return rebuilt, at_k, n_active

    def counts(self, rows: Tensor) -> Tensor:
        """(F,) how many of rows (A, C) have each direction."""
        parts = row_chunks(len(rows), self.width)
        return torch.stack([(self.encode(rows[part]) != 0).sum(0) for part in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class _HeldOutErrors:
    """Of M held-out examples, which are encoded once: relative squared errors (M,), and directions per row."""

    errors: Tensor
    errors_at_k: Tensor
    active: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Dictionaries of a layer, compared on held-out examples.

    Attributes:
        layer: How activations become rows.
        fitted: (A, C) the rows that dictionaries are fitted to.
        tested: (M, p, C) those of held-out examples.
        k: Active features of a row.
        examples: Held-out examples on which the model is run with the layer replaced.
    """

    layer: UnitRowLayout
    fitted: Tensor
    tested: Tensor
    k: int
    examples: EvaluatedExamples

    def table(
        self, own: Sequence[SparseAutoencoder], frozen: Sequence[SparseAutoencoder], seeds: Sequence[int]
    ) -> tuple[tuple[DictionaryScore, ...], Interval]:
        """The scores, and the gap of explained variance between a dictionary and its twin of the same seed."""
        coders = {DICTIONARY: _autoencoder_coders(own), FROZEN: _autoencoder_coders(frozen)}
        n = len(own[0].directions)
        if bool((self.fitted >= 0).all()) and bool((self.tested >= 0).all()):
            rows = self.fitted[evenly_spaced_indices(len(self.fitted), MAX_NMF_ROWS)]
            n_nmf = min(n, len(rows))
            coders[NMF] = [_factor_coder(fit_factors(rows, "nmf", n_nmf, seed, random_start=True)) for seed in seeds]
        rank = PrincipalBasis.fit(self.fitted, n, standardize=False).axes.shape[1]
        if rank:
            coders[PCA] = [_factor_coder(fit_factors(self.fitted, "pca", rank, 0))]
        held_out = {name: [self._held_out_errors(c) for c in some] for name, some in coders.items()}
        errors = {name: torch.stack([e.errors for e in some], 1) for name, some in held_out.items()}
        rebuilt = self.examples.rebuilt(self.layer, [*(some[0] for some in coders.values()), self._mean_rebuild])
        scores = [self._score(name, some, errors[name], held_out[name][0], r)
                  for (name, some), r in zip(coders.items(), rebuilt[:-1], strict=True)]  # fmt: skip
        gap = bootstrap_mean_interval(errors[FROZEN] - errors[DICTIONARY])
        nothing = bootstrap_mean_interval(1 - self._relative_squared_errors(self._mean_rebuild(self.tested))[:, None])
        return (*scores, DictionaryScore(MEAN, 0, nothing, nothing.mean, 0.0, 0.0, None, rebuilt[-1])), gap

    @property
    def _mean_rebuild(self) -> Rebuild:
        return mean_rebuild(self.fitted.mean(0))

    def _relative_squared_errors(self, rebuilt: Tensor) -> Tensor:
        """(M,) each held-out example's squared error, of the mean example's variance around the fitted mean."""
        total = (self.tested - self.fitted.mean(0)).square().sum((1, 2)).mean()
        error = (self.tested - rebuilt).square().sum((1, 2))
        return error / total if float(total) else torch.zeros_like(error)

    def _held_out_errors(self, coder: _Coder) -> _HeldOutErrors:
        rebuilt, at_k, n_active = coder.rebuilt_and_counted(self.tested, self.k)
        errors, errors_at_k = self._relative_squared_errors(rebuilt), self._relative_squared_errors(at_k)
        return _HeldOutErrors(errors, errors_at_k, n_active / self.tested.shape[:2].numel())

    def _score(
        self, name: str, coders: Sequence[_Coder], errors: Tensor, of_first: _HeldOutErrors, rebuilt: Rebuilt
    ) -> DictionaryScore:
        first = coders[0]
        is_dead = first.counts(self.fitted[evenly_spaced_indices(len(self.fitted), MAX_ROWS_FOR_DEAD_TEST)]) == 0
        cosines = [float(matched_cosines(a.directions, b.directions).mean()) for a, b in combinations(coders, 2)]
        return DictionaryScore(
            name, len(first.directions), bootstrap_mean_interval(1 - errors),
            1 - float(of_first.errors_at_k.mean()),
            of_first.active, float(is_dead.double().mean()),
            fmean(cosines) if cosines else None, rebuilt,
        )  # fmt: skip


def _autoencoder_coders(autoencoders: Sequence[SparseAutoencoder]) -> list[_Coder]:
    return [_Coder(a.encode, a.decode, a.directions) for a in (a.double() for a in autoencoders)]


def _factor_coder(factors: Factors) -> _Coder:
    return _Coder(factors.encode, factors.decode, factors.directions)


def _keep_largest_by_magnitude(amounts: Tensor, k: int) -> Tensor:
    """The k largest of each row (..., F), by magnitude, the others set to 0."""
    if k >= amounts.shape[-1]:
        return amounts
    index = amounts.abs().topk(k, dim=-1).indices
    return torch.zeros_like(amounts).scatter(-1, index, amounts.gather(-1, index))
