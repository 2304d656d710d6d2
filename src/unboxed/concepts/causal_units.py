"""Causal units of a generator: which units draw a concept, found on some codes and tested on others.

Bau et al. 2019, "GAN Dissection: Visualizing and Understanding Generative Adversarial Networks", arXiv:1811.10597.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.read.examples import first_inputs
from ..engine.results import ResultMixin
from ..errors import DataError, InputError
from ..parameters import BatchSize, Data, MaxExamples, RequiredLayerAddress, Seed
from ..settings import AtLeast, AtMost, Unit, ValueRole, check_settings
from ..validation import valid_seed
from ._as_generator import run_card_example_on_generator
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._image_source import DecodeImages, ImageSource, image_source, layers_with_anchors
from ._interventions import Interventions, concept_positions
from ._segmenting import Segmentation, Segmenter
from ._unit_search import Effect, greedy_unit_weights, n_enough_units, optimize_unit_mask

SIGNIFICANCE_LEVEL = 0.05
MIN_IMAGES_WITH_CONCEPT = 8  # with the concept, of each half
MIN_REMOVED_SHARE = 0.25  # of the concept's pixels, so that units are said to draw it
N_RETAINED_EXAMPLES = 6
MAX_GREEDY_UNITS = 16

Concept = Annotated[str | int, ValueRole("str"), "The concept: one of the segmenter's names, or its index."]


@dataclass(frozen=True, eq=False, repr=False)
class CausalUnits(ResultMixin):
    """The units of a generator that draw a concept, and what becomes of the images without them.

    Attributes:
        layer: The layer's address.
        concept: The concept's name.
        names: The names of all concepts K.
        units: (S,) the units, the one with the largest weight first.
        weights: (U,) the optimized mask over all units; of the greedy search 1 for the first unit, less for later ones.
        value: (U,) what is inserted: the mean activation where the concept is.
        before: (K,) each concept's pixels in the tested images.
        ablated: (K,) with the units set to zero.
        inserted: (K,) with the units then set to `value` at the same positions.
        random_ablated: (R, K) with as many random units set to zero.
        disjoint: (K,) bool: which concepts never overlap with this one.
        n_tested: Number of codes that the figures are from; the units were chosen on as many others.
        images: (E, C, H, W) some of the tested images.
        images_ablated: (E, C, H, W) with the units set to zero.
        images_inserted: (E, C, H, W) with the units then inserted.
        images_random: (E, C, H, W) with as many random units set to zero.
    """

    returns: ClassVar[str] = "images"

    layer: str
    concept: str
    names: tuple[str, ...]
    units: Tensor
    weights: Tensor
    value: Tensor
    before: Tensor
    ablated: Tensor
    inserted: Tensor
    random_ablated: Tensor
    disjoint: Tensor
    n_tested: int
    images: Tensor
    images_ablated: Tensor
    images_inserted: Tensor
    images_random: Tensor

    @property
    def _k(self) -> int:
        return self.names.index(self.concept)

    @property
    def removed(self) -> float:
        """The share of the concept's pixels that is gone without the units."""
        return 1 - float(self.ablated[self._k] / self.before[self._k])

    @property
    def random_removed(self) -> Tensor:
        """(R,) that without as many random units."""
        return 1 - self.random_ablated[:, self._k] / self.before[self._k]

    @property
    def restored(self) -> float:
        """The concept's pixels with the units inserted again, as a share of those at first."""
        return float(self.inserted[self._k] / self.before[self._k])

    @property
    def average_causal_effect(self) -> float:
        """The concept's pixels with the units inserted minus those without them, as a share of those at first."""
        return self.restored - 1 + self.removed

    @property
    def side_effects(self) -> dict[str, float]:
        """{concept: change of its pixels} with the units ablated, of the concepts that never overlap with this one."""
        change = self.ablated / self.before.clamp_min(1) - 1
        return {self.names[k]: float(change[k]) for k in self.disjoint.nonzero().flatten().tolist()}

    @property
    def p_value(self) -> float:
        """The share of random sets that remove as much, this one counted among them."""
        return (1 + int((self.random_removed >= self.removed).sum())) / (1 + len(self.random_removed))

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where the units remove the concept, and random ones do not; "fail" where they do as well, or nothing
        is removed; "not tested" with too few random sets."""
        if self.removed < MIN_REMOVED_SHARE:
            return FAIL
        if 1 / (1 + len(self.random_removed)) > SIGNIFICANCE_LEVEL:
            return NOT_TESTED_CLAIM
        return PASS if self.p_value <= SIGNIFICANCE_LEVEL else FAIL

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence."""
        n = len(self.units)
        text = (
            f"without {n} of {len(self.weights)} units of {self.layer!r}, {self.removed:.0%} of {self.concept!r} is "
            f"gone in {self.n_tested} images that they were not chosen on, and {self.restored:.0%} is there with them "
            "inserted"
        )
        if len(self.random_removed):
            by_chance = self.random_removed
            text += f"; without as many random ones {float(by_chance.mean()):.0%} on average (p = {self.p_value:.2g})"
        if self.verdict == NOT_TESTED_CLAIM:
            text += "; a level of 5 % needs at least 19 random sets"
        side = self.side_effects
        if not side:
            return text
        largest = max(side, key=lambda name: abs(side[name]))
        return f"{text}; of the concepts apart from it, {largest!r} changes most, by {side[largest]:+.0%}"


