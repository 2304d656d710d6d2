"""TCAV: whether a class's score rises in the direction of a concept, against directions of random examples.

Kim et al. 2018, "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors
(TCAV)", arXiv:1711.11279.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import scipy
import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.layers import layer_gradients
from ..engine.multiple_tests import holm_adjusted
from ..engine.randomized import layers_with_weights, randomize_all_layers
from ..engine.results import ResultMixin
from ..errors import LayerError, ModelError
from ..model.nan_checks import check_no_nan
from ..parameters import BatchSize, Data, LayerAddresses, MaxExamples, Seed, Target
from ..settings import Above, Below, check_settings
from ..validation import valid_seed
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._classes import card_example_layer, random_card_examples
from ._concept_examples import (
    MaxSetSize,
    NRandomSets,
    Penalty,
    RandomData,
    Relative,
    random_pool,
    read_concept_examples,
    resolve_concept_layers,
)
from ._data import Concepts, random_card_concepts
from ._example_sets import ExampleSets, draw_example_sets
from ._layer_features import LayerFeatures, layers_as_features, read_features_in_groups
from ._target_examples import TargetExamples, target_examples
from ._tcav_diagnostics import Diagnostics, LayerDirections, diagnose, diagnosis_sentences, directions
from ._vectors import LayerConceptVectors, fit_layer_vectors

QUANTILES = 0.05, 0.95  # of the scores over random sets, as an interval


@dataclass(frozen=True, eq=False, repr=False)
class ConceptScores(ResultMixin):
    """How a target's score depends on concepts, layer by layer.

    C concepts, L layers and R random sets.

    Attributes:
        concepts: Names of the concepts.
        layers: Addresses of the layers.
        target: The score.
        n_examples: Examples whose score was derived.
        sizes: (C,) examples in each of a concept's sets, and in the random ones.
        scores: (C, L, R) TCAV scores, one for each random set: the share of examples whose score rises in the
            direction of the concept.
        random_scores: (C, L, R) scores of random sets of as many examples, each against the other sets.
        smooth_scores: (C, L) the TCAV score without the jump at 0: the mean probability that a derivative exceeds that
            in the direction of random examples.
        alignment: (C, L) mean cosine between the score's gradient and the concept's vector.
        random_alignment: (C, L, R) the same of the random sets' vectors.
        p_values: (C, L) of the alignment, two-sided, corrected for all concepts and layers.
        twin_p_values: (C, L) the same of the model with random weights; None where it was not tested.
        accuracy: (C, L) held-out share of the examples that the concept's classifiers tell apart.
        diagnostics: What may make the figures misleading; None where it was not asked for.
        alpha: Level of significance.
        relative: Whether the vectors are relative to the other concepts.
    """

    returns: ClassVar[str] = "table"

    concepts: tuple[str, ...]
    layers: tuple[str, ...]
    target: str
    n_examples: int
    sizes: tuple[int, ...]
    scores: Tensor
    random_scores: Tensor
    smooth_scores: Tensor
    alignment: Tensor
    random_alignment: Tensor
    p_values: Tensor
    twin_p_values: Tensor | None
    accuracy: Tensor
    diagnostics: Diagnostics | None
    alpha: float
    relative: bool = False

    def summary_lines(self) -> Iterator[str]:
        yield from super().summary_lines()
        if self.p_values.numel() > 1:
            yield from (self.sentence(c, k) for c in range(len(self.concepts)) for k in range(len(self.layers)))

    @property
    def is_significant(self) -> Tensor:
        """(C, L) bool: the alignment differs from that of random examples."""
        return self.p_values < self.alpha

    @property
    def is_claimed(self) -> Tensor:
        """(C, L) bool: significant, and not in the model with random weights."""
        if self.twin_p_values is None:
            return torch.zeros_like(self.is_significant)
        return self.is_significant & (self.twin_p_values >= self.alpha)

    def score_interval(self, c: int, k: int) -> tuple[float, float]:
        """The 5 % and 95 % quantiles of a concept's score in a layer, over the random sets."""
        low, high = torch.quantile(self.scores[c, k].double(), torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
        return low, high

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where a concept is significant in a layer and not in the model with random weights, else "fail"."""
        if self.twin_p_values is None:
            return NOT_TESTED_CLAIM
        return PASS if bool(self.is_claimed.any()) else FAIL

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        if self.twin_p_values is None:
            return f"there is no model with random weights to compare with; {self.sentence(*self._best(self.p_values))}"
        if bool(self.is_claimed.any()):
            c, k = self._best(torch.where(self.is_claimed, self.p_values, 2.0))
            twin = self._p_value_text(self.twin_p_values[c, k])
            return f"{self.sentence(c, k)}, of the same model with random weights {twin}"
        c, k = self._best(self.p_values)
        if not bool(self.is_significant[c, k]):
            return f"no concept matters more than random examples do: at best, {self.sentence(c, k)}"
        twin_text = self._p_value_text(self.twin_p_values[c, k])
        return f"a model with random weights is as sensitive: {self.sentence(c, k)}, with random weights {twin_text}"

    @property
    def diagnosis(self) -> list[str]:
        """The diagnostics as sentences: of the concept, pair or layer where they are worst."""
        return [] if self.diagnostics is None else diagnosis_sentences(self.diagnostics, self.concepts, self.layers)

    def sentence(self, c: int, k: int) -> str:
        """A concept's figures in a layer."""
        low, high = self.score_interval(c, k)
        score, cosine = float(self.scores[c, k].double().mean()), float(self.alignment[c, k])
        spread = float(self.random_alignment[c, k].double().square().mean().sqrt())
        direction = "rises" if cosine > 0 else "falls"
        how = f"{direction} with" if bool(self.is_significant[c, k]) else "depends no more than on random examples on"
        return (
            f"in {self.layers[k]!r} the score of {self.target} {how} {self.concepts[c]!r}: TCAV {score:.2f} "
            f"(90% of the random sets: {low:.2f} to {high:.2f}), mean cosine {cosine:+.3f}, of random "
            f"examples {spread:.3f} ({self._p_value_text(self.p_values[c, k])}, corrected)"
        )

    @staticmethod
    def _best(p_values: Tensor) -> tuple[int, int]:
        c, k = divmod(int(p_values.argmin()), p_values.shape[1])
        return c, k

    @staticmethod
    def _p_value_text(p: Tensor) -> str:
        return f"p = {float(p):.2g}"


@dataclass(frozen=True, eq=False)
class _LayerTest:
    """The figures of one layer."""

    scores: Tensor  # (C, R)
    random_scores: Tensor  # (C, R)
    smooth_scores: Tensor  # (C,)
    alignment: Tensor  # (C,)
    random_alignment: Tensor  # (C, R)
    p_values: Tensor  # (C,) not corrected
    accuracy: Tensor  # (C,)


@card(
    name="TCAV",
    source="Kim et al. 2018, arXiv:1711.11279, equations 1 and 2",
    shows="Whether a class's score rises or falls in the direction of a concept, by layer, against random examples.",
    does_not_show="That the model answers by the concept: its direction may be another concept's, too; see the most "
    "entangled pair.",
    example=lambda method, box, x, y: method(
        box, random_card_examples(box), random_card_concepts(box), layers=card_example_layer(box), n_random=3
    ),
    exempt={
        "one forward": "it runs the model on all concepts and sets, and a copy with random weights",
        "rows": "its vectors are fitted to all examples together",
        "awkward: exported_flat": "no module has parameters there, so that it takes other layers",
        "awkward: result.twin_p_values": "random weights are drawn by the modules' names",
    },
    runs=4,
    order=1,
)
def tcav(
    box: Box,
    data: Data,
    concepts: Concepts,
    target: Target = None,
    layers: LayerAddresses = None,
    *,
    random_data: RandomData = None,
    relative: Relative = False,
    n_random: NRandomSets = 20,
    set_size: MaxSetSize = 50,
    l2: Penalty = 0.001,
    alpha: Annotated[float, Above(0), Below(1), "Level of significance, after correction."] = 0.05,
    control: Annotated[bool, "Test the same model with random weights, too."] = True,
    diagnostics: Annotated[bool, "Compute what may make the figures misleading, too."] = True,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> ConceptScores:
    """Whether the target's score rises or falls in the direction of concepts, layer by layer, against random examples.

    To ask a model about something that a person has a word for (stripes, thick strokes, an age above 60), of which
    there are examples, but which is no class. For an attribute that each example has a value of use `probe`.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. Of a class, its examples' scores count, by
            label or else by prediction; of any other target those of all examples. 50 or more of the class.
        concepts: Examples of each concept by its name: {name: examples in any form}. 50 or more each. Or what selects
            them in `data`: {name: function of the inputs that returns (N,) bool} or {name: (N,) bool}.
        target: The score: a class, one per example (N,), or an objective. None is each example's predicted class.
        layers: Addresses of the layers, as `box.layers` lists them. None: the inputs of up to four layers with weights.
            Of a layer with more than 65,536 values, vectors are the same at all positions.
        random_data: Examples that the random sets are drawn from. None: `data`. 1,000 or more are best.
        relative: Tell each concept apart from the other concepts, in place of random examples.
        n_random: Number of random sets. The concept is tested against their directions: 20 or more.
        set_size: Largest number of examples of a set. A concept with more has other ones in each of its sets.
        l2: L2 penalty of the classifiers, on features of variance 1 in all.
        alpha: Level of significance, after correction.
        control: Test the same model with random weights, too. Without it the verdict is "not tested".
        diagnostics: Compute what may make the figures misleading, too.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `ConceptScores`: `scores` (C, L, R) for each concept, layer and random set beside `random_scores`, the tested
        `alignment` with its `p_values` (C, L), the same of a model with random weights, the `diagnostics`; and a
        `verdict` with its `reason`.

    Raises:
        DataError: for a concept without two examples, a class without examples, fewer than four random examples, or a
            concept whose examples are those of a random set.
        InputError: for concepts that are no mapping, or a class that the model does not have.
        LayerError: for an unknown layer, or one that the score does not depend on.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("train").first(800)
        >>> concepts = {"seven": x[y == 7], "left": lambda x: x[..., :14].mean((1, 2, 3)) > x[..., 14:].mean((1, 2, 3))}
        >>> result = ub.concepts.tcav(box, (x, y), concepts, 7, "fc2:input")
        >>> result.verdict, bool(result.is_claimed[0, 0])
        ('pass', True)

    Source:
        The score is equation 2 of Kim et al., of the derivatives of equation 1. Deviations: the classifiers are
        logistic regressions with a penalty, solved exactly. The paper's t-test takes runs against different random
        sets as independent, though they share the concept's examples; it finds half of all random concepts
        significant. Here each concept has one vector, the mean of its unit vectors against the R sets, and its mean
        cosine with the gradient is compared with that of R random sets that are treated in the same way: Student's t
        with R - 1 degrees of freedom, two-sided, with Holm's correction over concepts and layers. The smooth score is
        the mean of the normal distribution function at the cosine over its root mean square in the direction of the
        random sets: the alpha-TCAV of arXiv:2605.15688, with that scale as 1 / alpha. The diagnostics are the
        properties of Nicolson et al., arXiv:2404.03713, as cosines.
    """
    check_settings(tcav, locals())
    seed = valid_seed(seed)
    asked = target_examples(box, data, target, max_examples, batch_size)
    examples = read_concept_examples(box, concepts, asked.all_inputs, asked.dataset_rows, max_examples)
    addresses = resolve_concept_layers(box, layers)
    pool = random_pool(box, random_data, asked.all_inputs)
    sets = draw_example_sets(examples, pool, n_random, set_size, seed, relative=relative)
    views = layers_as_features(box, sets.x, addresses, batch_size)
    tests, found = _test_layers(box, asked, sets, views, l2, batch_size, with_directions=diagnostics)
    twin = _randomized_twin(box, seed) if control else None
    twin_p_values = None
    if twin is not None:
        twin_tests, _ = _test_layers(twin, asked, sets, views, l2, batch_size, is_twin=True)
        twin_p_values = _corrected_p_values(twin_tests).to(box.dtype)
    stacked = {
        field.name: torch.stack([getattr(t, field.name) for t in tests], 1).to(box.dtype)
        for field in fields(_LayerTest)
    }
    stacked["p_values"] = _corrected_p_values(tests).to(box.dtype)
    return ConceptScores(
        tuple(examples), tuple(addresses), asked.name, len(asked.x), tuple(sets.sizes), **stacked,
        twin_p_values=twin_p_values, alpha=float(alpha), relative=relative,
        diagnostics=diagnose(box, asked.x, found, box.dtype, batch_size) if diagnostics else None,
    )  # fmt: skip


def _randomized_twin(box: Box, seed: int) -> Box | None:
    """The model with random weights; None where it has none, or cannot be copied."""
    try:
        return randomize_all_layers(box, seed) if layers_with_weights(box) else None
    except ModelError:
        return None


def _test_layers(
    box: Box, asked: TargetExamples, sets: ExampleSets, layers: Sequence[LayerFeatures], l2: float,
    batch_size: BatchSize, *, with_directions: bool = False, is_twin: bool = False,
) -> tuple[list[_LayerTest], list[LayerDirections]]:  # fmt: skip
    """The figures of each layer, and what the diagnostics need of it."""
    tests, found = list[_LayerTest](), list[LayerDirections]()
    for group, features in read_features_in_groups(box, sets.x, layers, batch_size):
        names = [layer.address for layer in group]
        gradients = layer_gradients(box, asked.objective, asked.x, names, batch_size=batch_size)
        for layer in group:
            gradient = layer.of_gradient(check_no_nan(gradients.pop(layer.address)).cpu())
            if not is_twin and not bool(gradient.any()):
                raise LayerError(f"{asked.name} has no gradient at {layer.address!r}: it does not depend on this layer")
            fitted = fit_layer_vectors(features.pop(layer.address), sets, l2, layer.address)
            tests.append(_test_layer(fitted, gradient, sets.sizes))
            if with_directions:
                found.append(directions(box, layer, fitted, sets, l2))
    return tests, found


def _test_layer(fitted: LayerConceptVectors, gradient: Tensor, sizes: Sequence[int]) -> _LayerTest:
    """The figures of one layer, of the gradients (N, D) of the examples' scores."""
    products = (gradient @ fitted.h.T).double()  # (N, M)
    length = gradient.double().norm(dim=1, keepdim=True)
    cosines = products / torch.where(length > 0, length, 1.0)
    scores = torch.stack([(v.project(products) > 0).double().mean(0) for v in fitted.each])
    random_scores = {n: _random_scores(v.project(products), len(scores[0])) for n, v in fitted.random.items()}
    concept = cosines @ fitted.mean.T  # (N, C)
    random = {n: cosines @ weights.T for n, weights in fitted.random_mean.items()}  # (N, R)
    alignment, random_alignment = concept.mean(0), torch.stack([random[n].mean(0) for n in sizes])
    spread = torch.stack([random[n].square().mean(1).sqrt() for n in sizes], 1)  # (N, C)
    ratio = alignment / _one_where_zero(random_alignment.square().mean(1).sqrt())
    return _LayerTest(
        scores, torch.stack([random_scores[n] for n in sizes]),
        torch.special.ndtr(concept / _one_where_zero(spread)).mean(0),
        alignment, random_alignment, torch.from_numpy(2 * scipy.stats.t.sf(ratio.abs().numpy(), len(scores[0]) - 1)),
        torch.stack([v.accuracy.mean() for v in fitted.each]),
    )  # fmt: skip


def _one_where_zero(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, 1.0)


def _random_scores(derivatives: Tensor, n_sets: int) -> Tensor:
    """(R,) the mean score of each set against the others, of the derivatives (N, B) along each pair's vector."""
    first, second = torch.triu_indices(n_sets, n_sets, 1)
    total = derivatives.new_zeros(n_sets)
    total.index_add_(0, first, (derivatives > 0).double().mean(0))
    total.index_add_(0, second, (derivatives < 0).double().mean(0))
    return total / (n_sets - 1)


def _corrected_p_values(tests: Sequence[_LayerTest]) -> Tensor:
    """(C, L) p-values corrected for their number."""
    p_values = torch.stack([t.p_values for t in tests], 1)
    return torch.tensor(holm_adjusted(p_values.flatten().tolist()), dtype=torch.float64).view_as(p_values)
