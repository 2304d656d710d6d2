"""How well predicted changes of a loss agree with real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.rank_correlation import pearson, spearman
from ...engine.results import ResultMixin
from ...errors import InputError
from ..result import Influence, ScoreTruth, have_same_labels


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(ResultMixin):
    """Agreement of predicted with real changes of the queries' losses. NaN where either does not vary.

    Attributes:
        pearson: (Q,) correlation over what was left out.
        spearman: (Q,) rank correlation.
        slopes: (Q,) slope of real on predicted change, through the origin: 1 where scores are right in nats.
        pooled_slope: The same of all queries together, which the largest changes dominate.
    """

    pearson: Tensor
    spearman: Tensor
    slopes: Tensor
    pooled_slope: float


def measure_agreement(predicted: Tensor, real: Tensor) -> Agreement:
    """Agreement of predicted with real changes, (Q, M) each, for M times that something was left out."""
    predicted, real = predicted.double(), real.double()
    products, squares = predicted * real, predicted.square()
    slopes = torch.where(squares.sum(1) > 0, products.sum(1) / squares.sum(1), torch.nan)
    pooled = float(products.sum() / squares.sum()) if bool(squares.sum() > 0) else float("nan")
    return Agreement(pearson(predicted, real), spearman(predicted, real), slopes, pooled)


def check_estimates_same_truth(result: Influence, truth: ScoreTruth, *, allow_other_truth: bool) -> None:
    """Raise InputError for scores that estimate another truth than the one they would be compared with."""
    if result.truth != truth and not allow_other_truth:
        raise InputError(
            f"these scores ({result.method or 'no name'}) estimate {result.truth!r}, and would be compared with "
            f"{truth!r}: what one run does, and what runs do on average, differ. Compare them with their own truth, or "
            "give allow_other_truth=True to see how far they are from the other"
        )


def check_scores_match_queries(
    result: Influence, n_queries: int, n_examples: int, labels: Any, train_labels: Any
) -> None:
    """Raise InputError unless scores are of queries and training examples with these labels, and numbers.

    Labels are compared where both sides have them: other ones say that the examples are, or come in another order.
    """
    if result.scores.shape != (n_queries, n_examples):
        raise InputError(
            f"wanted scores of {n_queries} queries for the training's {n_examples} examples; got shape "
            f"{tuple(result.scores.shape)}"
        )
    for what, own, wanted in (
        ("the queries", result.target, labels), ("the training examples", result.train_labels, train_labels)
    ):  # fmt: skip
        if not have_same_labels(own, wanted):
            raise InputError(
                f"the scores ({result.method or 'no name'}) are for other labels of {what} than these: other examples, "
                "another order, or predictions of another model. Give both the same, in the same order"
            )
    if not bool(result.scores.isfinite().all()):
        raise InputError(f"the scores ({result.method or 'no name'}) hold NaN or infinite values")
