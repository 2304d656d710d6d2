"""The verdict on a method's maps of one model: can they be trusted? With its figures and one sentence.

Three tests, after Adebayo et al. 2018 and Petsiuk et al. 2018. Randomization: does the map change when the weights of
the upper half of the layers are randomized? Constant model: is the map empty where the output does not depend on the
input? Deletion: does removing what the map marks lower the score more than removing pixels at random? The thresholds
separate the methods on the MNIST CNN (`benchmarks/results/randomization.json`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card_of
from ..engine.randomized import layers_with_weights, randomize_layers
from ..errors import InputError, UnboxedError
from ..inputs.pixels import Pixels
from ..objectives import Objective
from ..parameters import BatchSize, Inputs, Seed, Target
from ..settings import AtLeast, Unit, check_settings
from ..validation import check_seed
from .controls import constant_model
from .deletion import PerturbationCurve, deletion
from .methods import MapOfX, Method, TestedMethod, compute_map, resolve_target
from .perturbing import Score, feature_shape, random_maps
from .similarity import MapSimilarity, is_constant, map_similarity

PASS: Final = "pass"
INCONCLUSIVE: Final = "inconclusive"
FAIL: Final = "fail"
NOT_APPLICABLE: Final = "not applicable"
Grade = Literal["pass", "inconclusive", "fail", "not applicable"]
GRADES: tuple[Grade, ...] = (PASS, INCONCLUSIVE, FAIL, NOT_APPLICABLE)  # the best first

SAME_MAP_CORRELATION = 0.6  # Spearman's rank correlation from which on two maps count as the same
SIMILAR_MAP_CORRELATION = 0.45  # and as similar
SIMILAR_MAP_SSIM = 0.45  # SSIM of magnitudes from which on two maps are strong at the same positions
MAX_CONSTANT_MODEL_SPREAD = 0.3  # spread of the map of a constant model, relative to that of the model's own map
NOTABLE_CONSTANT_MODEL_SPREAD = 0.01
MAX_CONSTANT_MAPS = 0.5  # fraction of the maps that may be the same everywhere
MIN_DELETION_GAIN = 0.1  # how much less of the score a map's order must leave than a random order, relatively
MIN_RANDOMIZED_PAIRS = 4  # pairs of image and randomization that a figure is the mean of, at least
DELETION_STEPS = 20
SQUARES_PER_SIDE = 14  # squares along an image's shorter side, each of which is removed at once
DELETION_BASELINES = ("black", "blurred")  # the first with which random deletion leaves enough of the score
ENOUGH_SCORE_LEFT, MIN_SCORE = 0.25, 0.1  # of the score: enough to compare by, and too little


@dataclass(frozen=True)
class Verdict:
    """The verdict on one method's maps of one model: a grade, its reason, and the figures it follows from.

    `figures` are means over the images: `signed`, `absolute`, `ssim` and `hog` compare maps before and after
    randomization; `deletion` and `deletion_random` are the areas under the deletion curves, in fractions of what can be
    lost; `constant_maps` is the fraction of maps that are the same everywhere; `constant_model` is the spread of the
    map of a constant model, relative to that of the model's own map.
    """

    method: str
    grade: Grade
    reason: str  # in a few words
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def badge(self) -> str:
        """The grade as a label: "passes"."""
        return {PASS: "passes", FAIL: "fails"}.get(self.grade, self.grade)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def rank(self) -> tuple[int, float]:
        """The sorting key: by grade, then by the area under the deletion curve."""
        auc = self.figures.get("deletion", 0.0)
        return GRADES.index(self.grade), 1.0 if math.isnan(auc) else auc


def verdict(
    box: Box,
    x: Inputs,
    method: TestedMethod,
    target: Target = None,
    *,
    map_: MapOfX = None,
    min_pairs: Annotated[
        int, AtLeast(1), Unit("pairs"), "Smallest number of pairs of image and randomization to compare."
    ] = MIN_RANDOMIZED_PAIRS,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Verdict:
    """Judge whether a method's maps of this model can be trusted: randomization, constant models, deletion.

    One call with one answer; for the figures layer by layer take `randomization`, for the curves `deletion`, to compare
    methods `rank_methods`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        map_: The method's map of x, where it is known already; None computes it.
        min_pairs: Smallest number of pairs of image and randomization to compare.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The `Verdict`. Its grade is "fail" where the map stays (rank correlation of .6 or more) when the upper half of
        the layers is randomized, is there for a constant model or is the same everywhere, or where removing what it
        marks lowers the score no more than removing at random; "inconclusive" where the map stays in part (.45 or more,
        or SSIM of .45 or more), deletion leaves hardly less (by a tenth) than at random, or cannot be judged; else
        "pass". It is "not applicable", with the error's text, where the method refuses the model.

    Raises:
        InputError: for a method that is not callable, or inputs, a target or settings that do not fit.
        ModelError: where the model cannot be copied.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> v = ub.checks.verdict(box, x, ub.attribution.guided_backprop)
        >>> v.grade, v.reason
        ('fail', 'same map for random weights')

    Source:
        Adebayo et al. 2018, arXiv:1810.03292, and Petsiuk et al. 2018, arXiv:1806.07421; the grades and thresholds are
        our own. Images are removed in squares of about a fourteenth of a side, which turn black, or blurred where black
        leaves next to nothing of the score.
    """
    check_settings(verdict, locals())
    x, seed = box.validate_inputs(x), check_seed(seed)
    if not callable(method):
        raise InputError(f"a method is a function (box, x, target) -> map; got {type(method).__name__}")
    score, name = resolve_target(box, x, target), name_of(method)
    try:
        map_ = compute_map(box, method, x, score) if map_ is None else map_
        similarities = [
            map_similarity(map_, compute_map(randomized_box, method, x, score))
            for randomized_box in _randomize_upper_half(box, -(-min_pairs // len(x)), seed)
        ]
    except UnboxedError as error:
        return Verdict(name, NOT_APPLICABLE, "refuses this model", _as_sentence(str(error)))
    if not bool(map_.isfinite().all()):
        return Verdict(name, FAIL, "not finite", "Its map has NaN or infinite values.")
    figures = {**_mean_similarities(similarities), **_deletion_figures(box, x, map_, score, seed, batch_size)}
    figures |= {
        "constant_maps": float(is_constant(map_).double().mean()),
        "constant_model": _constant_model_spread(box, x, method, score, map_),
    }
    return Verdict(name, *grade_figures(figures), figures)


def name_of(method: Method) -> str:
    """The method's name: its card's, whatever settings were given with `functools.partial`."""
    card = card_of(method)
    while isinstance(method, partial):
        method = method.func
    return card.name if card else getattr(method, "__name__", type(method).__name__)


# -- figures -----------------------------------------------------------------------------------------------------------


def _randomize_upper_half(box: Box, n_copies: int, seed: int) -> list[Box]:
    """Copies whose upper half of the layers with weights is randomized, each by its own draw."""
    layers = layers_with_weights(box)
    upper = layers[len(layers) // 2 :]
    return [randomize_layers(box, upper, seed + i) for i in range(n_copies)] if upper else []


def _mean_similarities(similarities: list[MapSimilarity]) -> dict[str, float]:
    """Means over images and randomizations; NaN where no pair could be compared."""
    return {
        kind: float(torch.cat([getattr(s, kind) for s in similarities]).nanmean()) if similarities else math.nan
        for kind in ("signed", "absolute", "ssim", "hog")
    }


def _deletion_figures(
    box: Box, x: Tensor, map_: Tensor, target: Any, seed: int, batch_size: BatchSize
) -> dict[str, float]:
    """Areas under the deletion curves of the map's order and of random orders, in fractions of what can be lost.

    The map is ranked by sign and by magnitude, and the better one counts: some maps say how much a pixel adds, others
    how much it matters. NaN where the score is next to nothing at the start, or soon is whatever is removed.
    """
    is_class_score = box.outputs != "regression" and not isinstance(target, Objective)
    score: Score | None = "logit" if box.outputs == "regression" and not isinstance(target, Objective) else None
    n_steps = min(DELETION_STEPS, math.prod(feature_shape(box)))
    run: Callable[..., PerturbationCurve] = partial(
        deletion, box, x, target=target, score=score, n_steps=n_steps, seed=seed, batch_size=batch_size
    )
    orders = [_average_over_squares(random_maps(box, box.restore_structure(x), seed=seed + i)) for i in range(2)]
    for baseline in DELETION_BASELINES if isinstance(box.inputs, Pixels) else (None,):
        random_curves = [run(order, baseline=baseline) for order in orders]
        first, last = random_curves[0].curve[:, 0].mean(), random_curves[0].curve[:, -1].mean()
        final_score = torch.zeros_like(last) if is_class_score else last
        random_auc = float((torch.stack([c.auc for c in random_curves]).mean() - final_score) / (first - final_score))
        if random_auc > ENOUGH_SCORE_LEFT:
            break
    squares = _average_over_squares(map_)
    aucs = [run(squares, baseline=baseline, signed=signed).auc.mean() for signed in (True, False)]
    auc = float((torch.stack(aucs).min() - final_score) / (first - final_score))
    is_too_weak = is_class_score and (float(first) < MIN_SCORE or random_auc < MIN_SCORE)
    return {
        "deletion": math.nan if is_too_weak else auc,
        "deletion_random": math.nan if is_too_weak else random_auc,
    }


def _average_over_squares(h: Any) -> Any:
    """Maps of images averaged over squares of about a fourteenth of a side: single removed pixels are only noise."""
    if not isinstance(h, Tensor) or h.ndim != 4:
        return h
    side = max(1, round(min(h.shape[-2:]) / SQUARES_PER_SIDE))
    grid = max(1, h.shape[-2] // side), max(1, h.shape[-1] // side)
    coarse = torch.nn.functional.adaptive_avg_pool2d(h.sum(1, keepdim=True), grid)
    return torch.nn.functional.interpolate(coarse, h.shape[-2:], mode="nearest-exact")


def _constant_model_spread(box: Box, x: Tensor, method: Method, target: Any, map_: Tensor) -> float:
    """The larger spread of the maps of both constant models, for the first input; NaN where there is none."""
    first = target.rows(slice(0, 1)) if isinstance(target, Objective) else target[:1]
    try:
        controls = constant_model(box, x[:1], method, first, map_=map_[:1])
    except UnboxedError:  # nothing there depends on the input, and the method says so
        return 0.0
    spread = torch.cat([controls.constant_input, controls.constant_output])
    spread = spread[spread.isfinite()]
    return float(spread.max()) if len(spread) else math.nan


# -- from figures to a grade -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """A grade with its reason, for figures of which `applies` is true; the sentence is a format of the figures."""

    applies: Callable[[Mapping[str, float]], bool]
    grade: Grade
    reason: str
    sentence: str


_DELETED = "({deletion:.0%} of the score is left on average, {deletion_random:.0%} if removed at random)"
_RANDOMIZED = "when the weights of the model's upper half are randomized"
_CHANGES = "It changes with what the model has learned (rank correlation {signed:.2f} " + _RANDOMIZED + ")"

_RULES = (  # the first that applies, the most serious first
    _Rule(
        lambda f: f["constant_maps"] > MAX_CONSTANT_MAPS,
        FAIL, "constant map", "Its map is the same everywhere: it says nothing about this model.",
    ),
    _Rule(
        lambda f: f["deletion"] >= f["deletion_random"],
        FAIL, "no better than random",
        f"Removing what it marks lowers the score no more than removing at random {_DELETED}.",
    ),
    _Rule(
        lambda f: math.isnan(f["signed"]),
        INCONCLUSIVE, "not randomized",
        "There are no weights to randomize, or maps too even to compare, so half of the check is missing.",
    ),
    _Rule(
        lambda f: f["signed"] >= SAME_MAP_CORRELATION,
        FAIL, "same map for random weights",
        f"Its map is nearly the same (rank correlation {{signed:.2f}}) {_RANDOMIZED}: it shows the input, not why this "
        "model predicts so.",
    ),
    _Rule(
        lambda f: f["constant_model"] > MAX_CONSTANT_MODEL_SPREAD,
        FAIL, "map for a constant model",
        "Its map is there ({constant_model:.0%} as strong) for a model that ignores its input, too.",
    ),
    _Rule(
        lambda f: f["deletion"] > (1 - MIN_DELETION_GAIN) * f["deletion_random"],
        INCONCLUSIVE, "little better than random",
        f"Removing what it marks lowers the score hardly more than removing at random {_DELETED}.",
    ),
    _Rule(
        lambda f: f["signed"] >= SIMILAR_MAP_CORRELATION,
        INCONCLUSIVE, "similar map for random weights",
        f"Much of its map stays (rank correlation {{signed:.2f}}) {_RANDOMIZED}: that much comes from the input alone.",
    ),
    _Rule(
        lambda f: f["ssim"] >= SIMILAR_MAP_SSIM,
        INCONCLUSIVE, "positions follow the input",
        f"Trust its signs, not its positions: {_RANDOMIZED} the signs change (rank correlation {{signed:.2f}}), but "
        "the map is strong at the same positions (SSIM {ssim:.2f}), which come from the input.",
    ),
    _Rule(
        lambda f: f["constant_model"] > NOTABLE_CONSTANT_MODEL_SPREAD,
        INCONCLUSIVE, "weak map for a constant model",
        "Some of its map ({constant_model:.0%} as strong) is there for a model that ignores its input, too.",
    ),
    _Rule(
        lambda f: math.isnan(f["deletion"]),
        INCONCLUSIVE, "depends on the model; no deletion test",
        f"{_CHANGES}. Deletion cannot be judged: too little of this score is left, whatever is removed.",
    ),
    _Rule(
        lambda f: True,
        PASS, "depends on the model; marks what matters",
        f"{_CHANGES}, and removing what it marks lowers the score more than removing at random {_DELETED}.",
    ),
)  # fmt: skip


def grade_figures(figures: Mapping[str, float]) -> tuple[Grade, str, str]:
    """The grade of these figures, and why: in a few words, and in a sentence."""
    rule = next(rule for rule in _RULES if rule.applies(figures))
    return rule.grade, rule.reason, rule.sentence.format(**figures)


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
