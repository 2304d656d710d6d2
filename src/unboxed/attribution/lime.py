"""LIME: a linear model of the score around one input, in which superpixels are present or masked.

Ribeiro et al. 2016, "Why Should I Trust You?": Explaining the Predictions of Any Classifier, arXiv:1602.04938.

This file is the method: masks, scores, regression, weights. How the variance of the weights is reduced is in
`engine.perturb.control_variate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.perturb.baselines import Baseline, unit_of_contributions
from ..engine.perturb.control_variate import (
    RegressionDesign,
    fit_local_model_with_control_variate,
    make_surrogate_and_reference_masks,
)
from ..engine.perturb.local_model import DEFAULT_ALPHA_BY_REGRESSION, LocalLinearModel, RegressionKind
from ..engine.perturb.masking import (
    MaskableInputs,
    class_probability_objective,
    explained_quantity,
    make_maskable_inputs,
    masked_scores,
    n_example_samples,
    resolve_objective_and_classes,
    segment_ids_like_input,
    segment_noun,
    warn_few_samples,
)
from ..engine.perturb.masks import SampledMasks, bernoulli_masks
from ..engine.perturb.segments import Segments, segment_square_side
from ..errors import InputError
from ..objectives import Objective, mean_over_positions
from ..parameters import BatchSize, ExplainedQuantity, InputBatch, Seed, Target
from ..settings import Above, AtLeast, Unit, check_settings
from ..validation import check_int, valid_seed


@dataclass(frozen=True, eq=False)
class LimeOfTopClasses:
    """LIME of each input's most likely classes."""

    classes: Tensor  # (N, T), the most likely first
    explanations: tuple[Attribution, ...]  # T: the k-th is of classes[:, k]


