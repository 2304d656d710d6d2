"""KernelSHAP: Shapley values of many segments, estimated from some of their subsets.

Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions", arXiv:1705.07874, section 4.1; Covert & Lee
2021, "Improving KernelSHAP", arXiv:2012.01536 (subsets in pairs, standard errors).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.perturb.baselines import Baseline, score_difference, unit_of_contributions
from ..engine.perturb.estimators import exact_shapley, kernel_shapley
from ..engine.perturb.masking import (
    explained_quantity,
    make_maskable_inputs,
    masked_scores,
    n_example_samples,
    resolve_objective_and_classes,
    segment_ids_like_input,
    segment_noun,
    warn_few_samples,
)
from ..engine.perturb.masks import SampledMasks, all_subset_masks, shapley_mask_pairs
from ..engine.perturb.segments import Segments, segment_square_side
from ..errors import InputError
from ..parameters import BatchSize, InputBatch, Seed, Target
from ..settings import AtLeast, Unit, check_settings
from ..validation import valid_seed


@card(
    name="KernelSHAP",
    source="Lundberg & Lee 2017, arXiv:1705.07874, section 4.1; pairs of subsets: Covert & Lee 2021, arXiv:2012.01536",
    shows="How the difference between this score and the baseline's is shared out among the parts of the input, with "
    "standard errors.",
    does_not_show="What the model would answer for realistic inputs: parts are masked in unrealistic ways.",
    example=lambda method, box, x, y: method(
        box, x, y, segments=("squares", segment_square_side(box, 3)), n_samples=n_example_samples(box, x, 48)
    ),
    exempt={
        "one forward": "it runs the model once for each subset drawn",
        "row seeds": "subsets are drawn once for all rows with as many segments, so that rows can be compared",
    },
    axioms=("contribution", "completeness"),
    runs=lambda s: s["n_samples"],
    texts=True,
    order=10,
)
def kernel_shap(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    segments: Segments = None,
    n_samples: Annotated[int, AtLeast(2), Unit("forward passes"), "Largest number of masked inputs per row."] = 1000,
    baseline: Baseline = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """Shapley values of many segments, estimated from some of their subsets by weighted least squares.

    Needs only the model's output; values sum to score(x) - score(baseline) exactly, and have standard errors. For up to
    16 segments `shapley` is exact; `lime` fits the same kind of model with a kernel that favors inputs close to x;
    `integrated_gradients` has the same completeness for a fraction of the cost where gradients can be had.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        segments: Which values are masked together: a kind of superpixels, a number of them, or a map of ids.
            None is each column of a table, and about 50 SLIC superpixels of an image, or n_samples / 4 where that is
            less.
        n_samples: Largest number of masked inputs per row. All subsets are run where they are no more than that: the
            values are then exact.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map, (N, 1 or C, H, W) for images, else shaped like x: each segment's value divided evenly among its pixels
        (in units of the score, per pixel), so that the map sums to score(x) - score(baseline). Besides: `values`
        (N, F) of the segments, zero beyond a row's own; `standard_error` (N, F), by the draw of subsets (zero where all
        were run); `segments` (N, H, W) or shaped like x, the segment of each value; `baseline_score` (N,). An
        UnboxedWarning says where there are fewer than 4 samples per segment that masking changes.

    Raises:
        InputError: where n_samples is below 2 F + 2 (and below all subsets) of F segments, or below both 52 and F + 2
            for the F superpixels of an image without `segments`; for segments or a baseline that do not fit x.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.kernel_shap(box, x, y, segments=("squares", 7), n_samples=200)
        >>> tuple(a.values.shape), tuple(a.standard_error.shape)
        ((2, 16), (2, 16))

    Source:
        Lundberg & Lee 2017, arXiv:1705.07874, section 4.1, theorem 2. Subsets in complementary pairs: Covert & Lee
        2021, arXiv:2012.01536. Deviation: standard errors are the jackknife's over pairs
        (`engine.perturb.standard_errors`).
    """
    check_settings(kernel_shap, locals())
    n, seed = int(n_samples), valid_seed(seed)
    x = box.validate_inputs(x)
    score, classes = resolve_objective_and_classes(box, target, x, batch_size)
    masking = make_maskable_inputs(box, x, segments, baseline, n_samples=n, seed=seed)
    if n < min(2 * masking.features.max_n_segments + 2, 2**masking.features.max_n_segments):
        min_samples = 2 * masking.features.max_n_segments + 2
        message = f"{masking.features.max_n_segments} segments take n_samples of {min_samples} or more; got {n_samples}"
        raise InputError(f"{message}: take more, or larger segments")
    warn_few_samples(masking, n)
    subsets = {a: _all_or_sampled_subset_masks(a, n, seed) for a in set(masking.n_maskable_segments_per_row)}
    row_scores = masked_scores(
        masking, [subsets[a][0] for a in masking.n_maskable_segments_per_row], [score], batch_size
    )
    eps = torch.finfo(box.model_dtype).eps
    row_values = [
        _shapley_values_and_errors(subsets[a][1], v[:, 0], eps)
        for a, v in zip(masking.n_maskable_segments_per_row, row_scores, strict=True)
    ]
    values, error = (masking.scatter_to_all_segments(h) for h in zip(*row_values, strict=True))
    ends = torch.stack(
        [
            v[-2:, 0] if subsets[a][1] else v[[-1, 0], 0]
            for a, v in zip(masking.n_maskable_segments_per_row, row_scores, strict=True)
        ]
    )
    ends = ends.to(box.dtype).to(box.device)
    score_difference(ends[:, 0], ends[:, 1])
    return make_attribution(
        box,
        masking.features.distribute_within_segments(values),
        x=x,
        method="KernelSHAP",
        target=target if classes is None else classes,
        score=ends[:, 0],
        unit=unit_of_contributions(
            box.inputs,
            baseline,
            f"share of the {explained_quantity(box, target)} added by the {segment_noun(box, segments)}",
        ),
        values=values,
        standard_error=error,
        segments=segment_ids_like_input(box, masking.features.ids),
        baseline_score=ends[:, 1],
    )


def _all_or_sampled_subset_masks(n_features: int, n_samples: int, seed: int) -> tuple[Tensor, SampledMasks | None]:
    """The masks to run: all of them; or some, followed by the full and the empty mask."""
    if 2**n_features <= n_samples:
        return all_subset_masks(n_features), None
    sampled = shapley_mask_pairs(n_features, n_samples - 2, seed)
    ends = torch.tensor([[True], [False]]).expand(2, n_features)
    return torch.cat([sampled.masks, ends]), sampled


def _shapley_values_and_errors(
    sampled: SampledMasks | None, subset_scores: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    if sampled is None:
        values = exact_shapley(subset_scores, eps)
        return values, torch.zeros_like(values)
    return kernel_shapley(
        sampled,
        subset_scores[:-2][sampled.mask_index],
        empty_score=float(subset_scores[-1]),
        full_score=float(subset_scores[-2]),
    )
