"""Concepts found by themselves: a layer's activations of image crops in a few directions, and what these decide.

Ghorbani et al. 2019, "Towards Automatic Concept-based Explanations" (ACE), arXiv:1902.03129; Fel et al. 2023, "CRAFT:
Concept Recursive Activation FacTorization for Explainability", arXiv:2211.10154.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.gradients.cams import last_map_address
from ..engine.intervals import Interval, bootstrap_mean_interval
from ..engine.linear.factors import Factorization, Factors, fit_factors
from ..engine.output_change import output_change_unit_text
from ..engine.randomized import randomize_all_layers
from ..engine.read.edits import resolve_target
from ..engine.read.examples import indexed_examples
from ..engine.read.features import default_feature_layer
from ..engine.read.unit_rows import UnitRowLayout
from ..engine.rectangle import Rectangle
from ..engine.results import ResultMixin
from ..engine.rows import evenly_spaced_indices
from ..errors import DataError, InputError, LayerError, ModelError, OutputError
from ..inputs.pixels import Pixels
from ..model.state import outside_callers_modes
from ..objectives import Objective, direction
from ..parameters import BatchSize, Data, LayerAddress, MaxExamples, Seed
from ..settings import Above, AtLeast, AtMost, Unit, check_settings
from ..validation import valid_seed
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._classes import ClassSelection, random_card_examples, resolve_class_numbers
from ._crops import crop_grid, enlarged_crop, read_crop_means
from ._importance import ConceptAmounts
from ._rebuild import EvaluatedExamples, mean_rebuild, random_rebuilds, resolve_inner_layer
from ._rebuild import Faithfulness as Faithfulness

DEFAULT_CROP_SIDE_FRACTION = 0.5
N_RETAINED_EXAMPLES = 8  # crops, or examples, of a concept that the result carries
MIN_EXAMPLES = 4  # half to find concepts in, half to evaluate them on
# Examples of all classes, evenly spread, whose mean activation is what ablation leaves
MAX_MEAN_ACTIVATION_EXAMPLES = 256
MIN_ADVANTAGE_NATS = 0.02  # nats: less than that tells the label's probability from itself by less than 2 %
MIN_HELD_OUT_EXAMPLES_FOR_VERDICT = 8  # examples, from which a verdict is given


@dataclass(frozen=True, eq=False, repr=False)
class DiscoveredConcept(ResultMixin):
    """One direction of a layer, and what it decides.

    Attributes:
        direction: (C,) the value of each unit.
        importance: Total Sobol index: the share of the score's variance that is lost without the concept, interactions
            counted in full; with its interval over examples and masks.
        sensitivity: The derivative of the score in the concept's share, at what it is: its sign says which way.
        example_index: (E,) the examples with the most of it, in the data, the most first.
        amount: (E,) how much of it the crops have.
        crops: Where the crops lie in the examples; empty where whole examples were taken.
        images: (E, C, H, W) the crops, enlarged to the model's size; None for inputs that are no images.
    """

    direction: Tensor
    importance: Interval
    sensitivity: Interval
    example_index: Tensor
    amount: Tensor
    crops: tuple[Rectangle, ...]
    images: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class DiscoveredConcepts(ResultMixin):
    """The concepts of a layer, the most important first, with what they rebuild of the model's answers.

    Attributes:
        concepts: One `DiscoveredConcept` per direction.
        faithfulness: What is left of the model's answers with the layer rebuilt from them.
        twin: The same for the model with random weights; None where that was not tested.
        layer: The layer's address.
        factorization: "nmf", "ica" or "pca".
        unit: Of the outputs' change.
        unit_axis: Axis of the layer's units.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    concepts: tuple[DiscoveredConcept, ...]
    faithfulness: Faithfulness
    twin: Faithfulness | None
    layer: str
    factorization: Factorization
    unit: str
    unit_axis: int
    classes: tuple[str, ...] = ()

    def summary_lines(self) -> Iterator[str]:
        yield from super().summary_lines()
        for k, concept in enumerate(self.concepts):
            share, direction_text = concept.importance, "rises" if concept.sensitivity.mean > 0 else "falls"
            yield (
                f"concept {k} of {self.layer}: importance {share.mean:.2f} ({share.low:.2f} to {share.high:.2f}), the "
                f"score {direction_text} with it"
            )

    def objective(self, k: int) -> Objective:
        """The k-th concept's direction as an objective, for attribution and synthesis: the mean over positions."""
        if self.unit_axis != 1:
            raise LayerError(f"{self.layer!r} has its units on axis {self.unit_axis}; a direction needs them on axis 1")
        return direction(self.layer, self.concepts[k].direction)

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where the concepts carry the labels better than random directions do, which random weights do not."""
        own, twin = self._advantages
        if own is None or twin is None:
            return NOT_TESTED_CLAIM
        return PASS if own.low > max(MIN_ADVANTAGE_NATS, twin.high, -twin.low) else FAIL

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        own, twin = self._advantages
        if own is None or twin is None:
            return self._not_tested_reason
        text = (
            f"rebuilt from {len(self.concepts)} concepts, the model gives the labels {_nats_text(own)} more than from "
        )
        text += f"as many random directions; with random weights {_nats_text(twin)}"
        if self.verdict == PASS:
            return text
        which = "directions do" if own.low <= MIN_ADVANTAGE_NATS else "weights do"
        return f"{text}: random {which} as well"

    @property
    def _advantages(self) -> tuple[Interval | None, Interval | None]:
        if len(self.faithfulness.concepts.change) < MIN_HELD_OUT_EXAMPLES_FOR_VERDICT:
            return None, None
        return self.faithfulness.advantage, None if self.twin is None else self.twin.advantage

    @property
    def _not_tested_reason(self) -> str:
        if (n := len(self.faithfulness.concepts.change)) < MIN_HELD_OUT_EXAMPLES_FOR_VERDICT:
            return f"{n} held-out examples are too few to test on"
        if not self.faithfulness.random:
            return "no random directions were drawn to compare with"
        if self.faithfulness.accuracy is None:
            return "the data have no labels, so that what random weights answer cannot be told from what was learned"
        return "the model was not compared with one of random weights"


def _nats_text(interval: Interval) -> str:
    return f"{interval.mean:.3g} nats (90% interval {interval.low:.2g} to {interval.high:.2g})"


@card(
    name="Discovered concepts",
    source="Ghorbani et al. 2019, arXiv:1902.03129 (ACE); Fel et al. 2023, arXiv:2211.10154 (CRAFT)",
    shows="Which few directions of a layer rebuild the model's answers, what in the inputs has them, how much each "
    "decides.",
    does_not_show="That a direction means to the model what its crops have in common to you.",
    example=lambda method, box, x, y: method(
        box, random_card_examples(box, 9), factorization="pca", n_concepts=2, n_masks=2, n_random=1, with_twin=False
    ),
    exempt={
        "rows": "its concepts are of all examples together",
        "awkward: checkpointed_reentrant": "there it takes another layer by default, as no maps are found",
    },
    runs=lambda s: 10 + s["n_masks"] * (s["n_concepts"] + 2) + 2 * s["n_random"],
    order=5,
)
@outside_callers_modes
def discover(
    box: Box,
    data: Data,
    layer: LayerAddress = None,
    classes: ClassSelection = None,
    *,
    factorization: Annotated[Factorization | None, "How the activations are factored."] = None,
    n_concepts: Annotated[int, AtLeast(1), Unit("concepts"), "Number of concepts."] = 10,
    crop_size: Annotated[
        float | None, Above(0), AtMost(1), Unit("of each side"), "Size of the crops of an image; 1: no crops."
    ] = None,
    n_masks: Annotated[int, AtLeast(2), Unit("masks"), "Masks of each of two samples for the Sobol indices."] = 32,
    n_evaluated: Annotated[int, AtLeast(2), Unit("examples"), "Largest number of held-out examples."] = 64,
    n_random: Annotated[int, AtLeast(0), Unit("draws"), "Sets of as many random directions."] = 10,
    with_twin: Annotated[bool, "Compare with the model with random weights."] = True,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> DiscoveredConcepts:
    """Find a layer's concepts by factoring its activations of image crops, and measure what they decide.

    To see what a model goes by where nobody has named it: each concept is shown by the crops with the most of it. For
    concepts that you can give examples of take `tcav`, for many small features `dictionary`.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. Half of them gives the concepts, which are
            evaluated on the other half. With labels there is a verdict.
        layer: Address of the layer, as `box.layers` lists them. None: the last maps that the answer depends on, or else
            the input of the last layer with parameters.
        classes: The classes to look at, by number or name. Examples that are predicted as one of them are taken. None:
            all.
        factorization: How the activations are factored. "nmf": parts that are added, of activations that are never
            negative; "ica": independent directions; "pca": those of the largest variance. None: "nmf" where it can,
            else "ica".
        n_concepts: Number of concepts.
        crop_size: Size of the crops of an image; 1: no crops. They overlap by half, and are enlarged to the model's
            size. None: half of each side where the inputs are images and the layer has positions, else no crops.
        n_masks: Masks of each of two samples for the Sobol indices. Best a power of 2. With 32, a 90 % interval
            holds the index in 9 of 10 draws; with 8, in 8 of 10.
        n_evaluated: Largest number of held-out examples. They are evenly spread over the held-out half.
        n_random: Sets of as many random directions. They are the control of the concepts; 0 leaves it out.
        with_twin: Compare with the model with random weights. False leaves the verdict open.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `DiscoveredConcepts`: `concepts` with direction, importance, sensitivity and crops; the `faithfulness` of the
        model's answers rebuilt from them, beside mean ablation and random directions; a `verdict` with its `reason`.

    Raises:
        DataError: for fewer than 4 examples, or none of the classes.
        InputError: for negative activations where "nmf" was asked for, more concepts than the data allow, crops of
            inputs that are no images.
        LayerError: for an unknown layer, or one without positions where crops need them.
        OutputError: for a model without classes that exclude one another.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.concepts.discover(box, ub.data.digits("train").first(100), n_masks=8)
        >>> result.layer, result.factorization, len(result.concepts), result.verdict
        ('relu2:relu#0', 'nmf', 10, 'pass')

    Source:
        Fel et al. 2023, arXiv:2211.10154: NMF of the mean activations of crops (section 3.1), total Sobol indices of
        the concepts' masks by Jansen's estimator (section 3.3), without the recursion to earlier layers. Deviations:
        masks are one Sobol sequence for all examples; intervals are bootstrapped over examples and masks; the index is
        of the predicted class's logit. The sensitivity is the derivative in the mask at 1. Controls and verdict are our
        own: the logarithm of the label's probability, against as many random directions around the mean, and against
        the same with random weights.
    """
    check_settings(discover, locals())
    box.require_class_scores("discover", exclusive=True)
    seed = valid_seed(seed)
    x, labels, dataset_rows = indexed_examples(box, data, max_examples)
    reference = x[evenly_spaced_indices(len(x), len(x) if box.batch_dependent else MAX_MEAN_ACTIVATION_EXAMPLES)]
    rows = _rows_predicted_as_classes(box, x, classes, batch_size)
    x, labels = x[rows], None if labels is None else labels.cpu()[rows]
    unit_rows = resolve_inner_layer(box, layer, _default_concept_layer, "discover")
    crops = _crops(box, unit_rows, x, crop_size)
    order = torch.randperm(len(x), generator=rng.keyed_generator(rng.CPU, "discover", seed))
    fitted, held_out = order[: len(x) // 2].sort().values, order[len(x) // 2 :].sort().values
    held_out = held_out[evenly_spaced_indices(len(held_out), len(x) if box.batch_dependent else n_evaluated)]
    tested = EvaluatedExamples(box, x[held_out], None if labels is None else labels[held_out], batch_size)
    search = _ConceptSearch(unit_rows, crops, x[fitted], reference, tested, n_random, seed)
    activations = search.read_fitted_activations()  # (F, G, C)
    kind = factorization or ("nmf" if bool((activations >= 0).all()) else "ica")
    factors = fit_factors(activations.flatten(0, 1), kind, n_concepts, seed)
    concepts = search.concepts(activations, factors, dataset_rows[rows[fitted]], n_masks)
    twin = search.faithfulness_with_random_weights(kind, n_concepts) if with_twin else None
    return DiscoveredConcepts(
        concepts, search.faithfulness(activations, factors), twin, unit_rows.address, kind,
        output_change_unit_text(box), unit_rows.axis, box.classes,
    )  # fmt: skip


def _rows_predicted_as_classes(box: Box, x: Tensor, classes: Any, batch_size: BatchSize) -> Tensor:
    """Indices of the inputs that are predicted as the classes. Raises DataError for too few."""
    rows = torch.arange(len(x))
    if classes is not None:
        predicted = box.predict(x, batch_size=batch_size).cpu()
        rows = torch.isin(predicted, torch.tensor(resolve_class_numbers(box, classes))).nonzero().flatten()
    if len(rows) < MIN_EXAMPLES:
        which = " that are predicted as these classes" if classes is not None else ""
        raise DataError(
            f"discover needs at least {MIN_EXAMPLES} examples{which}, to find concepts and to evaluate them; got "
            f"{len(rows)}"
        )
    return rows


def _default_concept_layer(box: Box) -> str:
    try:
        return last_map_address(box)
    except (LayerError, InputError):  # no maps, or no images
        return default_feature_layer(box)


def _crops(box: Box, layer: UnitRowLayout, x: Tensor, crop_size: float | None) -> tuple[Rectangle, ...]:
    """The crops of each image; none where whole inputs are taken. Raises InputError and LayerError."""
    is_image = isinstance(box.inputs, Pixels) and box.inputs.n_axes == 2
    if crop_size == 1 or (crop_size is None and not (is_image and layer.n_positions > 1)):
        return ()
    if not is_image:
        raise InputError(
            f"crops are of images (Pixels); this model takes {type(box.inputs).__name__}. Give crop_size=1 for "
            "concepts of whole inputs"
        )
    if layer.n_positions == 1:
        raise LayerError(
            f"{layer.address!r} has no positions, which concepts of crops need to be rebuilt at; take a layer that has "
            "them, or crop_size=1 for concepts of whole images"
        )
    return crop_grid(x.shape[-2], x.shape[-1], DEFAULT_CROP_SIDE_FRACTION if crop_size is None else crop_size)


@dataclass(frozen=True, eq=False)
class _ConceptSearch:
    """Concepts of one layer: where they are looked for, and what they are tested on."""

    layer: UnitRowLayout
    crops: tuple[Rectangle, ...]
    fitted: Tensor  # (F, ...) inputs
    reference: Tensor  # (R, ...) inputs of all classes
    tested: EvaluatedExamples
    n_random: int
    seed: int

    @property
    def box(self) -> Box:
        return self.tested.box

    def read_fitted_activations(self) -> Tensor:
        return read_crop_means(self.box, self.layer, self.fitted, self.crops, self.tested.batch_size)

    def concepts(
        self, activations: Tensor, factors: Factors, rows: Tensor, n_masks: int
    ) -> tuple[DiscoveredConcept, ...]:
        """The concepts, the most important first; `rows` (F,) are the indices of the fitted examples in the data."""
        tested = self.tested
        amounts = factors.encode(self.layer.read(self.box, tested.x, tested.batch_size))  # (M, P, K)
        concept_amounts = ConceptAmounts(self.box, self.layer, factors, tested.x, amounts, tested.batch_size)
        objective = resolve_target(self.box, None, tested.x, tested.batch_size)
        importance = concept_amounts.importance(objective, n_masks, self.seed)
        sensitivities = concept_amounts.sensitivities(objective)
        of_crops = factors.encode(activations)  # (F, G, K)
        return tuple(
            self._make_concept(factors.directions[k], importance[k], sensitivities[:, k], of_crops[..., k], rows)
            for k in sorted(range(len(importance)), key=lambda k: -importance[k].mean)
        )

    def _make_concept(
        self, direction: Tensor, importance: Interval, sensitivities: Tensor, of_crops: Tensor, rows: Tensor
    ) -> DiscoveredConcept:
        """One concept with the best crop of each of the examples that have most of it; amounts (F, G)."""
        amount, crop = of_crops.max(1)
        top = amount.argsort(descending=True, stable=True)[:N_RETAINED_EXAMPLES].cpu()
        crops = tuple(self.crops[g] for g in crop[top].tolist()) if self.crops else ()
        dtype = self.box.dtype
        return DiscoveredConcept(
            direction.to(dtype), importance, bootstrap_mean_interval(sensitivities[:, None]), rows[top],
            amount[top].to(dtype), crops, self._concept_images(top, crops),
        )  # fmt: skip

    def _concept_images(self, top: Tensor, crops: Sequence[Rectangle]) -> Tensor | None:
        if not isinstance(self.box.inputs, Pixels):
            return None
        x = self.fitted[top]
        if not crops:
            return x
        return torch.cat([enlarged_crop(image[None], crop) for image, crop in zip(x, crops, strict=True)])

    def faithfulness(self, activations: Tensor, factors: Factors | None) -> Faithfulness:
        """What is left of the answers with the layer rebuilt from the factors; None: from nothing but the mean."""
        rows = self.layer.read(self.box, self.tested.x, self.tested.batch_size)  # (M, P, C)
        mean = self.layer.read_means(self.box, self.reference, self.tested.batch_size).mean((0, 1))  # (C,)
        ablate = mean_rebuild(mean)
        rebuild = ablate if factors is None else lambda h: factors.decode(factors.encode(h))
        n = 0 if factors is None else len(factors.directions)
        random = random_rebuilds(mean, n, self.n_random, self.seed)
        concepts, ablated, *others = self.tested.rebuilt(self.layer, [rebuild, ablate, *random])
        error, total = (rows - rebuild(rows)).square().sum(), (rows - mean).square().sum()
        explained = 1 - float(error / total) if float(total) else 0.0
        return Faithfulness(explained, concepts, ablated, tuple(others), self.tested.accuracy())

    def faithfulness_with_random_weights(self, kind: Factorization, n: int) -> Faithfulness | None:
        """The same for the model with random weights; None where it cannot be copied."""
        try:
            box = randomize_all_layers(self.box, rng.derive_seed("twin", self.seed))
        except (ModelError, OutputError):
            return None
        tested = EvaluatedExamples(box, self.tested.x, self.tested.labels, self.tested.batch_size)
        twin = replace(self, tested=tested)
        activations = twin.read_fitted_activations()
        return twin.faithfulness(activations, _factors_or_none(activations.flatten(0, 1), kind, n, self.seed))


def _factors_or_none(h: Tensor, kind: Factorization, n: int, seed: int) -> Factors | None:
    """As many factors as activations with random weights allow, which may vary in fewer directions or not at all."""
    kind = "pca" if kind == "nmf" and bool((h < 0).any()) else kind
    rank = int(torch.linalg.matrix_rank(h - h.mean(0)))
    return fit_factors(h, kind, min(n, rank), seed) if rank else None
