"""The verdict on a method's pictures of one net: can they be believed? With its figures and one sentence.

Three questions, after Adebayo et al. 2018 and Petsiuk et al. 2018: does the picture change when the upper half of what
the net has learned is taken out of it (randomization)? Is it empty for a model that says nothing (constant model)? Does
removing what it marks cost the score more than removing pixels at random (deletion)? The thresholds lie where the
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

from ..arguments import whole
from ..box import Box
from ..cards import Card
from ..engine.untrained import randomized, weighted
from ..errors import UnboxedError
from ..inputs import Pixels
from ..net.batching import BatchSize
from ..objectives import Objective
from .controls import constant_model
from .deletion import Curve, deletion
from .methods import Method, Target, drawn, fixed
from .perturbing import Score, random_maps
from .similarity import Similarity, similarity

Grade = Literal["pass", "doubtful", "fail", "not made"]
GRADES: tuple[Grade, ...] = ("pass", "doubtful", "fail", "not made")

SAME, ALIKE = 0.6, 0.45  # Spearman's rank correlation from which on two pictures count as one, and as alike
STAYS = 0.45  # SSIM of magnitudes from which on they are strong at the same places
DRAWS, HINTS = 0.3, 0.01  # spread of the map of a model that says nothing, relative to the net's own map
BETTER = 0.1  # by how much less of the score a map's order must leave than a random one, as a share of the latter
PAIRS = 4  # of image and draw of new weights that a figure is the mean of, at least
N_STEPS = 20  # of deletion


@dataclass(frozen=True)
class Verdict:
    """Of one method on one net; `figures` are means over the images that it was asked for."""

    method: str
    grade: Grade
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def badge(self) -> str:
        """The grade as a reader meets it."""
        return {"pass": "passes", "doubtful": "doubtful", "fail": "fails", "not made": "not for this net"}[self.grade]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def rank(self) -> tuple[int, float]:
        """By grade, then by what is left of the score when what the map marks is removed."""
        return GRADES.index(self.grade), self.figures.get("kept", 0.0)


def verdict(
    box: Box,
    x: Any,
    method: Method,
    target: Target = None,
    *,
    map_: Tensor | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Verdict:
    """Judge `method(box, x, target)`, a callable that gives maps, by the images (or rows) x.

    fail: the picture stays (signed rank correlation of .6 or more) once the upper half of the layers has new weights,
    is drawn for a model that says nothing, or is the same everywhere, or removing what it marks costs no more than
    removing at random. doubtful: it stays in part (.45 or more), or where it is strong stays (SSIM of .45 or more), or
    removal leaves hardly less (by a tenth) than at random. Else it passes.
    What the method refuses is "not made", with its words. `map_` is what it gave for x, if it was asked;
    `pairs` of image and draw of new weights are compared at least.
    Raises ModelError where the net can't be copied.
    """
    x, seed = box.accept(x), whole("seed", seed)
    score, name = fixed(box, x, target), name_of(method)
    try:
        map_ = drawn(box, method, x, score) if map_ is None else map_
        others = [
            similarity(map_, drawn(other, method, x, score))
            for other in _without_the_top(box, -(-pairs // len(x)), seed)
        ]
    except UnboxedError as error:
        return Verdict(name, "not made", _sentence(str(error)))
    figures = {**_alike(others), **_kept(box, x, map_, score, seed, batch_size)}
    figures |= {"flat": float(_flat(map_).double().mean()), "constant": _constant(box, x, method, score, map_)}
    grade, said = judged(figures)
    return Verdict(name, grade, said, figures)


def name_of(method: Method) -> str:
    """What a method is called: its card's name, whatever settings were given with it."""
    while isinstance(method, partial):
        method = method.func
    card = getattr(method, "card", None)
    return card.name if isinstance(card, Card) else getattr(method, "__name__", type(method).__name__)


