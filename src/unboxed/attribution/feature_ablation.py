"""Feature ablation: hide one player at a time, and see what the score loses.

Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, with segments in place of a sliding square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.estimators import zero_rounding_noise
from ..engine.perturb.masking import MASKED_INPUT, Masking, make_masking, masked_scores, resolve_objective
from ..engine.perturb.masks import leave_one_out
from ..engine.perturb.segments import Segments, square_side
from ..engine.perturb.windows import window_scores
from ..engine.read.sizes import Size
from ..model.batching import BatchSize
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective

MAX_RECTANGLES = 1024  # players that are looked at one by one, whether they are rectangles


@card(
    name="Feature ablation",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2 (there a sliding square)",
    shows="What this score loses when one part of the input is hidden and the rest stays.",
    does_not_show="What parts do together: where either of two is enough, hiding one loses nothing.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", square_side(box, 4))),
    exempt={"one forward": "it runs the model once for each player"},
    axioms=("contribution", "dummy", "symmetry"),
)
def feature_ablation(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    segments: Segments = None,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """The score lost when a number's player is hidden: (N, 1 or C, H, W) of images, else shaped like x.

    `segments` says which numbers are hidden together (see `engine.perturb.segments`): by default a column each, and
    about 50 SLIC superpixels of an image. The map has a player's whole loss on each of its pixels, in the unit of the
    score. Players that hide nothing cost nothing and get zero. What rectangles (squares, pixels) don't reach in the
    model is not computed. Raises InputError for segments or a baseline that do not fit x.
    """
    x = box.validate_inputs(x)
    score, _ = resolve_objective(box, target, x, batch_size)
    masking = make_masking(box, x, segments, baseline)
    row_scores = _rectangle_scores(masking, score, batch_size)
    if row_scores is None:
        masks = {a: leave_one_out(a) for a in set(masking.n_active)}
        row_scores = masked_scores(masking, [masks[a] for a in masking.n_active], [score], batch_size)
    eps = torch.finfo(box.model_dtype).eps
    score_drops = [zero_rounding_noise((v[:1] - v[1:]), v, eps)[:, 0] for v in row_scores]  # (A,) each
    return box.restore_structure(masking.features.broadcast(masking.scatter_active(score_drops)))  # type: ignore[no-any-return]


def _rectangle_scores(masking: Masking, score: Objective, batch_size: BatchSize) -> list[Tensor] | None:
    """The score of each row as it is, and without each of its active players, (1 + A, 1), if all are rectangles.

    Then only what a rectangle reaches in the model is computed, as for occlusion.
    """
    rectangles = _rectangular_segments(masking)
    if rectangles is None:
        return None
    box, x = masking.box, masking.x
    ablated = torch.zeros(len(x), masking.features.max_count, dtype=box.dtype, device=x.device)
    original = ablated[:, :1]
    for size, corners_by_feature in rectangles.items():
        corners = torch.tensor(list(corners_by_feature.values()))
        run = window_scores(
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
    check_finite_scores(ablated, MASKED_INPUT)
    return [torch.cat([original[i], ablated[i, on]])[:, None].cpu().double() for i, on in enumerate(masking.active)]


def _rectangular_segments(masking: Masking) -> dict[Size, dict[int, tuple[int, int]]] | None:
    """{size: {player: its corner}} of the players that hide something, where images are cut alike into rectangles."""
    ids, active = masking.features.ids, masking.active.any(0).nonzero().flatten().tolist()
    if ids.ndim != 4 or ids.shape[1] != 1 or not MAX_RECTANGLES >= len(active) > 0 or not bool((ids == ids[:1]).all()):
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
