"""Feature ablation: mask one segment at a time, and measure what the score loses.

Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, with segments in place of a sliding square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.perturb.baselines import Baseline, unit_of_contributions
from ..engine.perturb.estimators import set_rounding_noise_to_zero
from ..engine.perturb.masking import (
    MASKED_INPUT_NAME_IN_ERRORS,
    MaskableInputs,
    explained_quantity,
    make_maskable_inputs,
    masked_scores,
    resolve_objective_and_classes,
    segment_noun,
)
from ..engine.perturb.masks import full_and_leave_one_out_masks
from ..engine.perturb.segments import Segments, segment_square_side
from ..engine.perturb.windows import run_with_replaced_windows
from ..engine.read.sizes import Size
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective
from ..parameters import BatchSize, InputBatch, Target
from ..settings import check_settings

MAX_SEGMENTS_TESTED_AS_RECTANGLES = 1024  # segments that are checked one by one for being rectangles
TYPICAL_FORWARDS_PER_INPUT = 100  # on the card: about how many segments an input has by default


@card(
    name="Feature ablation",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2 (there a sliding square)",
    shows="What this score loses when one part of the input is masked and the rest stays.",
    does_not_show="What parts do together: where either of two is enough, masking one loses nothing.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", segment_square_side(box, 4))),
    exempt={"one forward": "it runs the model once for each segment"},
    texts=True,
    axioms=("contribution", "dummy", "symmetry"),
    runs=TYPICAL_FORWARDS_PER_INPUT,
)
def feature_ablation(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    segments: Segments = None,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The score lost when one segment of the input is masked: the simplest method for superpixels and tables.

    Costs one forward pass per segment. Where segments can replace each other, take `shapley` (exact, up to 16
    segments) or `kernel_shap`, which share out what they do together.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        segments: Which values are masked together: a kind of superpixels, a number of them, or a map of ids.
            None is each column of a table, and about 50 SLIC superpixels of an image (`engine.perturb.segments`).
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The score lost, in units of the score: (N, 1 or C, H, W) for images, else shaped like x; each value of a segment
        has the segment's full loss. Segments that masking does not change cost no run and get zero. Of rectangles
        (squares, pixels) only what they reach in the model is computed.

    Raises:
        InputError: for segments or a baseline that do not fit x.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.feature_ablation(box, x, y, segments=("squares", 7)).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, with segments in place of a sliding square.
    """
    check_settings(feature_ablation, locals())
    x = box.validate_inputs(x)
    score, classes = resolve_objective_and_classes(box, target, x, batch_size)
    masking = make_maskable_inputs(box, x, segments, baseline)
    row_scores = _scores_with_rectangles_masked(masking, score, batch_size)
    if row_scores is None:
        masks = {a: full_and_leave_one_out_masks(a) for a in set(masking.n_maskable_segments_per_row)}
        row_scores = masked_scores(
            masking, [masks[a] for a in masking.n_maskable_segments_per_row], [score], batch_size
        )
    eps = torch.finfo(box.model_dtype).eps
    score_drops = [set_rounding_noise_to_zero((v[:1] - v[1:]), v, eps)[:, 0] for v in row_scores]  # (A,) each
    return make_attribution(
        box,
        masking.features.broadcast_to_values(masking.scatter_to_all_segments(score_drops)),
        x=x,
        method="Feature ablation",
        over_embedding="same",
        target=target if classes is None else classes,
        score=torch.stack([v[0, 0] for v in row_scores]).to(box.dtype).to(box.device),
        unit=unit_of_contributions(
            box.inputs,
            baseline,
            f"{explained_quantity(box, target)} lost when the {segment_noun(box, segments)} is removed",
        ),
    )


def _scores_with_rectangles_masked(
    masking: MaskableInputs, score: Objective, batch_size: BatchSize
) -> list[Tensor] | None:
    """The score of each row as it is, and without each of its active segments, (1 + A, 1), if all are rectangles.

    Then only what a rectangle reaches in the model is computed, as for occlusion.
    """
    rectangles = _rectangle_segment_corners_by_size(masking)
    if rectangles is None:
        return None
    box, x = masking.box, masking.x
    ablated = torch.zeros(len(x), masking.features.max_n_segments, dtype=box.dtype, device=x.device)
    original = ablated[:, :1]
    for size, corners_by_feature in rectangles.items():
        corners = torch.tensor(list(corners_by_feature.values()))
        run = run_with_replaced_windows(
            box,
            x,
            score,
            masking.baseline_values,
            corners,
            size,
            return_logits=False,
            include_original=True,
            batch_size=batch_size,
        )
        ablated[:, list(corners_by_feature)], original = run.score[:, :-1].to(ablated), run.score[:, -1:].to(ablated)
    check_finite_scores(original)
    check_finite_scores(ablated, MASKED_INPUT_NAME_IN_ERRORS)
    return [torch.cat([original[i], ablated[i, on]])[:, None].cpu().double() for i, on in enumerate(masking.active)]


def _rectangle_segment_corners_by_size(masking: MaskableInputs) -> dict[Size, dict[int, tuple[int, int]]] | None:
    """{size: {segment: its corner}} of the active segments, where all images have the same rectangles."""
    ids, active = masking.features.ids, masking.active.any(0).nonzero().flatten().tolist()
    if (
        ids.ndim != 4
        or ids.shape[1] != 1
        or not MAX_SEGMENTS_TESTED_AS_RECTANGLES >= len(active) > 0
        or not bool((ids == ids[:1]).all())
    ):
        return None
    rectangles: dict[Size, dict[int, tuple[int, int]]] = {}
    for k in active:
        rows, cols = (ids[0, 0] == k).nonzero(as_tuple=True)
        top, left = int(rows.min()), int(cols.min())
        size = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        if size[0] * size[1] != len(rows):
            return None
        rectangles.setdefault(size, {})[k] = (top, left)
    return rectangles
