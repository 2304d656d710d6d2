"""The verdict on a method's pictures of one model: can they be believed? With its figures and one sentence.

Three questions, after Adebayo et al. 2018 and Petsiuk et al. 2018: does the picture change when the upper half of what
the model has learned is taken out of it (randomization)? Is it empty for a model that says nothing (constant model)?
Does removing what it marks cost the score more than removing pixels at random (deletion)? The thresholds lie where the
methods part on the MNIST CNN (`benchmarks/results/randomization.json`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import Card
from ..engine.randomized import layers_with_weights, randomize_layers
from ..errors import InputError, UnboxedError
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_seed
from .controls import constant_model
from .deletion import PerturbationCurve, deletion
from .methods import Method, Target, compute_map, is_blank, resolve_target
from .perturbing import Score, feature_shape, random_maps
from .similarity import MapSimilarity, map_similarity

Grade = Literal["pass", "doubtful", "fail", "not made"]
GRADES: tuple[Grade, ...] = ("pass", "doubtful", "fail", "not made")

SAME_MAP_CORRELATION, SIMILAR_MAP_CORRELATION = (
    0.6,
    0.45,
)  # Spearman's rank correlation from which on two pictures count as one, and as alike
SIMILAR_MAP_SSIM = 0.45  # SSIM of magnitudes from which on they are strong at the same places
MAX_CONSTANT_SPREAD, NOTABLE_CONSTANT_SPREAD = (
    0.3,
    0.01,
)  # spread of the map of a model that says nothing, relative to the model's own map
MIN_REMOVAL_GAIN = (
    0.1  # by how much less of the score a map's order must leave than a random one, as a share of the latter
)
MIN_RANDOMIZED_PAIRS = 4  # of image and draw of new weights that a figure is the mean of, at least
DELETION_STEPS = 20  # of deletion
SQUARES_PER_SIDE = 14  # squares along an image's shorter side that are removed as one
REMOVAL_BASELINES = (
    "black",
    "blurred",
)  # what they become: the first by which random removal leaves something to judge by
ENOUGH_SCORE_LEFT, TOO_LITTLE_SCORE = 0.25, 0.1  # of the answer: what is enough to judge by, and what is too little


@dataclass(frozen=True)
class Verdict:
    """Of one method on one model; `figures` are means over the images that it was asked for."""

    method: str
    grade: Grade
    reason: str  # in a few words
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def badge(self) -> str:
        """The grade as a reader meets it."""
        return {"pass": "passes", "doubtful": "doubtful", "fail": "fails", "not made": "not for this model"}[self.grade]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def rank(self) -> tuple[int, float]:
        """By grade, then by what is left of the score when what the map marks is removed."""
        score_left = self.figures.get("kept", 0.0)
        return GRADES.index(self.grade), 1.0 if math.isnan(score_left) else score_left


def verdict(
    box: Box,
    x: Any,
    method: Method,
    target: Target = None,
    *,
    map_: Tensor | None = None,
    min_pairs: int = MIN_RANDOMIZED_PAIRS,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Verdict:
    """Judge `method(box, x, target)`, a callable that gives maps, by the images (or rows) x.

    fail: the picture stays (signed rank correlation of .6 or more) once the upper half of the layers has random
    weights, is drawn for a model that ignores its input, or is the same everywhere, or removing what it marks costs no
    more than removing at random. doubtful: it stays in part (.45 or more), or where it is strong stays (SSIM of .45 or
    more), or removal leaves hardly less (by a tenth) than at random, or can't be judged. Else it passes. Images are
    removed in squares of about a fourteenth of a side, which turn black, or blurred where black leaves next to nothing.
    What the method refuses is "not made", with its words. `map_` is what it gave for x, if it was asked;
    `pairs` of image and draw of new weights are compared at least.
    Raises ModelError where the model can't be copied.
    """
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
        return Verdict(name, "not made", "refuses this model", _as_sentence(str(error)))
    if not bool(map_.isfinite().all()):
        return Verdict(name, "fail", "not finite", "Its map has NaN or infinite values.")
    figures = {**_mean_similarities(similarities), **_score_after_removal(box, x, map_, score, seed, batch_size)}
    figures |= {
        "flat": float(is_blank(map_).double().mean()),
        "constant": _constant_model_spread(box, x, method, score, map_),
    }
    return Verdict(name, *grade_figures(figures), figures)


def name_of(method: Method) -> str:
    """What a method is called: its card's name, whatever settings were given with it."""
    while isinstance(method, partial):
        method = method.func
    card = getattr(method, "card", None)
    return card.name if isinstance(card, Card) else getattr(method, "__name__", type(method).__name__)


