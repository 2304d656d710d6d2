"""What dissection finds: detectors, layer by layer, beside twins in which nothing was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..engine.results import ResultMixin
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade

SIGNIFICANCE_LEVEL = 0.05
MAX_LISTED_UNITS = 5


@dataclass(frozen=True, eq=False, repr=False)
class DetectorExamples(ResultMixin):
    """The examples on which a unit is largest, with its mask and its concept's.

    Attributes:
        unit: The unit.
        images: (E, C, H, W) the images, the largest activation first.
        unit_masks: (E, H, W) bool, where the unit is above its threshold.
        concept_masks: (E, H, W) bool, where its concept is.
    """

    unit: int
    images: Tensor
    unit_masks: Tensor
    concept_masks: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Twins(ResultMixin):
    """What was found in the same way where nothing was learned: random models, or random bases of the layer.

    Attributes:
        best_iou: (R, K) the IoU of the best unit for each concept in each twin; 0 for a concept that is no unit's.
        n_detectors: (R,) the number of detectors in each.
        n_concepts: (R,) the number of concepts that they detect.
    """

    best_iou: Tensor
    n_detectors: Tensor
    n_concepts: Tensor

    @classmethod
    def of(cls, ious: Sequence[Tensor], min_iou: float, n_concepts: int, dtype: torch.dtype) -> Twins:
        """Of the IoU (U, K) of each twin."""
        if not ious:
            return cls(torch.zeros(0, n_concepts, dtype=dtype), *torch.zeros(2, 0, dtype=torch.long))
        best = torch.stack([best_iou_per_concept(iou) for iou in ious])
        return cls(best, torch.stack([(iou.amax(1) > min_iou).sum() for iou in ious]), (best > min_iou).sum(1))

    @property
    def has_enough_twins(self) -> bool:
        """Whether there are as many twins as the level of 5 % needs."""
        return 1 / (1 + len(self.best_iou)) <= SIGNIFICANCE_LEVEL

    def ratios(self, iou: Tensor, min_iou: float) -> tuple[Tensor, Tensor]:
        """How many times its concept's chance level each unit of IoU (U, K) reaches (U,); the same of each twin (R,).

        The level is the mean of the best units' IoU, the model counted among the twins: by chance each of them is as
        likely to have the largest ratio.
        """
        own = best_iou_per_concept(iou)[None]
        level = torch.cat([own, self.best_iou]).mean(0).clamp_min(max(min_iou, 1e-9))  # (K,)
        value, concept = iou.max(1)
        return value / level[concept], (self.best_iou / level).amax(1)

    def p_value(self, iou: Tensor, min_iou: float) -> float:
        """The share of models whose best unit reaches as large a ratio, the model itself counted among them."""
        units, twins = self.ratios(iou, min_iou)
        return (1 + int((twins >= units.max()).sum())) / (1 + len(twins))

    def exceeds_twins(self, iou: Tensor, min_iou: float) -> Tensor:
        """(U,) whether a unit's ratio is beyond what a twin's best unit reaches, at 5 % for all units together."""
        units, twins = self.ratios(iou, min_iou)
        n_above = int(SIGNIFICANCE_LEVEL * (1 + len(twins)) + 1e-9) - 1
        return units > twins.sort(descending=True).values[n_above]


def best_iou_per_concept(iou: Tensor) -> Tensor:
    """(K,) the largest IoU (U, K) of the units of which it is the concept; 0 where there is none."""
    value, concept = iou.max(1)
    return torch.zeros(iou.shape[1], dtype=iou.dtype).scatter_reduce(0, concept, value, "amax")


@dataclass(frozen=True, eq=False, repr=False)
class LayerDissection(ResultMixin):
    """The units of one layer against the concepts, and its twins.

    Attributes:
        layer: The layer's address.
        iou: (U, K) intersection over union of each unit's mask and each concept's, over all examples.
        threshold: (U,) the activation above which the quantile of a unit's values lies.
        names: The names of the concepts K.
        min_iou: The IoU above which a unit counts as a detector.
        random: The same layer of models with random weights.
        rotated: Randomly rotated bases of this layer.
        shown: Examples of the units with the largest IoU; those beyond chance come first.
    """

    layer: str
    iou: Tensor
    threshold: Tensor
    names: tuple[str, ...]
    min_iou: float
    random: Twins
    rotated: Twins
    shown: tuple[DetectorExamples, ...] = ()

    @property
    def concept(self) -> Tensor:
        """(U,) the concept with the largest IoU of each unit."""
        return self.iou.argmax(1)

    @property
    def detectors(self) -> Tensor:
        """(D,) the units whose largest IoU is above `min_iou`, the largest first."""
        best = self.iou.amax(1)
        order = best.argsort(descending=True, stable=True)
        return order[best[order] > self.min_iou]

    @property
    def concepts_detected(self) -> tuple[str, ...]:
        """The concepts that at least one unit detects: the unique detectors of the paper."""
        return tuple(self.names[k] for k in sorted({*self.concept[self.detectors].tolist()}))

    @property
    def beyond_chance(self) -> Tensor:
        """(B,) the detectors that no twin's best unit equals, at 5 % for all units together; none without 19 twins."""
        units, tested = self.detectors, [t for t in (self.random, self.rotated) if len(t.best_iou)]
        if not self.random.has_enough_twins or not all(t.has_enough_twins for t in tested):
            return units[:0]
        is_beyond = torch.stack([t.exceeds_twins(self.iou, self.min_iou) for t in tested]).all(0)
        return units[is_beyond[units]]

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where units are detectors beyond chance; "fail" where none is; "not tested" with too few twins."""
        if not len(self.detectors):
            return FAIL
        tested = [t for t in (self.random, self.rotated) if len(t.best_iou)]
        if any(t.has_enough_twins and not t.exceeds_twins(self.iou, self.min_iou).any() for t in tested):
            return FAIL
        if not self.random.has_enough_twins or not all(t.has_enough_twins for t in tested):
            return NOT_TESTED_CLAIM
        return PASS if len(self.beyond_chance) else FAIL

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence, from the twins."""
        n, of = len(self.detectors), f"of {len(self.iou)} units of {self.layer!r}"
        if not n:
            return f"none {of} overlaps a concept with an IoU above {self.min_iou:g}"
        found = f"{n} {of} are detectors (IoU above {self.min_iou:g}) of {len(self.concepts_detected)} concepts"
        twins = {"with random weights": self.random, "in rotated bases": self.rotated}
        counts = [
            f"{name} {float(t.n_detectors.double().mean()):.1f} are (the best unit: p = "
            f"{t.p_value(self.iou, self.min_iou):.2g})"
            for name, t in twins.items()
            if len(t.best_iou)
        ]
        return "; ".join([found, *counts, self._conclusion])

    @property
    def _conclusion(self) -> str:
        if self.verdict == NOT_TESTED_CLAIM:
            return "a level of 5 % needs at least 19 random twins"
        if self.verdict == PASS:
            units = ", ".join(map(str, self.beyond_chance[:MAX_LISTED_UNITS].tolist()))
            more = ", ..." * (len(self.beyond_chance) > MAX_LISTED_UNITS)
            return f"beyond chance: {len(self.beyond_chance)} (unit {units}{more})"
        if self.random.has_enough_twins and not self.random.exceeds_twins(self.iou, self.min_iou).any():
            return "no unit detects its concept better than those of random models: this picture is nothing"
        return "no unit detects its concept better than random directions of this layer: units are nothing special"


