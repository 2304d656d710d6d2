"""The linear datamodeling score: how well sums of scores predict real losses of retrainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...engine.intervals import Interval, bootstrap_mean_interval
from ...engine.results import ResultMixin
from ...errors import InputError
from ..result import ScoreTruth


@dataclass(frozen=True, eq=False, repr=False)
class LinearDatamodelingScore(ResultMixin):
    """How well scores predict what really happens when random subsets of the training examples are left out.

    F fractions of the examples are left out, in S random subsets each, for Q queries and R trainings (1, or several
    seeds after `pool_scores`). 1 is a perfect order of the subsets, 0 is that of chance. `str(score)` is a table.

    Attributes:
        correlations: (F, Q, R) rank correlations over the subsets, of predicted with real changes of a query's loss.
        slopes: (F, Q, R) slopes of real on predicted change, through the origin; NaN for scores that are no
            changes of a loss, such as similarities.
        pooled_slopes: (F, R) the same of all queries together.
        fractions: (F,) of the examples that were left out.
        truth: What the scores were compared with: "one run" or "mean over seeds".
        method: The method of the scores.
        predicted: (F, S, Q) sums of scores of what is left out, of the first training.
        real: (F, S, Q) changes of the queries' losses in retrainings, of the first training.
        noise_to_signal: (F, Q, R) for one run: standard deviation of a query's loss over runs whose start was moved by
            a relative 1e-5, divided by that over the subsets. Above .15 no score of single examples can be right.
        ceilings: (F, Q, R) for the mean over seeds: rank correlations of one real retraining with the mean of the
            others. Scores can exceed it, as they are no single training.
        n_seeds: Number of retrainings of each subset, for the mean over seeds.
        seed: Of subsets and intervals.
    """

    correlations: Tensor
    slopes: Tensor
    pooled_slopes: Tensor
    fractions: tuple[float, ...]
    truth: ScoreTruth
    method: str = ""
    predicted: Tensor | None = None
    real: Tensor | None = None
    noise_to_signal: Tensor | None = None
    ceilings: Tensor | None = None
    n_seeds: int = 1
    seed: int = 0

    @property
    def means(self) -> Tensor:
        """(F,) mean correlation over queries and trainings."""
        return self.correlations.nanmean((1, 2))

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """(F,) mean correlations with their 90 % intervals, by a bootstrap over queries and trainings."""
        return tuple(bootstrap_mean_interval(h, self.seed) for h in self.correlations)

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON, by fraction."""
        return {f"{fraction:g}": self._numbers_of_fraction_for_json(f) for f, fraction in enumerate(self.fractions)}

    def _numbers_of_fraction_for_json(self, f: int) -> dict[str, Any]:
        interval = self.intervals[f]
        per_training = self.correlations[f].nanmean(0)
        figures: dict[str, Any] = {
            "lds": interval.mean, "low": interval.low, "high": interval.high, "by_training": per_training.tolist(),
        }  # fmt: skip
        if bool(self.slopes.isfinite().any()):
            figures |= {"slope_pooled": float(self.pooled_slopes[f].nanmean())}
            figures |= {"slope_median": float(self.slopes[f].nanmedian())}
        if self.noise_to_signal is not None:
            figures["noise_to_signal"] = float(self.noise_to_signal[f].median())
        if self.ceilings is not None:
            figures["one_retraining"] = float(self.ceilings[f].nanmean())
        return figures

    def __str__(self) -> str:
        n_subsets = 0 if self.real is None else self.real.shape[1]
        n_queries, n_trainings = self.correlations.shape[1:]
        seeds = f", {self.n_seeds} seeds each" if self.ceilings is not None else ""
        trainings = f", {n_trainings} trainings" if n_trainings > 1 else ""
        head = f"{self.method or 'scores'} against {self.truth}: {n_subsets} subsets{seeds}, {n_queries} queries"
        return "\n".join([head + trainings, *self._text_lines()])

    def _text_lines(self) -> Iterator[str]:
        for fraction, figures in zip(self.fractions, self.to_dict().values(), strict=True):
            line = f"  {fraction:>5.1%} left out: {figures['lds']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"
            if "slope_pooled" in figures:
                line += f", slope {figures['slope_pooled']:.2f} (median {figures['slope_median']:.2f})"
            if "noise_to_signal" in figures:
                line += f", noise to signal {figures['noise_to_signal']:.2g}"
            if "one_retraining" in figures:
                line += f", one real retraining {figures['one_retraining']:.3f}"
            yield line


def pool_scores(scores: Sequence[LinearDatamodelingScore]) -> LinearDatamodelingScore:
    """Scores of one method for several trainings as one: its interval is over queries and trainings.

    Args:
        scores: One per training (other seeds), with the same fractions, queries and truth.

    Returns:
        A `LinearDatamodelingScore` with these R trainings. `predicted` and `real` are those of the first.

    Raises:
        InputError: where there are none, or they differ in fractions, queries, truth or method.

    Example:
        >>> import torch
        >>> from unboxed.influence.validate import LinearDatamodelingScore, pool_scores
        >>> h = torch.ones(1, 4, 1)
        >>> score = LinearDatamodelingScore(h, h, h[:, 0], (.1,), "one run")
        >>> pool_scores([score, score]).correlations.shape
        torch.Size([1, 4, 2])
    """
    kinds = {(s.fractions, s.truth, s.method, s.correlations.shape[:2], s.n_seeds) for s in scores}
    if len(kinds) != 1:
        raise InputError("wanted scores of one method, truth, fractions and queries, one per training; got "
                         f"{len(kinds)} kinds of them")  # fmt: skip
    names = ("correlations", "slopes", "pooled_slopes", "noise_to_signal", "ceilings")
    pooled: dict[str, Any] = {name: _concatenate_or_none([getattr(s, name) for s in scores]) for name in names}
    return replace(scores[0], **pooled)


def _concatenate_or_none(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [h for h in parts if h is not None]
    return torch.cat(tensors, -1) if len(tensors) == len(parts) else None