def _without_the_top(box: Box, draws: int, seed: int) -> list[Box]:
    """Copies whose upper half of the layers that hold weights has new ones, each by a draw of its own."""
    layers = weighted(box)
    upper = layers[len(layers) // 2 :]
    return [randomized(box, upper, seed + i) for i in range(draws)] if upper else []


def _alike(found: list[Similarity]) -> dict[str, float]:
    """Means over images and draws; NaN where no pair could be compared."""
    return {
        kind: float(torch.cat([getattr(s, kind) for s in found]).nanmean()) if found else float("nan")
        for kind in ("signed", "absolute", "ssim", "hog")
    }


def _kept(box: Box, x: Tensor, map_: Tensor, target: Any, seed: int, batch_size: BatchSize) -> dict[str, float]:
    """How much of the score is left, on average, while pixels are removed in the map's order, and in a random one.

    By sign or by magnitude, whichever tells more: some maps say how much a pixel adds, others how much it matters.
    """
    classes = box.outputs != "regression" and not isinstance(target, Objective)
    score: Score | None = "logit" if box.outputs == "regression" and not isinstance(target, Objective) else None
    cells = x[0, 0].numel() if isinstance(box.inputs, Pixels) else x[0].numel()
    run: Callable[..., Curve] = partial(
        deletion, box, x, target=target, score=score, n_steps=min(N_STEPS, cells), seed=seed, batch_size=batch_size
    )
    own = [run(map_), run(map_, signed=False)]
    chance = [run(random_maps(box, box.shaped(x), seed=seed + i)) for i in range(2)]
    of_own = torch.stack([c.auc.mean() for c in own]).min()
    of_chance = torch.stack([c.auc for c in chance]).mean()
    first, last = own[0].curve[:, 0].mean(), torch.zeros(()) if classes else own[0].curve[:, -1].mean()
    return {"kept": float((of_own - last) / (first - last)), "kept_random": float((of_chance - last) / (first - last))}


def _constant(box: Box, x: Tensor, method: Method, target: Any, map_: Tensor) -> float:
    """How much of a picture the method draws of models that say nothing, for the first input; NaN if not to be told."""
    first = target.rows(slice(0, 1)) if isinstance(target, Objective) else target[:1]
    try:
        found = constant_model(box, x[:1], method, first, map_=map_[:1])
    except UnboxedError:  # nothing there depends on the input, and so says the method
        return 0.0
    spread = torch.cat([found.blind, found.mute])
    spread = spread[spread.isfinite()]
    return float(spread.max()) if len(spread) else float("nan")


def judged(figures: Mapping[str, float]) -> tuple[Grade, str]:
    """The grade that figures deserve, and why, in one sentence."""
    signed, ssim, constant = figures["signed"], figures["ssim"], figures["constant"]
    kept, random = figures["kept"], figures["kept_random"]
    removal = f"({kept:.0%} of the answer is left on the way, {random:.0%} at random)"
    anew = "once the upper half of the net is drawn anew"
    if figures["flat"] > 0.5:
        return "fail", "Its picture is the same everywhere: it says nothing of this net."
    if kept >= random:
        return "fail", f"Removing what it marks costs the answer no more than removing at random {removal}."
    if math.isnan(signed):
        return (
            "doubtful",
            "Without weights to draw anew, or with maps too even to compare, half of the check is missing.",
        )
    if signed >= SAME:
        return "fail", (
            f"It draws nearly the same picture (rank correlation {signed:.2f}) {anew}: it shows the input, not why "
            "this net answers so."
        )
    if constant > DRAWS:
        return "fail", f"It draws a picture ({constant:.0%} as strong) for a model that says nothing, too."
    if kept > (1 - BETTER) * random:
        return "doubtful", f"Removing what it marks costs the answer hardly more than removing at random {removal}."
    if signed >= ALIKE:
        return (
            "doubtful",
            f"Much of its picture stays (rank correlation {signed:.2f}) {anew}: that much is the input's.",
        )
    if ssim >= STAYS:
        return "doubtful", (
            f"Believe its signs, not where it is strong: {anew} its signs change (rank correlation {signed:.2f}), but "
            f"where it is strong stays (SSIM {ssim:.2f}), for that follows the input."
        )
    if constant > HINTS:
        return (
            "doubtful",
            f"Some of its picture ({constant:.0%} as strong) is there for a model that says nothing, too.",
        )
    return "pass", (
        f"It changes with what the net has learned (rank correlation {signed:.2f} {anew}), and removing what it marks "
        f"costs the answer more than removing at random {removal}."
    )


def _flat(h: Tensor) -> Tensor:
    flat = h.flatten(1)
    return (flat == flat[:, :1]).all(1)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
