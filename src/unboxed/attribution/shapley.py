"""Shapley values: each player's share of the score, the mean of what it adds over all orders in which players come.

Shapley 1953, "A Value for n-Person Games"; for models, Lundberg & Lee 2017, arXiv:1705.07874, equation 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import Baseline, score_difference
from ..engine.perturb.estimators import exact_shapley
from ..engine.perturb.masking import Masking, make_masking, masked_scores, resolve_objective, restore_segments
from ..engine.perturb.masks import all_subsets
from ..engine.perturb.segments import Segments, square_side
from ..errors import InputError
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..objectives import Objective

MAX_FEATURES = 16  # players: 65,536 runs an input


@dataclass(frozen=True, eq=False)
class Shapley:
    map: Any  # (N, 1 or C, H, W), or as x came: each value dealt out evenly among its player's numbers
    values: Tensor  # (N, F) of the players; zero beyond a row's own
    segments: Any  # (N, H, W) or as x came: the player of each number
    score: Tensor  # (N,) of x
    baseline_score: Tensor  # (N,) of the baseline: values sum to score - base


@card(
    name="Shapley values",
    source="Shapley 1953; Lundberg & Lee 2017, arXiv:1705.07874, equation 4",
    shows="How this score's distance from the baseline's is shared out among the parts of the input, exactly.",
    does_not_show="What the model would say of inputs as they occur: parts are hidden in ways that no real input shows.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", square_side(box, 2))),
    exempt={"one forward": "it runs the model once for each subset of players"},
    axioms=("contribution", "completeness", "dummy", "symmetry"),
)
def shapley(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    segments: Segments = None,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Shapley:
    """Exact Shapley values: they sum to score(x) - score(baseline), and what adds nothing gets zero.

    `segments` says who plays (see `engine.perturb.segments`): by default a column each, and of an image 3 x 3 squares
    (of images among several inputs 2 x 2 or the whole, where that keeps to 16 players). In the map a player's value is
    shared evenly among its pixels (in the score's unit, a pixel), so that the map sums to score(x) - score(baseline).
    The model runs 2^A times a row, A being its players that hide something: more than 16 raise InputError.
    """
    x = box.validate_inputs(x)
    score, _ = resolve_objective(box, target, x, batch_size)
    masking = make_masking(box, x, segments, baseline, default=default_squares(box))
    if max(masking.n_active) > MAX_FEATURES:
        message = f"{max(masking.n_active)} players have 2^{max(masking.n_active)} subsets; exact values are for {MAX_FEATURES} or fewer"
        multi_input_hint = " (of several inputs, one setting each)" if isinstance(box.inputs, MultiInput) else ""
        raise InputError(f"{message}: take larger segments{multi_input_hint}, or kernel_shap, which draws subsets")
    subsets = {a: all_subsets(a) for a in set(masking.n_active)}
    subset_scores = [
        v[:, 0] for v in masked_scores(masking, [subsets[a] for a in masking.n_active], [score], batch_size)
    ]
    eps = torch.finfo(box.model_dtype).eps
    return shapley_result(masking, [exact_shapley(v, eps) for v in subset_scores], subset_scores)


def default_squares(box: Box) -> Callable[[Pixels], Segments]:
    """How an image is cut: into squares, three along its longer side; fewer where several inputs would be too many."""
    parts = box.inputs.parts if isinstance(box.inputs, MultiInput) else (box.inputs,)
    parts = tuple(parts.values()) if isinstance(parts, Mapping) else parts
    images = sum(isinstance(p, Pixels) for p in parts)
    columns = sum(math.prod(p.shape) for p in parts if not isinstance(p, Pixels))
    n_along = next((k for k in (3, 2, 1) if images * k * k + columns <= MAX_FEATURES), 3)
    return lambda image: ("squares", -(-max(image.shape[-2:]) // n_along))


def shapley_result(masking: Masking, values: list[Tensor], subset_scores: list[Tensor]) -> Shapley:
    box, feature_values = masking.box, masking.scatter_active(values)
    ends = torch.stack([torch.stack([v[-1], v[0]]) for v in subset_scores]).to(box.dtype).to(box.device)
    score_difference(ends[:, 0], ends[:, 1])
    shares = box.restore_structure(masking.features.distribute(feature_values))
    return Shapley(shares, feature_values, restore_segments(box, masking.features.ids), ends[:, 0], ends[:, 1])