@card(
    name="LIME",
    source="Ribeiro et al. 2016, arXiv:1602.04938, sections 3.2 to 3.5",
    shows="Which parts of the input raise this answer and which lower it, with the standard error of each weight.",
    does_not_show="More than a linear model can: where R² is low, parts interact and the weights mean little.",
    example=lambda method, box, x, y: method(
        box, x, y, segments=("squares", segment_square_side(box, 3)), n_samples=n_example_samples(box, x, 36)
    ),
    exempt={
        "one forward": "it runs the model once for each mask drawn",
        "row seeds": "masks are drawn once for all rows with as many segments, so that rows can be compared",
    },
    runs=lambda s: s["n_samples"],
    texts=True,
    order=9,
)
def lime(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    segments: Segments = None,
    n_samples: Annotated[int, AtLeast(2), Unit("forward passes"), "Largest number of masked inputs per row."] = 1000,
    kernel_width: Annotated[float, Above(0), Unit("cosine distance"), "Width of the kernel that weights masks."] = 0.25,
    regression: Annotated[RegressionKind, "Kind of the linear regression."] = "ridge",
    alpha: Annotated[
        float | None, AtLeast(0), "Penalty of the regression; None is 1 for ridge, 0.001 for lasso."
    ] = None,
    n_features: Annotated[
        int | None, AtLeast(1), Unit("segments"), "Keep only the segments of the largest weights; None keeps all."
    ] = None,
    on: ExplainedQuantity = None,
    baseline: Baseline = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The weight of each segment in a linear model of the score, fitted to x with segments masked at random.

    Needs only the model's output, and reports how well a linear model fits (`r2`). Weights do not sum to anything: take
    `kernel_shap` for values that sum to the score's difference, and `feature_ablation` for a quick look at one segment
    at a time.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        segments: Which values are masked together: a kind of superpixels, a number of them, or a map of ids.
            None is each column of a table and, as in the lime package, quickshift superpixels of an image; where these
            are more than n_samples / 4, SLIC superpixels or squares.
        n_samples: Largest number of masked inputs per row. All subsets are run where they are no more than that.
        kernel_width: Width of the kernel that weights masks. Weights are sqrt(exp(-d^2 / kernel_width^2)), d the
            cosine distance between a mask and the full mask.
        regression: Kind of the linear regression.
        alpha: Penalty of the regression; None is 1 for ridge, 0.001 for lasso.
        n_features: Keep only the segments of the largest weights; None keeps all. The regression is fitted once more
            with those alone.
        on: What is explained: the probability of the class, or the score of `target`. None is the probability where
            target is a class.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known. "segment" masks a segment by its
            own mean, as the lime package does.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map, (N, 1 or C, H, W) for images, else shaped like x: each value has its segment's weight, in units of the
        score. Besides: `weights` (N, F) of the segments, zero beyond a row's own; `standard_error` (N, F) of the
        weights, by the draw of masks (zero where all were run); `r2` (N,), how much of the score's weighted variance
        the linear model explains; `intercept` (N,); `prediction` (N,), the linear model's score of x; `segments`
        (N, H, W) or shaped like x, the segment of each value. An UnboxedWarning says where there are fewer than 4
        samples per segment that masking changes.

    Raises:
        InputError: where n_samples is below the number of segments + 2 (without `segments`, where an image can be cut
            into fewer superpixels, only below 52); for segments or a baseline that do not fit.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.lime(box, x, y, segments=("squares", 7), n_samples=200)
        >>> tuple(a.weights.shape), tuple(a.r2.shape)
        ((2, 16), (2,))

    Source:
        Ribeiro et al. 2016, arXiv:1602.04938, sections 3.2 to 3.5; the regression is the lime package's. Deviations,
        which leave what is estimated unchanged and lower its variance: masks keep each segment with probability 1/2 as
        in the package, but all of them together are an orthogonal array; segments that masking does not change are
        summed over; and the nonlinear part of the score is learned from the masks that were run and used as a control
        variate (`engine.perturb.control_variate`). Standard errors are the jackknife's over pairs of masks
        (`engine.perturb.standard_errors`), about the same regression on all subsets, x itself counting as one mask in
        n_samples; for the lasso, given its choice of segments.
    """
    check_settings(lime, locals())
    settings = locals()
    x = box.validate_inputs(x)
    score, classes = resolve_objective_and_classes(box, target, x, batch_size, on)
    masking = _make_lime_masking(box, x, settings)
    use_log_odds = classes is not None and on != "score"
    return _fit_local_models(masking, [score], [target if classes is None else classes], settings, use_log_odds)[0]


def lime_top(
    box: Box,
    x: InputBatch,
    top: Annotated[int, AtLeast(1), Unit("classes"), "Number of classes."] = 5,
    *,
    segments: Segments = None,
    n_samples: Annotated[int, AtLeast(2), Unit("forward passes"), "Largest number of masked inputs per row."] = 1000,
    kernel_width: Annotated[float, Above(0), Unit("cosine distance"), "Width of the kernel that weights masks."] = 0.25,
    regression: Annotated[RegressionKind, "Kind of the linear regression."] = "ridge",
    alpha: Annotated[
        float | None, AtLeast(0), "Penalty of the regression; None is 1 for ridge, 0.001 for lasso."
    ] = None,
    n_features: Annotated[
        int | None, AtLeast(1), Unit("segments"), "Keep only the segments of the largest weights; None keeps all."
    ] = None,
    baseline: Baseline = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> LimeOfTopClasses:
    """LIME of the probabilities of each input's most likely classes, for the cost of one.

    Take `lime` for one class, or for a score that is no probability.

    Args:
        box: The opened model, with classes.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        top: Number of classes.
        segments: Which values are masked together: a kind of superpixels, a number of them, or a map of ids.
            None is each column of a table and, as in the lime package, quickshift superpixels of an image; where these
            are more than n_samples / 4, SLIC superpixels or squares.
        n_samples: Largest number of masked inputs per row. All subsets are run where they are no more than that.
        kernel_width: Width of the kernel that weights masks. Weights are sqrt(exp(-d^2 / kernel_width^2)), d the
            cosine distance between a mask and the full mask.
        regression: Kind of the linear regression.
        alpha: Penalty of the regression; None is 1 for ridge, 0.001 for lasso.
        n_features: Keep only the segments of the largest weights; None keeps all. The regression is fitted once more
            with those alone.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known. "segment" masks a segment by its
            own mean, as the lime package does.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        `classes` (N, T), the most likely first, and `explanations`, T results of `lime`.

    Raises:
        InputError: for more classes than the model has, and as `lime` does.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> result = ub.attribution.lime_top(box, x, 3, segments=("squares", 7), n_samples=200)
        >>> tuple(result.classes.shape), len(result.explanations)
        ((2, 3), 3)

    Source:
        Ribeiro et al. 2016, arXiv:1602.04938, section 4.
    """
    check_settings(lime_top, locals())
    settings = locals()
    if top > box.n_outputs:
        raise InputError(f"the model has {box.n_outputs} classes; got top={top}")
    x = box.validate_inputs(x)
    classes = mean_over_positions(box.probs(x, batch_size=batch_size)).topk(top, 1).indices  # (N, T)
    objectives = [class_probability_objective(box, labels) for labels in classes.T]
    explanations = _fit_local_models(_make_lime_masking(box, x, settings), objectives, list(classes.T), settings, True)
    return LimeOfTopClasses(classes, tuple(explanations))


def positive_segments_mask(result: Attribution, n: int = 5) -> Tensor:
    """A mask of the n segments that raise the answer most; segments that lower it are left out.

    For a picture of the evidence, as in the paper's figures.

    Args:
        result: What `lime` gives for images.
        n: Largest number of segments.

    Returns:
        The mask (N, H, W), of volumes (N, D, H, W), bool.

    Raises:
        InputError: where the result is not LIME's, or not of images.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.lime(box, x, y, segments=("squares", 7), n_samples=200)
        >>> ub.attribution.positive_segments_mask(a, 3).shape
        torch.Size([2, 28, 28])
    """
    extras: Mapping[str, Any] = result.extras if isinstance(result, Attribution) else {}
    weights, segments = extras.get("weights"), extras.get("segments")
    if not isinstance(weights, Tensor) or not isinstance(segments, Tensor) or segments.ndim < 3:
        raise InputError("positive takes the result of lime for images, which has weights of superpixels")
    best = weights.topk(min(check_int("n", n, minimum=1), weights.shape[1]), 1)
    chosen = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
    return chosen.gather(1, segments.flatten(1)).view(segments.shape)


LimeSettings = Mapping[str, Any]  # the checked settings of `lime` or `lime_top`, by name


def _make_lime_masking(box: Box, x: Tensor, settings: LimeSettings) -> MaskableInputs:
    return make_maskable_inputs(
        box,
        x,
        settings["segments"],
        settings["baseline"],
        default="quickshift",
        n_samples=settings["n_samples"],
        seed=valid_seed(settings["seed"]),
        allow_segment_mean=True,
    )


def _sample_masks_per_row(masking: MaskableInputs, n_samples: int, seed: int) -> list[SampledMasks]:
    """The masks of each row. Raises InputError where they are too few to tell the segments apart."""
    min_samples = masking.features.max_n_segments + 2
    if n_samples < min_samples:
        message = f"{min_samples - 2} segments take n_samples of {min_samples} or more; got {n_samples}"
        raise InputError(f"{message}: take more, or larger segments")
    warn_few_samples(masking, n_samples)
    masks = {a: bernoulli_masks(a, n_samples, seed) for a in set(masking.n_maskable_segments_per_row)}
    return [masks[a] for a in masking.n_maskable_segments_per_row]


def _fit_local_models(
    masking: MaskableInputs,
    objectives: Sequence[Objective],
    targets: Sequence[Any],
    settings: LimeSettings,
    use_log_odds: bool,
) -> list[Attribution]:
    """Run x under random masks, and fit a linear model to each objective's scores."""
    seed = valid_seed(settings["seed"])
    sampled = _sample_masks_per_row(masking, settings["n_samples"], seed)
    row_scores = masked_scores(masking, [d.masks for d in sampled], objectives, settings["batch_size"])  # N of (U, T)
    surrogates = {id(d): make_surrogate_and_reference_masks(d, seed) for d in sampled}
    designs = [
        RegressionDesign.from_masks(d, n_segments, settings["kernel_width"], surrogates[id(d)])
        for d, n_segments in zip(sampled, masking.features.n_segments, strict=True)
    ]
    alpha = (
        DEFAULT_ALPHA_BY_REGRESSION[settings["regression"]] if settings["alpha"] is None else float(settings["alpha"])
    )
    fit = partial(
        fit_local_model_with_control_variate,
        regression=settings["regression"],
        alpha=alpha,
        max_features=settings["n_features"],
        use_log_odds=use_log_odds,
    )
    results = []
    for t, target in enumerate(targets):
        ys = [v[:, t][d.mask_index] for v, d in zip(row_scores, sampled, strict=True)]
        fits = [fit(design, y) for design, y in zip(designs, ys, strict=True)]
        unit = (
            f"{explained_quantity(masking.box, target, settings.get('on'))} added by the "
            f"{segment_noun(masking.box, settings['segments'])}"
        )
        unit = unit_of_contributions(masking.box.inputs, settings["baseline"], unit)
        results.append(_local_models_to_attribution(masking, fits, [float(y[0]) for y in ys], target, unit))
    return results


def _local_models_to_attribution(
    masking: MaskableInputs, fits: list[LocalLinearModel], scores: list[float], target: Any, unit: str
) -> Attribution:
    """The linear models of all rows as one result; `scores` are the model's own of x."""
    box, features = masking.box, masking.features
    weights = masking.scatter_to_all_segments([f.weights for f in fits])
    counts = torch.tensor(features.n_segments, device=box.device)
    exists = torch.arange(features.max_n_segments, device=box.device) < counts[:, None]
    unchanged = torch.tensor([f.unchanged_weight for f in fits]).to(weights)[:, None]
    weights = torch.where(exists & ~masking.active, unchanged, weights)
    statistics = [[f.r2, f.intercept, score] for f, score in zip(fits, scores, strict=True)]
    r2, intercept, score = torch.tensor(statistics, dtype=torch.float64).to(box.dtype).to(box.device).T
    return make_attribution(
        box,
        features.broadcast_to_values(weights),
        x=masking.x,
        method="LIME",
        over_embedding="same",
        target=target,
        score=score,
        unit=unit,
        weights=weights,
        standard_error=masking.scatter_to_all_segments([f.standard_error for f in fits]),
        r2=r2,
        intercept=intercept,
        prediction=intercept + weights.sum(1),
        segments=segment_ids_like_input(box, features.ids),
    )
