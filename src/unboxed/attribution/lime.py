"""LIME: a linear model of the score around one input, in which superpixels are there or not.

Ribeiro et al. 2016, "Why Should I Trust You?": Explaining the Predictions of Any Classifier, arXiv:1602.04938.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.control_variate import LEAST, Surrogate
from ..engine.perturb.estimators import ALPHA, Design, Local, Regression, local_model
from ..engine.perturb.masking import A_PLAYER, Game, beside, few, game, objective, probability, scores
from ..engine.perturb.masks import Draws, coin_flips
from ..engine.perturb.segments import Segments, share
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, mean_over_positions
from ..rng import derive_seed
from ..validation import check_seed, check_float, check_int

PLENTY = 4096  # masks that are scored by the surrogate alone


@dataclass(frozen=True, eq=False)
class Lime:
    map: Any  # (N, 1 or C, H, W), or as x came: each number bears the weight of its segment
    weights: Tensor  # (N, F) of the segments; zero beyond a row's own
    error: Tensor  # (N, F) standard errors of the weights, by the draw of masks; zero where all masks were run
    r2: Tensor  # (N,) how much of the score's weighted variance the linear model explains
    intercept: Tensor  # (N,)
    prediction: Tensor  # (N,) the linear model's score of x
    score: Tensor  # (N,) the model's own
    classes: Tensor | None  # (N,) that are explained; None where the target is an objective
    segments: Any  # (N, H, W), or as x came: the segment of each number


@dataclass(frozen=True, eq=False)
class LimeTop:
    classes: Tensor  # (N, T), the likeliest first
    explanations: tuple[Lime, ...]  # T


@dataclass(frozen=True)
class Settings:
    """Of the regression, checked."""

    n_samples: int
    kernel_width: float
    regression: Regression
    alpha: float
    n_features: int | None
    seed: int

    @classmethod
    def of(
        cls, n_samples: int, kernel_width: float, regression: Regression, alpha: float | None,
        n_features: int | None, seed: int,
    ) -> Settings:  # fmt: skip
        if regression not in ALPHA:
            raise InputError(f"regression is {', '.join(map(repr, ALPHA))}; got {regression!r}")
        alpha = ALPHA[regression] if alpha is None else check_float("alpha", alpha)
        if alpha < 0:
            raise InputError(f"alpha must be 0 or more; got {alpha}")
        features = None if n_features is None else check_int("n_features", n_features, minimum=1)
        width, seed = check_float("kernel_width", kernel_width, 0), check_seed(seed)
        return cls(check_int("n_samples", n_samples, minimum=2), width, regression, alpha, features, seed)

    @property
    def most(self) -> int:
        """Segments by default."""
        return max(1, self.n_samples // A_PLAYER)

    def draws(self, played: Game) -> list[Draws]:
        """The masks of each row. Raises InputError where they are too few to tell the segments apart."""
        least = played.players.most + 2
        if self.n_samples < least:
            said = f"{least - 2} segments take n_samples of {least} or more; got {self.n_samples}"
            raise InputError(f"{said}: take more, or larger segments")
        few(played, self.n_samples)
        own = {a: coin_flips(a, self.n_samples, self.seed) for a in set(played.counts)}
        return [own[a] for a in played.counts]


@card(
    name="LIME",
    source="Ribeiro et al. 2016, arXiv:1602.04938, sections 3.2 to 3.5",
    shows="Which parts of the input speak for this answer and which against it, with the error of each weight.",
    does_not_show="More than a linear model can: where R² is low, parts work together and the weights say little.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", share(box, 3)), n_samples=48),
    exempt={
        "one look": "it runs the model once for each mask drawn",
        "draws of rows": "masks are drawn once for all rows with as many segments, so that rows can be compared",
    },
)
def lime(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    segments: Segments = None,
    n_samples: int = 1000,
    kernel_width: float = 0.25,
    regression: Regression = "ridge",
    alpha: float | None = None,
    n_features: int | None = None,
    on: Literal["probability", "score"] | None = None,
    baseline: Baseline = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Lime:
    """The weight of each segment in a linear model of the score, fitted to x with segments hidden at random.

    `segments` (see `engine.perturb.segments`) are by default a column each, and quickshift superpixels, as in the lime
    package; where there are more than n_samples / 4 of these, SLIC superpixels or squares. The map has a segment's
    whole weight on each of its pixels, in the unit of the score. Masks keep each segment with probability 1/2; they
    weigh sqrt(exp(-d^2 / kernel_width^2)), d being the cosine distance to the mask of all, and `alpha` is the ridge's
    penalty (1 by default, as in the package) or the lasso's (0.001). `n_features` fits once more with only the
    heaviest. `on="probability"` explains the class's probability, the default where target means a class; "score"
    explains what target means by itself. `baseline="segment"` hides a segment by its own mean, as the package does.

    What is estimated is the package's weighted regression, with less noise. Masks are drawn together: each is by itself
    drawn as before, all of them are an orthogonal array (and all subsets, where they are no more than n_samples).
    Segments in which x is the baseline, which can't matter to the model, are summed over. And what bends in the score
    is learned from the masks run and taken out as a control variate (see `engine.perturb.control_variate`). The model
    runs at most n_samples times a row.

    Errors are the jackknife's over pairs of masks (see `engine.perturb.standard_errors`), about the same regression on
    all subsets, x itself counting as one mask in n_samples; with the lasso, given its choice of segments. An
    UnboxedWarning tells of fewer than 4 samples for each segment that hides something. Raises InputError where
    n_samples is below the number of segments + 2.
    """
    settings = Settings.of(n_samples, kernel_width, regression, alpha, n_features, seed)
    x = box.validate_inputs(x)
    score, classes = objective(box, target, x, batch_size, on)
    odds = classes is not None and on != "score"
    played = game(box, x, segments, baseline, default="quickshift", most=settings.most, seed=settings.seed, means=True)
    return _explained(played, [score], [classes], settings, odds, batch_size)[0]


def lime_top(
    box: Box,
    x: Tensor,
    top: int = 5,
    *,
    segments: Segments = None,
    n_samples: int = 1000,
    kernel_width: float = 0.25,
    regression: Regression = "ridge",
    alpha: float | None = None,
    n_features: int | None = None,
    baseline: Baseline = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> LimeTop:
    """The probabilities of each input's likeliest classes, explained in one set of runs. Settings as in `lime`."""
    settings = Settings.of(n_samples, kernel_width, regression, alpha, n_features, seed)
    if check_int("top", top, minimum=1) > box.n_outputs:
        raise InputError(f"the model has {box.n_outputs} classes; got top={top}")
    x = box.validate_inputs(x)
    p = box.probs(x, batch_size=batch_size)
    classes = mean_over_positions(p).topk(top, 1).indices  # (N, T)
    played = game(box, x, segments, baseline, default="quickshift", most=settings.most, seed=settings.seed, means=True)
    each = [probability(box, own) for own in classes.T]
    return LimeTop(classes, tuple(_explained(played, each, list(classes.T), settings, True, batch_size)))


