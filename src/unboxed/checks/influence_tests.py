"""The tests of a verdict on scores of training examples: what each measures, per query, and its bound."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card_of
from ..engine.randomized import layers_with_weights, randomize_all_layers
from ..engine.rank_correlation import spearman
from ..errors import InputError, UnboxedError, UnboxedWarning
from ..influence import Influence, ModelTraining
from ..influence.validate import LinearDatamodelingScore, linear_datamodeling_score
from ..settings import ValueRole
from .influence_evidence import InfluenceEvidence
from .influence_planting import PlantedTraining
from .verdict_tests import VerdictTest

InfluenceMethod = Callable[[Box, Any, Any, Any], Influence]
TestedInfluenceMethod = Annotated[
    InfluenceMethod, "The method to test: a function (box, x, labels, train) that returns an Influence."
]
TrainingOrData = Annotated[
    Any,
    ValueRole("data"),
    "What the method takes: labeled training examples, or a training (unrolled differentiation).",
]

RANDOM_WEIGHTS_TEST_NAME, SAME_TOP_EXAMPLES_TEST_NAME = "random weights", "same on top"
SHORTCUT_TEST_NAME, RETRAINING_TEST_NAME = "planted shortcut", "retraining"


@dataclass(eq=False)
class InfluenceTestSubject:
    """A method's scores of a model's training examples, and what its tests share."""

    box: Box
    x: Tensor  # (Q, ...)
    labels: Tensor  # (Q,)
    method: InfluenceMethod
    train: Any
    result: Influence
    seed: int
    top_k: int
    training: ModelTraining | None = None
    planted: PlantedTraining | None = None
    fraction: float = 0.1
    n_subsets: int = 30
    checkpoint: Any = None
    n_maps: int = 0  # rows of scores computed so far
    lds: list[LinearDatamodelingScore] = field(default_factory=list)

    def scores_of(
        self, box: Box, x: Tensor, labels: Tensor, train: Any, method: InfluenceMethod | None = None
    ) -> Tensor:
        """Scores (Q, N), of another method if one is given; warnings of models changed on purpose say nothing new."""
        self.n_maps += len(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboxedWarning)
            result = (method or self.method)(box, x.clone(), labels, train)
        return check_influence_result(result, len(x)).scores.double().cpu()

    @property
    def evidence(self) -> InfluenceEvidence:
        return InfluenceEvidence(self.result, self.lds[0] if self.lds else None)

    @cached_property
    def scores(self) -> Tensor:
        return self.result.scores.double().cpu()


def check_influence_result(result: Any, n_queries: int) -> Influence:
    """Raise InputError for what is no `Influence` of these queries."""
    if not isinstance(result, Influence) or result.n_queries != n_queries:
        got = f"scores of {result.n_queries} queries" if isinstance(result, Influence) else type(result).__name__
        raise InputError(f"an influence method returns an Influence of {n_queries} queries; got {got}")
    return result


def _rank_correlation_with_randomized(s: InfluenceTestSubject, draw: int) -> Tensor:
    """(Q,) rank correlation with the scores of the model with all its layers randomized."""
    if isinstance(s.train, ModelTraining) or not layers_with_weights(s.box):
        return _nan_per_query(s)  # a training gives one model, and no other
    randomized = randomize_all_layers(s.box, s.seed + draw)
    method = _with_other_checkpoints(
        s.method, lambda k: randomize_all_layers(s.box, rng.derive_seed("checkpoint", s.seed + draw, k))
    )
    return spearman(s.scores, s.scores_of(randomized, s.x, s.labels, s.train, method))


def _with_other_checkpoints(method: InfluenceMethod, box_of_checkpoint: Callable[[int], Box]) -> InfluenceMethod:
    """A method whose settings hold checkpoints (TracIn) takes those of other boxes, since it reads no other weights."""
    card = card_of(method)
    if card is None or not isinstance(method, partial):
        return method
    given = {name: method.keywords.get(name) for name, s in card.settings.items() if s.kind == "checkpoints"}
    states = {
        name: [box_of_checkpoint(k).model.state_dict() for k in range(len(checkpoints))]
        for name, checkpoints in given.items()
        if checkpoints
    }
    return partial(method, **states)


def _excess_top_overlap_across_classes(s: InfluenceTestSubject, draw: int) -> Tensor:
    """(Q,) share of a query's top examples that are on top for a query with another label, above that of chance."""
    n = s.scores.shape[1]
    k = min(s.top_k, n // 2)
    if k < 1:
        return _nan_per_query(s)
    is_top = torch.zeros_like(s.scores).scatter_(1, s.scores.argsort(1, descending=True)[:, :k], 1.0)
    shared = is_top @ is_top.T / k  # (Q, Q)
    labels = s.labels.reshape(len(s.labels), -1)  # a class, a number, or several labels
    others = (labels[:, None] != labels).any(2)
    mean = shared.masked_fill(~others.cpu(), math.nan).nanmean(1)
    return (mean - k / n) / (1 - k / n)


def _excess_poisoned_at_top(s: InfluenceTestSubject, draw: int) -> Tensor:
    """(Q',) share of poisoned images among the top ones of images with the trigger, beyond what their label says."""
    if s.planted is None:
        return _nan_per_query(s)
    planted = s.planted
    train = planted.training if isinstance(s.train, ModelTraining) else (planted.data.images, planted.data.labels)
    method = _with_other_checkpoints(s.method, lambda k: planted.box)
    scores = s.scores_of(planted.box, planted.x, planted.classes, train, method)
    return planted.excess_poisoned_in_top_k(scores)


def _rank_correlation_with_retraining(s: InfluenceTestSubject, draw: int) -> Tensor:
    """(Q,) rank correlation of predicted with real losses after retraining without random subsets."""
    if s.training is None:
        return _nan_per_query(s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)  # of noise: the figure shows it
        score = linear_datamodeling_score(
            s.result, s.training, s.x, s.labels, fractions=(s.fraction,), n_subsets=s.n_subsets, seed=s.seed,
            checkpoint=s.checkpoint,
        )  # fmt: skip
    s.lds.append(score)
    values: Tensor = score.correlations[0, :, 0].nan_to_num(0.0)  # scores that are all the same predict nothing
    return values


def _nan_per_query(s: InfluenceTestSubject) -> Tensor:
    return torch.full((len(s.x),), math.nan, dtype=torch.float64)


def nan_test_if_method_refuses(values: Callable[[InfluenceTestSubject, int], Tensor]) -> Callable[[Any, int], Tensor]:
    """A test that does not apply where the method refuses the changed model."""

    def values_or_nan(s: InfluenceTestSubject, draw: int) -> Tensor:
        try:
            return values(s, draw)
        except UnboxedError:
            return _nan_per_query(s)

    return values_or_nan


INFLUENCE_TESTS = (
    VerdictTest(
        RANDOM_WEIGHTS_TEST_NAME,
        "rank correlation with scores for random weights",
        nan_test_if_method_refuses(_rank_correlation_with_randomized),
        bound=0.85,
        passes_above=False,
        spread=0.15,
        n_draws=2,
        max_draws=4,
        failed="same scores for random weights",
        fails="Its ranking is nearly the same (rank correlation {value:.2f}) when the model's weights are random: it "
        "shows the data, not what this model learned from them.",
        passes="its ranking changes when the model's weights are random (rank correlation {value:.2f})",
    ),
    VerdictTest(
        SAME_TOP_EXAMPLES_TEST_NAME,
        "share of top examples in common with other labels",
        _excess_top_overlap_across_classes,
        bound=0.5,
        passes_above=False,
        spread=0.2,
        limits=(-1, 1),
        failed="same examples for every query",
        fails="The same training examples are on top for queries with different labels ({value:.0%} in common): it "
        "shows examples that are large or odd, not those that taught this answer.",
        passes="queries with different labels have other examples on top ({value:.0%} in common)",
    ),
    VerdictTest(
        SHORTCUT_TEST_NAME,
        "share of poisoned images on top, beyond their label's",
        _excess_poisoned_at_top,
        bound=0.1,
        passes_above=True,
        spread=0.3,
        failed="does not find a planted shortcut",
        fails="Where a trigger decides the answer, the training images that planted it are hardly more often on top "
        "than others of their label ({value:+.0%}).",
        passes="images that planted a trigger come first where it decides ({value:+.0%} more than of their label)",
    ),
    VerdictTest(
        RETRAINING_TEST_NAME,
        "rank correlation with retraining",
        _rank_correlation_with_retraining,
        bound=0.3,
        passes_above=True,
        spread=0.2,
        failed="does not predict retraining",
        fails="Its sums hardly predict what happens when examples are left out (rank correlation {value:.2f} with real "
        "retrainings).",
        passes="its sums predict real retrainings (rank correlation {value:.2f})",
    ),
)