@card(
    name="Causal units",
    source="Bau et al. 2019, arXiv:1811.10597, section 3.2",
    shows="Which units of a generator draw a concept: what is gone without them, and comes back with them.",
    does_not_show="What else the units draw, beyond the concepts that the segmenter knows; or the only set of units "
    "that does it.",
    needs=("generator",),
    exempt={
        "computes less": "its example opens the model again, as a generator",
        "awkward": "the layer of its example differs between spellings of a model, and its images are the model's "
        "outputs as they are",
    },
    example=lambda method, box, x, y: run_card_example_on_generator(method, box),
    order=42,
)
def causal_units(
    box: Box,
    data: Data,
    concept: Concept,
    layer: RequiredLayerAddress,
    segmenter: Segmenter = None,
    *,
    search: Annotated[Literal["mask", "greedy"], "How the units are found."] = "mask",
    n_units: Annotated[int | None, AtLeast(1), Unit("units"), "Number of units that are chosen."] = None,
    min_coverage: Annotated[
        float, AtLeast(0), AtMost(1), "Share of its surroundings that the concept covers where a position is changed."
    ] = 0.2,
    keep: Annotated[Sequence[str] | None, "Concepts that are to stay as they are."] = None,
    penalty: Annotated[float, AtLeast(0), "Weight of the mask's norm: more of it chooses fewer units."] = 0.1,
    n_steps: Annotated[int, AtLeast(1), Unit("steps"), "Steps of the mask's optimization."] = 40,
    n_random: Annotated[int, AtLeast(0), Unit("sets"), "Random sets of as many units."] = 19,
    decode: DecodeImages = None,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> CausalUnits:  # fmt: skip
    """Which units of a generator draw a concept: ablated, it is gone; inserted, it comes back; random ones do neither.

    `dissect` shows where units are active; this shows what they do. On half of the codes the units are chosen, on the
    other half they are tested.

    Args:
        box: The opened model: a generator, whose output is an image (N, 1 or 3, H, W), opened as "regression".
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. They are the generator's codes (N, ...).
        concept: The concept: one of the segmenter's names, or its index.
        layer: Address of the layer, as `box.layers` lists them.
        segmenter: Function from images (N, C, H, W) in [0, 1] to masks (K, N, H, W); its `names` name the concepts.
            Masks are bool, or numbers of which half or more is inside. None: `digit_concepts`, for images of one
            channel.
        search: How the units are found. "mask": a continuous mask over all units is optimized, as in the paper.
            "greedy": one unit after another is added, at most 16.
        n_units: Number of units that are chosen. None: the fewest that remove 80 % of the concept on the codes that
            they are chosen on, and no more than half of the layer.
        min_coverage: Share of its surroundings that the concept covers where a position is changed. Less reaches
            farther around the concept, which holes need; 0 is everywhere.
        keep: Concepts that are to stay as they are. None: all that never overlap with this one; an empty list is the
            paper's objective.
        penalty: Weight of the mask's norm: more of it chooses fewer units. The paper's lambda.
        n_steps: Steps of the mask's optimization.
        n_random: Random sets of as many units. 19 allow a level of 5 %.
        decode: Of a generator, the function from its output to images in [0, 1]. None: the output itself.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `CausalUnits`: the `units` with what they `removed` and what was `restored` on codes that they were not chosen
        on, the same of random sets, the `side_effects` on the other concepts, images before and after; and a `verdict`
        with its `reason`. "pass" where a quarter of the concept or more is gone, and hardly a random set removes as
        much.

    Raises:
        InputError: for a model that is no generator, an unknown concept, or a segmenter whose masks do not fit.
        LayerError: for an unknown layer, or one without positions on the image.
        DataError: for a concept that is in fewer than 8 images of each half.

    Example:
        >>> import torch, unboxed as ub
        >>> box = ub.load("zoo:digits-gan")
        >>> codes = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
        >>> result = ub.concepts.causal_units(box, codes, "upper left", "relu3")
        >>> result.removed > 0.6, result.restored > 0.6, result.verdict
        (True, True, 'pass')

    Source:
        Bau et al. 2019, section 3.2: units are ablated (set to zero) and inserted (set to their mean where the concept
        is) at positions P, and a mask alpha maximizes the average causal effect minus lambda times its norm (equation
        6). Deviations: P are the positions of the concept in each image, so that what is inserted replaces what was
        ablated; the effect is a share of the concept's area; its gradient is estimated by simultaneous perturbation,
        as the segmenter may be any function; what comes in addition to the concept as it was is no gain; and the change
        of other concepts is subtracted (`keep`). The test on other codes against random sets is our own.
    """
    check_settings(causal_units, locals())
    source, seed = image_source(box, decode, "causal_units"), valid_seed(seed)
    if not source.is_generator:
        raise InputError(
            "causal_units needs a generator, a model from codes to images; this one takes images (Pixels). Units of "
            "a classifier are set to zero by `ub.activations.ablation`"
        )
    x = first_inputs(box, data, max_examples)
    (mapped,) = layers_with_anchors(source, [layer], x, batch_size)
    segmentation = Segmentation.of(segmenter, source.images(x[:4], batch_size))
    k, half = segmentation.index(concept), len(x) // 2
    others = None if keep is None else torch.tensor([segmentation.index(name) for name in keep], dtype=torch.long)
    own, before, disjoint = _concept_masks_and_areas(source, segmentation, x, k, batch_size)
    _check_concept_presence(segmentation.names[k], before[:, k], half)
    positions = concept_positions(mapped, own, source.size, float(min_coverage)).to(x.device)
    whole = Interventions(source, segmentation, mapped, x, positions, batch_size)
    chosen_on, tested_on = whole.rows(slice(0, half)), whole.rows(slice(half, len(x)))
    others, value = disjoint.nonzero().flatten() if others is None else others, chosen_on.mean_activation()
    effect = Effect(chosen_on, k, others, value, before[:half], before[:half].mean(0))
    weights = _search_unit_weights(effect, mapped.n_units, search, n_units, n_steps, float(penalty), seed)
    order, n_weighted = weights.argsort(descending=True, stable=True), max(1, int((weights > 0).sum()))
    units = order[: n_units or n_enough_units(effect, order[:n_weighted])]
    return _test_units(tested_on, weights, units, value, before[half:], segmentation.names, k, disjoint, n_random, seed)


def _concept_masks_and_areas(
    source: ImageSource, segmentation: Segmentation, x: Tensor, k: int, batch_size: BatchSize
) -> tuple[Tensor, Tensor, Tensor]:
    """A concept's masks (N, H, W), all concepts' areas (N, K), and which are there and never overlap with it (K,)."""

    def read(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masks = segmentation.masks(images).cpu()  # (K, n, H, W)
        return masks[k], masks.sum((2, 3)).T.double(), (masks & masks[k]).flatten(1).any(1)

    own, areas, overlaps = zip(*source.apply_to_image_batches(x, read, batch_size), strict=True)
    before = torch.cat(areas)
    return torch.cat(own), before, before.any(0) & ~torch.stack(overlaps).any(0)


def _check_concept_presence(name: str, areas: Tensor, half: int) -> None:
    """Raise DataError for a concept with areas (N,) that is in too few images of a half."""
    counts = int((areas[:half] > 0).sum()), int((areas[half:] > 0).sum())
    if min(counts) < MIN_IMAGES_WITH_CONCEPT:
        raise DataError(
            f"the concept {name!r} is in {counts[0]} and {counts[1]} images of the two halves of {len(areas)} codes; "
            f"at least {MIN_IMAGES_WITH_CONCEPT} are needed in each: give more codes"
        )


def _search_unit_weights(
    effect: Effect, n_units: int, search: str, n_wanted: int | None, steps: int, penalty: float, seed: int
) -> Tensor:
    if search == "mask":
        return optimize_unit_mask(effect, n_units, steps, penalty, seed)
    return greedy_unit_weights(effect, n_units, min(n_wanted or MAX_GREEDY_UNITS, n_units))


def _test_units(
    tested_on: Interventions, weights: Tensor, units: Tensor, value: Tensor, before: Tensor, names: tuple[str, ...],
    k: int, disjoint: Tensor, n_random: int, seed: int,
) -> CausalUnits:  # fmt: skip
    """The figures on the codes that the units were not chosen on."""
    n_units, dtype = len(weights), tested_on.source.box.dtype
    generator = rng.keyed_generator(rng.CPU, "random units", seed)
    random = torch.stack([torch.randperm(n_units, generator=generator)[: len(units)] for _ in range(max(n_random, 1))])
    sets = torch.zeros(1 + len(random), n_units, dtype=torch.float64).scatter(1, torch.cat([units[None], random]), 1.0)
    ablated = torch.stack([tested_on.areas(units).sum(0) for units in sets[: 1 + n_random]])  # (1 + R, K)
    inserted = tested_on.areas(sets[0], value).sum(0)
    strongest = before[:, k].argsort(descending=True, stable=True)
    present = strongest[: int((before[:, k] > 0).sum())]
    shown = present[torch.linspace(0, len(present) // 2, N_RETAINED_EXAMPLES).long()]  # of the stronger half
    some = tested_on.rows(shown.to(tested_on.x.device))
    pictures = [some.images(s, v).cpu() for s, v in ((None, None), (sets[0], None), (sets[0], value), (sets[1], None))]
    return CausalUnits(
        tested_on.layer.address, names[k], names, units, weights.to(dtype), value.to(dtype), before.sum(0).long(),
        ablated[0].long(), inserted.long(), ablated[1:].long(), disjoint, len(before), *pictures,
    )  # fmt: skip