def _randomize_upper_half(box: Box, n_copies: int, seed: int) -> list[Box]:
    """Copies whose upper half of the layers that hold weights has new ones, each by a draw of its own."""
    layers = layers_with_weights(box)
    upper = layers[len(layers) // 2 :]
    return [randomize_layers(box, upper, seed + i) for i in range(n_copies)] if upper else []


def _mean_similarities(similarities: list[MapSimilarity]) -> dict[str, float]:
    """Means over images and draws; NaN where no pair could be compared."""
    return {
        kind: float(torch.cat([getattr(s, kind) for s in similarities]).nanmean()) if similarities else float("nan")
        for kind in ("signed", "absolute", "ssim", "hog")
    }


def _score_after_removal(
    box: Box, x: Tensor, map_: Tensor, target: Any, seed: int, batch_size: BatchSize
) -> dict[str, float]:
    """How much of the score is left, on average, while parts are removed in the map's order, and in a random one.

    By sign or by magnitude, whichever tells more: some maps say how much a pixel adds, others how much it matters. NaN
    where the score is next to nothing from the start, or soon is, whatever is removed.
    """
    is_class_score = box.outputs != "regression" and not isinstance(target, Objective)
    score: Score | None = "logit" if box.outputs == "regression" and not isinstance(target, Objective) else None
    squares = _average_over_squares(map_)
    run: Callable[..., PerturbationCurve] = partial(
        deletion,
        box,
        x,
        target=target,
        score=score,
        n_steps=min(DELETION_STEPS, math.prod(feature_shape(box))),
        seed=seed,
        batch_size=batch_size,
    )
    orders = [_average_over_squares(random_maps(box, box.restore_structure(x), seed=seed + i)) for i in range(2)]
    for baseline in REMOVAL_BASELINES if isinstance(box.inputs, Pixels) else (None,):
        random_curves = [run(order, baseline=baseline) for order in orders]
        first, last = random_curves[0].curve[:, 0].mean(), random_curves[0].curve[:, -1].mean()
        final_score = torch.zeros_like(last) if is_class_score else last
        score_left_random = float(
            (torch.stack([c.auc for c in random_curves]).mean() - final_score) / (first - final_score)
        )
        if score_left_random > ENOUGH_SCORE_LEFT:
            break
    map_score = torch.stack(
        [run(squares, baseline=baseline, signed=signed).auc.mean() for signed in (True, False)]
    ).min()
    score_left = float((map_score - final_score) / (first - final_score))
    is_too_weak = is_class_score and (float(first) < TOO_LITTLE_SCORE or score_left_random < TOO_LITTLE_SCORE)
    return {
        "kept": math.nan if is_too_weak else score_left,
        "kept_random": math.nan if is_too_weak else score_left_random,
    }


def _average_over_squares(h: Any) -> Any:
    """Maps of images in squares, about a fourteenth of a side: single pixels removed from a photo are only noise."""
    if not isinstance(h, Tensor) or h.ndim != 4:
        return h
    side = max(1, round(min(h.shape[-2:]) / SQUARES_PER_SIDE))
    grid = max(1, h.shape[-2] // side), max(1, h.shape[-1] // side)
    coarse = torch.nn.functional.adaptive_avg_pool2d(h.sum(1, keepdim=True), grid)
    return torch.nn.functional.interpolate(coarse, h.shape[-2:], mode="nearest-exact")


def _constant_model_spread(box: Box, x: Tensor, method: Method, target: Any, map_: Tensor) -> float:
    """How much of a picture the method draws of models that say nothing, for the first input; NaN if not to be told."""
    first = target.rows(slice(0, 1)) if isinstance(target, Objective) else target[:1]
    try:
        controls = constant_model(box, x[:1], method, first, map_=map_[:1])
    except UnboxedError:  # nothing there depends on the input, and so says the method
        return 0.0
    spread = torch.cat([controls.constant_input, controls.constant_output])
    spread = spread[spread.isfinite()]
    return float(spread.max()) if len(spread) else float("nan")


def grade_figures(figures: Mapping[str, float]) -> tuple[Grade, str, str]:
    """The grade that figures deserve, and why: in a few words, and in a sentence."""
    signed, ssim, constant = figures["signed"], figures["ssim"], figures["constant"]
    score_left, score_left_random = figures["kept"], figures["kept_random"]
    removal = f"({score_left:.0%} of the answer is left on average, {score_left_random:.0%} if removed at random)"
    randomized_text = "once the weights of the model's upper half are random"
    if figures["flat"] > 0.5:
        return "fail", "empty", "Its picture is the same everywhere: it says nothing of this model."
    if score_left >= score_left_random:
        sentence = f"Removing what it marks costs the answer no more than removing at random {removal}."
        return "fail", "no better than chance", sentence
    if math.isnan(signed):
        sentence = "There are no weights to replace, or maps too even to compare, so half of the check is missing."
        return "doubtful", "half unchecked", sentence
    if signed >= SAME_MAP_CORRELATION:
        return (
            "fail",
            "same picture for random weights",
            (
                "It draws nearly the same picture (rank correlation "
                f"{signed:.2f}) {randomized_text}: it shows the input, not why "
                "this model answers so."
            ),
        )
    if constant > MAX_CONSTANT_SPREAD:
        sentence = f"It draws a picture ({constant:.0%} as strong) for a model that ignores its input, too."
        return "fail", "draws for a constant model", sentence
    if score_left > (1 - MIN_REMOVAL_GAIN) * score_left_random:
        sentence = f"Removing what it marks costs the answer hardly more than removing at random {removal}."
        return "doubtful", "little better than chance", sentence
    if signed >= SIMILAR_MAP_CORRELATION:
        sentence = (
            f"Much of its picture stays (rank correlation {signed:.2f}) {randomized_text}: that much is the input's."
        )
        return "doubtful", "much of it stays for random weights", sentence
    if ssim >= SIMILAR_MAP_SSIM:
        return (
            "doubtful",
            "its places follow the input",
            (
                f"Believe its signs, not its places: {randomized_text} the "
                f"signs change (rank correlation {signed:.2f}), but the map "
                f"is strong at the same places (SSIM {ssim:.2f}), which are the input's."
            ),
        )
    if constant > NOTABLE_CONSTANT_SPREAD:
        sentence = f"Some of its picture ({constant:.0%} as strong) is there for a model that ignores its input, too."
        return "doubtful", "hints for a constant model", sentence
    learned = f"It changes with what the model has learned (rank correlation {signed:.2f} {randomized_text})"
    if math.isnan(score_left):
        sentence = f"{learned}. Removal can't be judged: too little of this answer is left, whatever is removed."
        return "doubtful", "depends on the model; removal untold", sentence
    sentence = f"{learned}, and removing what it marks costs the answer more than removing at random {removal}."
    return "pass", "depends on the model; marks what matters", sentence


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
