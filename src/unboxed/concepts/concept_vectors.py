"""Concept activation vectors: directions of a layer from random examples to those of a concept.

Kim et al. 2018, "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors
(TCAV)", arXiv:1711.11279, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import scipy
import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.multiple_tests import holm_adjusted
from ..engine.read.examples import indexed_inputs
from ..engine.results import ResultMixin
from ..errors import InputError
from ..objectives import Objective, direction
from ..parameters import BatchSize, Data, LayerAddresses, MaxExamples, Seed
from ..settings import check_settings
from ..validation import suggestion_text, valid_seed
from ._claims import FAIL, PASS, ClaimGrade
from ._classes import card_example_layer, random_card_examples
from ._concept_examples import MaxSetSize, NRandomSets, Penalty, Relative, read_concept_examples, resolve_concept_layers
from ._data import Concepts, random_card_concepts
from ._example_sets import draw_example_sets
from ._layer_features import layers_as_features, read_features_in_groups
from ._vectors import LayerConceptVectors, fit_layer_vectors

SIGNIFICANCE_LEVEL = 0.05
MIN_RANDOM_ACCURACY_STD = 0.01  # of the accuracy of random sets: few may be alike by chance


@dataclass(frozen=True, eq=False, repr=False)
class ConceptVectors(ResultMixin):
    """Directions of concepts in layers, of length 1.

    C concepts, L layers and R random sets.

    Attributes:
        concepts: Names of the concepts.
        layers: Addresses of the layers.
        vectors: Of each layer (C, ...), in the shape of its activations; of a wide one (C, units), for all positions.
        accuracy: (C, L) held-out share of the examples that a concept's classifiers tell apart.
        random_accuracy: (C, L, R) the same of random sets of as many examples, each against the other sets.
        relative: Whether the vectors are relative to the other concepts.
    """

    returns: ClassVar[str] = "table"

    concepts: tuple[str, ...]
    layers: tuple[str, ...]
    vectors: tuple[Tensor, ...]
    accuracy: Tensor
    random_accuracy: Tensor
    relative: bool = False

    @property
    def p_values(self) -> Tensor:
        """(C, L) of the accuracy against that of random sets, one-sided, corrected for all concepts and layers."""
        std, mean = torch.std_mean(self.random_accuracy.double(), dim=2)
        n = self.random_accuracy.shape[2]
        t = (self.accuracy.double() - mean) / (std * (1 + 1 / n) ** 0.5).clamp_min(MIN_RANDOM_ACCURACY_STD)
        adjusted = holm_adjusted(scipy.stats.t.sf(t.numpy(), n - 1).flatten().tolist())
        return torch.tensor(adjusted, dtype=self.accuracy.dtype).view_as(self.accuracy)

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where each concept is told apart in some layer better than random sets are (at 5 %), else "fail"."""
        return PASS if bool((self.p_values < SIGNIFICANCE_LEVEL).any(1).all()) else FAIL

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        c = int(self.p_values.amin(1).argmax())
        k = int(self.p_values[c].argmin())
        random = float(self.random_accuracy[c, k].double().mean())
        return (
            f"{self.concepts[c]!r} is told apart worst: {float(self.accuracy[c, k]):.0%} of its held-out examples in "
            f"{self.layers[k]!r}, of random sets {random:.0%} (p = {float(self.p_values[c, k]):.2g}, corrected)"
        )

    def objective(self, concept: str, layer: str) -> Objective:
        """The activation of a layer along a concept, as an objective: for images, maps, attacks or steering.

        Args:
            concept: Name of the concept.
            layer: Address of the layer, as in `layers`.

        Returns:
            An `Objective`, one score per example.

        Raises:
            InputError: for a concept or a layer that is not in the result.
        """
        for kind, name, names in (("concept", concept, self.concepts), ("layer", layer, self.layers)):
            if name not in names:
                raise InputError(f"there is no vector of the {kind} {name!r}; {suggestion_text(name, names)}")
        return direction(layer, self.vectors[self.layers.index(layer)][self.concepts.index(concept)])


