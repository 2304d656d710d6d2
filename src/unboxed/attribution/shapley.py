"""Shapley values: each segment's mean contribution to the score over all orders in which segments can be added.

Shapley 1953, "A Value for n-Person Games"; for models, Lundberg & Lee 2017, arXiv:1705.07874, equation 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.perturb.baselines import Baseline, score_difference, unit_of_contributions
from ..engine.perturb.estimators import exact_shapley
from ..engine.perturb.masking import (
    make_maskable_inputs,
    masked_scores,
    resolve_objective_and_classes,
    segment_ids_like_input,
)
from ..engine.perturb.masks import all_subset_masks
from ..engine.perturb.segments import Segments, segment_square_side
from ..errors import InputError
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, InputBatch, Target
from ..settings import check_settings

MAX_EXACT_SHAPLEY_SEGMENTS = 16  # segments: 65,536 runs per input
TYPICAL_FORWARDS_PER_INPUT = 512  # on the card, by default: of all subsets of 3 x 3 squares


@card(
    name="Shapley values",
    aliases=("shapley_values", "shapley_value_sampling"),
    source="Shapley 1953; Lundberg & Lee 2017, arXiv:1705.07874, equation 4",
    shows="How the difference between this score and the baseline's is shared out among the parts of the input.",
    does_not_show="What the model would answer for realistic inputs: parts are masked in unrealistic ways.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", segment_square_side(box, 2))),
    exempt={"one forward": "it runs the model once for each subset of segments"},
    texts=True,
    axioms=("contribution", "completeness", "dummy", "symmetry"),
    runs=TYPICAL_FORWARDS_PER_INPUT,
)
def shapley(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    segments: Segments = None,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """Exact Shapley values of up to 16 segments: each one's mean contribution over all orders of adding segments.

    The reference for few segments or columns. It runs the model 2^A times per row, A being the segments that masking
    changes; for more of them take `kernel_shap`, which samples subsets.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        segments: Which values are masked together: a kind of superpixels, a number of them, or a map of ids.
            None is each column of a table, and 3 x 3 squares of an image (of images among several inputs 2 x 2 or
            one, so that there are at most 16).
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map, (N, 1 or C, H, W) for images, else shaped like x: each segment's value divided evenly among its pixels
        (in units of the score, per pixel), so that the map sums to score(x) - score(baseline). Besides: `values`
        (N, F) of the segments, zero beyond a row's own, and exactly zero for a segment that changes nothing;
        `segments` (N, H, W) or shaped like x, the segment of each value; `baseline_score` (N,).

    Raises:
        InputError: for more than 16 segments that masking changes, and segments or a baseline that do not fit x.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.shapley(box, x, y, segments=("squares", 14))
        >>> bool((a.values.sum(1) - (a.score - a.baseline_score)).abs().max() < 1e-4)
        True

    Source:
        Shapley 1953, "A Value for n-Person Games"; for models, Lundberg & Lee 2017, arXiv:1705.07874, equation 4.
    """
    check_settings(shapley, locals())
    x = box.validate_inputs(x)
    score, classes = resolve_objective_and_classes(box, target, x, batch_size)
    masking = make_maskable_inputs(box, x, segments, baseline, default=default_shapley_segmentation(box))
    if max(masking.n_maskable_segments_per_row) > MAX_EXACT_SHAPLEY_SEGMENTS:
        n = max(masking.n_maskable_segments_per_row)
        message = f"{n} segments have 2^{n} subsets; exact values are for {MAX_EXACT_SHAPLEY_SEGMENTS} or fewer"
        multi_input_hint = " (of several inputs, one setting each)" if isinstance(box.inputs, MultiInput) else ""
        raise InputError(f"{message}: take larger segments{multi_input_hint}, or kernel_shap, which samples subsets")
    subsets = {a: all_subset_masks(a) for a in set(masking.n_maskable_segments_per_row)}
    subset_scores = [
        v[:, 0]
        for v in masked_scores(masking, [subsets[a] for a in masking.n_maskable_segments_per_row], [score], batch_size)
    ]
    eps = torch.finfo(box.model_dtype).eps
    ends = torch.stack([torch.stack([v[-1], v[0]]) for v in subset_scores]).to(box.dtype).to(box.device)
    score_difference(ends[:, 0], ends[:, 1])
    values = masking.scatter_to_all_segments([exact_shapley(v, eps) for v in subset_scores])
    return make_attribution(
        box,
        masking.features.distribute_within_segments(values),
        x=x,
        method="Shapley values",
        unit=unit_of_contributions(box.inputs, baseline),
        target=target if classes is None else classes,
        score=ends[:, 0],
        values=values,
        segments=segment_ids_like_input(box, masking.features.ids),
        baseline_score=ends[:, 1],
    )


def default_shapley_segmentation(box: Box) -> Callable[[Pixels], Segments]:
    """Segments of an image by default: three squares along its longest side; fewer of volumes and several inputs."""
    parts = box.inputs.parts if isinstance(box.inputs, MultiInput) else (box.inputs,)
    parts = tuple(parts.values()) if isinstance(parts, Mapping) else parts
    axes = [max(2, p.n_axes) for p in parts if isinstance(p, Pixels)]
    columns = sum(math.prod(p.shape) for p in parts if not isinstance(p, Pixels))
    n_along = next((k for k in (3, 2, 1) if sum(k**n for n in axes) + columns <= MAX_EXACT_SHAPLEY_SEGMENTS), 3)
    return lambda image: ("squares", -(-max(image.model_shape[1:]) // n_along))
