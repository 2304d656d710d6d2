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
from ..engine.perturb.control_variate import MIN_TRAINING_MASKS, Surrogate
from ..engine.perturb.estimators import DEFAULT_ALPHA, LocalModel, Regression, RegressionDesign, fit_local_model
from ..engine.perturb.masking import (
    MIN_SAMPLES_PER_FEATURE,
    Masking,
    class_probability,
    make_masking,
    masked_scores,
    resolve_objective,
    restore_segments,
    warn_few_samples,
)
from ..engine.perturb.masks import SampledMasks, bernoulli_masks
from ..engine.perturb.segments import Segments, square_side
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, mean_over_positions
from ..rng import derive_seed
from ..validation import check_float, check_int, check_seed

N_REFERENCE_MASKS = 4096  # masks that are scored by the surrogate alone


@dataclass(frozen=True, eq=False)
class Lime:
    map: Any  # (N, 1 or C, H, W), or as x came: each number bears the weight of its segment
    weights: Tensor  # (N, F) of the segments; zero beyond a row's own
    standard_error: Tensor  # (N, F) standard errors of the weights, by the draw of masks; zero where all masks were run
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
class LimeSettings:
    """Of the regression, checked."""

    n_samples: int
    kernel_width: float
    regression: Regression
    alpha: float
    n_features: int | None
    seed: int

    @classmethod
    def validated(
        cls, n_samples: int, kernel_width: float, regression: Regression, alpha: float | None,
        n_features: int | None, seed: int,
    ) -> LimeSettings:  # fmt: skip
        if regression not in DEFAULT_ALPHA:
            raise InputError(f"regression is {', '.join(map(repr, DEFAULT_ALPHA))}; got {regression!r}")
        alpha = DEFAULT_ALPHA[regression] if alpha is None else check_float("alpha", alpha)
        if alpha < 0:
            raise InputError(f"alpha must be 0 or more; got {alpha}")
        features = None if n_features is None else check_int("n_features", n_features, minimum=1)
        width, seed = check_float("kernel_width", kernel_width, 0), check_seed(seed)
        return cls(check_int("n_samples", n_samples, minimum=2), width, regression, alpha, features, seed)

    @property
    def max_segments(self) -> int:
        """Segments by default."""
        return max(1, self.n_samples // MIN_SAMPLES_PER_FEATURE)

    def sample_masks(self, masking: Masking) -> list[SampledMasks]:
        """The masks of each row. Raises InputError where they are too few to tell the segments apart."""
        min_samples = masking.features.max_count + 2
        if self.n_samples < min_samples:
            message = f"{min_samples - 2} segments take n_samples of {min_samples} or more; got {self.n_samples}"
            raise InputError(f"{message}: take more, or larger segments")
        warn_few_samples(masking, self.n_samples)
        masks = {a: bernoulli_masks(a, self.n_samples, self.seed) for a in set(masking.n_active)}
        return [masks[a] for a in masking.n_active]


@card(
    name="LIME",
    source="Ribeiro et al. 2016, arXiv:1602.04938, sections 3.2 to 3.5",
    shows="Which parts of the input speak for this answer and which against it, with the error of each weight.",
    does_not_show="More than a linear model can: where R² is low, parts work together and the weights say little.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", square_side(box, 3)), n_samples=48),
    exempt={
        "one forward": "it runs the model once for each mask drawn",
        "row seeds": "masks are drawn once for all rows with as many segments, so that rows can be compared",
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
    settings = LimeSettings.validated(n_samples, kernel_width, regression, alpha, n_features, seed)
    x = box.validate_inputs(x)
    score, classes = resolve_objective(box, target, x, batch_size, on)
    use_log_odds = classes is not None and on != "score"
    masking = make_masking(
        box,
        x,
        segments,
        baseline,
        default="quickshift",
        max_features=settings.max_segments,
        seed=settings.seed,
        allow_segment_mean=True,
    )
    return _explain(masking, [score], [classes], settings, use_log_odds, batch_size)[0]


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
    settings = LimeSettings.validated(n_samples, kernel_width, regression, alpha, n_features, seed)
    if check_int("top", top, minimum=1) > box.n_outputs:
        raise InputError(f"the model has {box.n_outputs} classes; got top={top}")
    x = box.validate_inputs(x)
    p = box.probs(x, batch_size=batch_size)
    classes = mean_over_positions(p).topk(top, 1).indices  # (N, T)
    masking = make_masking(
        box,
        x,
        segments,
        baseline,
        default="quickshift",
        max_features=settings.max_segments,
        seed=settings.seed,
        allow_segment_mean=True,
    )
    objectives = [class_probability(box, labels) for labels in classes.T]
    return LimeTop(classes, tuple(_explain(masking, objectives, list(classes.T), settings, True, batch_size)))


def positive(result: Lime, n: int = 5) -> Tensor:
    """A mask (N, H, W) of the n segments that speak most for the answer; those that speak against it are left out.

    Raises InputError where the result is not of images.
    """
    if not isinstance(result, Lime) or not isinstance(result.segments, Tensor) or result.segments.ndim != 3:
        raise InputError("a mask is made of what lime says of images, superpixel by superpixel")
    best = result.weights.topk(min(check_int("n", n, minimum=1), result.weights.shape[1]), 1)
    chosen = torch.zeros_like(result.weights, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
    return chosen.gather(1, result.segments.flatten(1)).view(result.segments.shape)


def _explain(
    masking: Masking,
    objectives: Sequence[Objective],
    classes: Sequence[Tensor | None],
    settings: LimeSettings,
    use_log_odds: bool,
    batch_size: BatchSize,
) -> list[Lime]:
    sampled = settings.sample_masks(masking)
    row_scores = masked_scores(masking, [d.masks for d in sampled], objectives, batch_size)  # N of (U, T)
    surrogates = {id(d): _make_surrogate(d, settings) for d in sampled}
    masks_and_counts = zip(sampled, masking.features.counts, strict=True)
    designs = [RegressionDesign.from_masks(d, f, settings.kernel_width, surrogates[id(d)]) for d, f in masks_and_counts]
    fit = partial(
        fit_local_model,
        regression=settings.regression,
        alpha=settings.alpha,
        max_features=settings.n_features,
        use_log_odds=use_log_odds,
    )
    limes = []
    for t, class_labels in enumerate(classes):
        ys = [v[:, t][d.mask_index] for v, d in zip(row_scores, sampled, strict=True)]
        limes.append(_lime_result(masking, [fit(d, y) for d, y in zip(designs, ys, strict=True)], ys, class_labels))
    return limes


def _make_surrogate(sampled: SampledMasks, settings: LimeSettings) -> tuple[Surrogate, SampledMasks] | None:
    """What learns the score of masks, and masks to be scored by it alone; None where all masks are run, or too few."""
    if bool((sampled.cluster < 0).all()) or len(sampled.mask_index) < MIN_TRAINING_MASKS:
        return None
    n_masks = min(N_REFERENCE_MASKS, 16 * len(sampled.mask_index))
    return Surrogate(sampled.z[1:]), bernoulli_masks(
        sampled.masks.shape[1], n_masks, derive_seed("surrogate", settings.seed), deduplicate=False
    )


def _lime_result(masking: Masking, fits: list[LocalModel], ys: list[Tensor], classes: Tensor | None) -> Lime:
    box, features = masking.box, masking.features
    weights, error = (
        masking.scatter_active([f.weights for f in fits]),
        masking.scatter_active([f.standard_error for f in fits]),
    )
    exists = (
        torch.arange(features.max_count, device=box.device) < torch.tensor(features.counts, device=box.device)[:, None]
    )
    unchanged = torch.tensor([f.unchanged_weight for f in fits]).to(weights)[:, None]
    weights = torch.where(exists & ~masking.active, unchanged, weights)
    statistics = torch.tensor(
        [[f.r2, f.intercept, float(y[0])] for f, y in zip(fits, ys, strict=True)], dtype=torch.float64
    )
    r2, intercept, score = statistics.to(box.dtype).to(box.device).T
    restored = box.restore_structure(features.broadcast(weights)), restore_segments(box, features.ids)
    return Lime(restored[0], weights, error, r2, intercept, intercept + weights.sum(1), score, classes, restored[1])