@card(
    name="Concept activation vectors",
    aliases=("cav", "cavs"),
    source="Kim et al. 2018, arXiv:1711.11279, section 3.2",
    shows="The direction of a concept in each layer, and how well it tells the concept's examples from random ones.",
    does_not_show="Whether the model's answers depend on that direction: see `tcav`.",
    example=lambda method, box, x, y: method(
        box, random_card_examples(box), random_card_concepts(box), layers=card_example_layer(box), n_random=3
    ),
    exempt={
        "one forward": "it runs the model on the concepts' examples and on random ones",
        "rows": "its vectors are fitted to all examples together",
        "awkward: exported_flat": "no module has parameters there, so that it takes other layers",
    },
    runs=1,
    order=3,
)
def concept_vectors(
    box: Box,
    data: Data,
    concepts: Concepts,
    layers: LayerAddresses = None,
    *,
    relative: Relative = False,
    n_random: NRandomSets = 20,
    set_size: MaxSetSize = 50,
    l2: Penalty = 0.001,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> ConceptVectors:
    """The directions of concepts in a model's layers, which are objectives like a class or a unit.

    To draw what a model takes a concept for, to see where in an image it is, or to steer along it. Whether the model's
    answers depend on it is what `tcav` tests.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. Random sets are drawn from them.
        concepts: Examples of each concept by its name: {name: examples in any form}. 50 or more each. Or what selects
            them in `data`: {name: function of the inputs that returns (N,) bool} or {name: (N,) bool}.
        layers: Addresses of the layers, as `box.layers` lists them. None: the inputs of up to four layers with weights.
            Of a layer with more than 65,536 values, vectors are the same at all positions.
        relative: Tell each concept apart from the other concepts, in place of random examples.
        n_random: Number of random sets. A concept's vector is the mean of those against each set.
        set_size: Largest number of examples of a set. A concept with more has other ones in each of its sets.
        l2: L2 penalty of the classifiers, on features of variance 1 in all.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `ConceptVectors`: of each layer the `vectors` (C, ...) of length 1, the held-out `accuracy` (C, L) beside that
        of random sets, `objective(concept, layer)`; and a `verdict` with its `reason`.

    Raises:
        DataError: for a concept without two examples, fewer than four random examples, or a concept whose examples are
            those of a random set.
        InputError: for concepts that are no mapping.
        LayerError: for an unknown layer, or one with the same activations for all examples.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("train").first(600)
        >>> result = ub.concepts.concept_vectors(box, x, {"seven": x[y == 7]}, "fc2:input")
        >>> result.vectors[0].shape, result.verdict, result.objective("seven", "fc2:input")
        (torch.Size([1, 64]), 'pass', Objective(fc2:input along a direction))

    Source:
        Kim et al. 2018, section 3.2. The classifiers are logistic regressions with a penalty; a vector is the mean of
        those against each random set, each of length 1. The held-out accuracy is by approximate leave-one-out (Rad &
        Maleki 2020, "A scalable estimate of the out-of-sample prediction error via approximate leave-one-out
        cross-validation"); it is compared with random sets' by Student's t with Holm's correction.
    """
    check_settings(concept_vectors, locals())
    seed = valid_seed(seed)
    x, dataset_rows = indexed_inputs(box, data, max_examples)
    examples = read_concept_examples(box, concepts, x, dataset_rows, max_examples)
    addresses = resolve_concept_layers(box, layers)
    sets = draw_example_sets(examples, x, n_random, set_size, seed, relative=relative)
    views = layers_as_features(box, sets.x, addresses, batch_size)
    vectors, accuracy, random_accuracy = list[Tensor](), list[Tensor](), list[Tensor]()
    for group, features in read_features_in_groups(box, sets.x, views, batch_size):
        for layer in group:
            fitted = fit_layer_vectors(features.pop(layer.address), sets, l2, layer.address)
            vectors.append(fitted.vectors(fitted.mean).view(-1, *layer.vector_shape).to(box.dtype))
            accuracy.append(torch.stack([v.accuracy.mean() for v in fitted.each]))
            random_accuracy.append(_random_set_accuracy(fitted, sets.sizes, n_random))
    return ConceptVectors(
        tuple(examples), tuple(addresses), tuple(vectors), torch.stack(accuracy, 1).to(box.dtype),
        torch.stack(random_accuracy, 1).to(box.dtype), relative,
    )  # fmt: skip


def _random_set_accuracy(fitted: LayerConceptVectors, sizes: list[int], n_sets: int) -> Tensor:
    """(C, R) the mean accuracy of each random set against the others, of each concept's size."""
    first, second = torch.triu_indices(n_sets, n_sets, 1)
    by_size = {}
    for n, pairs in fitted.random.items():
        total = pairs.accuracy.new_zeros(n_sets)
        for index in (first, second):
            total.index_add_(0, index, pairs.accuracy)
        by_size[n] = total / (n_sets - 1)
    return torch.stack([by_size[n] for n in sizes])