def positive(result: Lime, n: int = 5) -> Tensor:
    """A mask (N, H, W) of the n segments that speak most for the answer; those that speak against it are left out.

    Raises InputError where the result is not of images.
    """
    if not isinstance(result, Lime) or not isinstance(result.segments, Tensor) or result.segments.ndim != 3:
        raise InputError("a mask is made of what lime says of images, superpixel by superpixel")
    best = result.weights.topk(min(check_int("n", n, minimum=1), result.weights.shape[1]), 1)
    chosen = torch.zeros_like(result.weights, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
    return chosen.gather(1, result.segments.flatten(1)).view(result.segments.shape)


def _explained(
    played: Game,
    each: Sequence[Objective],
    classes: Sequence[Tensor | None],
    settings: Settings,
    odds: bool,
    batch_size: BatchSize,
) -> list[Lime]:
    draws = settings.draws(played)
    found = scores(played, [d.masks for d in draws], each, batch_size)  # N of (U, T)
    known = {id(d): _learner(d, settings) for d in draws}
    counts = zip(draws, played.players.count, strict=True)
    designs = [Design.of(d, f, settings.kernel_width, known[id(d)]) for d, f in counts]
    fit = partial(
        local_model, regression=settings.regression, alpha=settings.alpha, most=settings.n_features, odds=odds
    )
    limes = []
    for t, own in enumerate(classes):
        ys = [v[:, t][d.at] for v, d in zip(found, draws, strict=True)]
        limes.append(_lime(played, [fit(d, y) for d, y in zip(designs, ys, strict=True)], ys, own))
    return limes


def _learner(draws: Draws, settings: Settings) -> tuple[Surrogate, Draws] | None:
    """What learns the score of masks, and masks to be scored by it alone; None where all masks are run, or too few."""
    if bool((draws.cluster < 0).all()) or len(draws.at) < LEAST:
        return None
    many = min(PLENTY, 16 * len(draws.at))
    return Surrogate(draws.z[1:]), coin_flips(
        draws.masks.shape[1], many, derive_seed("surrogate", settings.seed), once=False
    )


def _lime(played: Game, fits: list[Local], ys: list[Tensor], classes: Tensor | None) -> Lime:
    box, players = played.box, played.players
    weights, error = played.placed([f.weights for f in fits]), played.placed([f.error for f in fits])
    exists = torch.arange(players.most, device=box.device) < torch.tensor(players.count, device=box.device)[:, None]
    idle = torch.tensor([f.idle for f in fits]).to(weights)[:, None]
    weights = torch.where(exists & ~played.active, idle, weights)
    numbers = torch.tensor(
        [[f.r2, f.intercept, float(y[0])] for f, y in zip(fits, ys, strict=True)], dtype=torch.float64
    )
    r2, intercept, score = numbers.to(box.dtype).to(box.device).T
    shown = box.restore_structure(players.gathered(weights)), beside(box, players.of)
    return Lime(shown[0], weights, error, r2, intercept, intercept + weights.sum(1), score, classes, shown[1])