@dataclass(frozen=True, eq=False, repr=False)
class Dissection(ResultMixin):
    """Which units detect which concepts, layer by layer, and whether that is more than chance.

    Attributes:
        layers: A `LayerDissection` per layer, in the order asked for.
        names: The names of the concepts K.
        areas: (K,) each concept's share of all pixels.
        n_examples: Number of examples N.
        quantile: The share of a unit's values that is above its threshold.
        is_generator: Whether the images are the model's outputs.
    """

    returns: ClassVar[str] = "table"

    layers: tuple[LayerDissection, ...]
    names: tuple[str, ...]
    areas: Tensor
    n_examples: int
    quantile: float
    is_generator: bool = False

    @property
    def best(self) -> LayerDissection:
        """The layer whose units detect the most concepts; of equal ones that with the larger share of detectors."""
        return max(self.layers, key=lambda p: (len(p.concepts_detected), len(p.detectors) / len(p.iou)))

    @property
    def verdict(self) -> ClaimGrade:
        """The verdict of the best layer: one layer decides, so that many layers are not many chances."""
        return self.best.verdict

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        return self.best.reason

    @property
    def reachable_iou(self) -> Tensor:
        """(K,) the largest IoU that a unit with masks of the quantile's area can have with each concept."""
        area = self.areas.clamp_min(1e-12)
        return torch.minimum(area, torch.full_like(area, self.quantile)) / area.clamp_min(self.quantile)
