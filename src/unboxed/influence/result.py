"""The result of every influence method: how much each training example helped each query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..engine.results import ResultMixin
from ..engine.unroll.smoothness import Smoothness
from ..errors import InputError
from ..validation import check_int

ScoreTruth = Literal["one run", "mean over seeds"]
NATS_PER_EXAMPLE_UNIT_TEXT = "nats per example left out"
HALF_SQUARED_ERROR_UNIT_TEXT = "half squared error per example left out"  # of a regression
LOSS_PER_EXAMPLE_UNIT_TEXT = "loss per example left out"  # of a regression with a loss of the caller's
LOSS_CHANGE_UNIT_TEXTS = (NATS_PER_EXAMPLE_UNIT_TEXT, HALF_SQUARED_ERROR_UNIT_TEXT, LOSS_PER_EXAMPLE_UNIT_TEXT)
RANKING_UNIT_TEXT = "rank only: sizes mean nothing"  # of scores that no change of a loss can be
SIMILARITY_UNIT_TEXT = "similarity"


@dataclass(frozen=True, eq=False, repr=False)
class Influence(ResultMixin):
    """Scores of training examples for queries: positive where the example helped the query.

    A score in nats is the change of the query's loss to first order when the example's weight goes from 1 to 0: a
    positive one says that leaving the example out raises the loss. Methods whose scores are only ranks say so in
    `unit`. `truth` is what they estimate: the same training without the example ("one run": same seed and order), or
    the mean of trainings with other seeds.

    Attributes:
        scores: (Q, N) queries by training examples.
        truth: "one run" or "mean over seeds".
        unit: Unit of the scores: "nats per example left out"; of a regression "half squared error per example left
            out", or "loss per example left out" with a loss of your own; "similarity", or what the method says;
            "rank only: sizes mean nothing" of scores too large to be changes, or of a solver that approximates the
            curvature.
        method: The name of the method, as its card has it.
        input: The queries (Q, ...), in the box's units.
        target: (Q,) the classes whose loss is explained; or what the loss was given.
        train_labels: (N,) the training examples' labels.
        classes: The names of the model's classes; none of a regression.
        smoothness: Whether the training is smooth enough for its derivative; None for methods that do not run it.
        settings: What the method chose or was given that the scores depend on: damping, solver, checkpoints.

    Example:
        >>> import torch
        >>> from unboxed.influence import Influence
        >>> result = Influence(torch.tensor([[.2, -.1, .5]]), "one run", train_labels=torch.tensor([0, 1, 0]))
        >>> result.top(2).tolist(), result.bottom(1).tolist(), result.groups().tolist()
        ([[2, 0]], [[1]], [[0.699999988079071, -0.10000000149011612]])
    """

    returns: ClassVar[str] = "influence"

    scores: Tensor
    truth: ScoreTruth
    unit: str = NATS_PER_EXAMPLE_UNIT_TEXT
    method: str = ""
    input: Any = None
    target: Tensor | None = None
    train_labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    smoothness: Smoothness | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def summary_lines(self) -> Iterator[str]:
        solver = str(self.settings.get("solver", "")).partition("(")[0]
        method = f"{self.method} (solver {solver})" if solver else self.method
        queries = "1 query" if self.n_queries == 1 else f"{self.n_queries} queries"
        yield f"{method}: {self.n_train} training examples for {queries}; {self.unit}"
        for q, (best, worst) in enumerate(zip(self.top(3).tolist(), self.bottom(3).tolist(), strict=True)):
            helpful, harmful = (", ".join(f"{i} ({float(self.scores[q, i]):+.3g})" for i in k) for k in (best, worst))
            yield f"query {q}: the most helpful {helpful}; the most harmful {harmful}"

    @property
    def n_queries(self) -> int:
        return len(self.scores)

    @property
    def n_train(self) -> int:
        return self.scores.shape[1]

    def top(self, k: int = 8) -> Tensor:
        """The k most helpful training examples of each query, (Q, k), the most helpful first."""
        return self._ranked_train_indices(k, descending=True)

    def bottom(self, k: int = 8) -> Tensor:
        """The k most harmful training examples of each query, (Q, k), the most harmful first."""
        return self._ranked_train_indices(k, descending=False)

    def groups(self, ids: Tensor | Sequence[int] | None = None) -> Tensor:
        """Sums (Q, G) of the scores over groups of training examples, to first order what leaving all of it out does.

        Args:
            ids: (N,) group of each training example, 0 to G - 1. None: their labels.

        Raises:
            InputError: for ids that are not one whole number per training example.
        """
        given = self.train_labels if ids is None else ids
        try:
            index = torch.as_tensor(given, device=self.scores.device)
        except (TypeError, ValueError, RuntimeError):
            index = None
        is_integer = index is not None and not index.is_floating_point() and index.dtype != torch.bool
        if index is None or not is_integer or index.shape != (self.n_train,) or bool((index < 0).any()):
            got = "no labels" if given is None else f"{given!r}"[:100]
            if index is not None:
                got = f"{index.dtype} of shape {tuple(index.shape)}"
            raise InputError(f"groups need one whole number per training example, ({self.n_train},); got {got}")
        return self.scores.new_zeros(self.n_queries, int(index.max()) + 1).index_add_(1, index, self.scores)

    def _ranked_train_indices(self, k: int, *, descending: bool) -> Tensor:
        k = min(check_int("k", k, minimum=1), self.n_train)
        return self.scores.argsort(dim=1, descending=descending, stable=True)[:, :k]


def have_same_labels(a: Any, b: Any) -> bool:
    """Whether labels are the same, where both are known."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return True
    return a.numel() == b.numel() and bool((a.flatten().cpu() == b.flatten().cpu()).all())


def mean_over_seeds(results: list[Influence]) -> Influence:
    """The mean of results of trainings with different seeds, on the same queries and training examples.

    Models of other seeds predict other classes: give the queries' labels, so that one loss is explained.

    Raises InputError where there is none, or they differ in shape, unit or labels.
    """
    if not results or len({(tuple(r.scores.shape), r.unit) for r in results}) > 1:
        raise InputError("wanted results of the same queries, training examples and unit, at least one")
    first = results[0]
    for what, labels in (
        ("queries", [r.target for r in results]),
        ("training examples", [r.train_labels for r in results]),
    ):
        if not all(have_same_labels(labels[0], other) for other in labels):
            raise InputError(f"these results are for other labels of the {what}; give the same ones, in the same order")
    return replace(first, scores=torch.stack([r.scores for r in results]).mean(0), truth="mean over seeds")
