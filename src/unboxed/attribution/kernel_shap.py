"""KernelSHAP: Shapley values of many players, from some of their subsets.

Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions", arXiv:1705.07874, section 4.1; Covert & Lee
2021, "Improving KernelSHAP", arXiv:2012.01536 (subsets in pairs, standard errors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import Baseline, score_difference
from ..engine.perturb.estimators import exact_shapley, kernel_shapley
from ..engine.perturb.masking import (
    MIN_SAMPLES_PER_FEATURE,
    make_masking,
    masked_scores,
    resolve_objective,
    restore_segments,
    warn_few_samples,
)
from ..engine.perturb.masks import SampledMasks, all_subsets, shapley_mask_pairs
from ..engine.perturb.segments import Segments, square_side
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_int, check_seed


@dataclass(frozen=True, eq=False)
class KernelShap:
    map: Any  # (N, 1 or C, H, W), or as x came: each value dealt out evenly among its player's numbers
    values: Tensor  # (N, F) of the players; zero beyond a row's own
    standard_error: Tensor  # (N, F) standard errors of the values, by the draw of subsets; zero where all were run
    segments: Any  # (N, H, W) or as x came: the player of each number
    score: Tensor  # (N,) of x
    baseline_score: Tensor  # (N,) of the baseline: values sum to score - base


@card(
    name="KernelSHAP",
    source="Lundberg & Lee 2017, arXiv:1705.07874, section 4.1; pairs of subsets: Covert & Lee 2021, arXiv:2012.01536",
    shows="How this score's distance from the baseline's is shared out among the parts of the input, with its error.",
    does_not_show="What the model would say of inputs as they occur: parts are hidden in ways that no real input shows.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", square_side(box, 3)), n_samples=48),
    exempt={
        "one forward": "it runs the model once for each subset drawn",
        "row seeds": "subsets are drawn once for all rows with as many players, so that rows can be compared",
    },
    axioms=("contribution", "completeness"),
)
def kernel_shap(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    segments: Segments = None,
    n_samples: int = 1000,
    baseline: Baseline = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> KernelShap:
    """Shapley values by constrained weighted least squares; they sum to score(x) - score(baseline) exactly.

    `segments` says who plays (see `engine.perturb.segments`): by default a column each, and of an image about 50 SLIC
    superpixels, or n_samples / 4 where that is less. In the map a player's value is shared evenly among its pixels (in
    the score's unit, a pixel), so that the map sums to score(x) - score(baseline).

    The model runs at most `n_samples` times a row. All subsets are run where they are no more than that: the values are
    then Shapley's own. Errors are the jackknife's over pairs of subsets (see `engine.perturb.standard_errors`); an
    UnboxedWarning tells of fewer than 4 samples for each player that hides something. Raises InputError where n_samples
    is below 2 F + 2 and all subsets of the F players.
    """
    n, seed = check_int("n_samples", n_samples, minimum=2), check_seed(seed)
    x = box.validate_inputs(x)
    score, _ = resolve_objective(box, target, x, batch_size)
    masking = make_masking(box, x, segments, baseline, max_features=max(1, n // MIN_SAMPLES_PER_FEATURE), seed=seed)
    if n < min(2 * masking.features.max_count + 2, 2**masking.features.max_count):
        min_samples = 2 * masking.features.max_count + 2
        message = f"{masking.features.max_count} players take n_samples of {min_samples} or more; got {n_samples}"
        raise InputError(f"{message}: take more, or larger segments")
    warn_few_samples(masking, n)
    subsets = {a: _subsets(a, n, seed) for a in set(masking.n_active)}
    row_scores = masked_scores(masking, [subsets[a][0] for a in masking.n_active], [score], batch_size)
    eps = torch.finfo(box.model_dtype).eps
    row_values = [
        _shapley_values(subsets[a][1], v[:, 0], eps) for a, v in zip(masking.n_active, row_scores, strict=True)
    ]
    values, error = (masking.scatter_active(h) for h in zip(*row_values, strict=True))
    ends = torch.stack(
        [v[-2:, 0] if subsets[a][1] else v[[-1, 0], 0] for a, v in zip(masking.n_active, row_scores, strict=True)]
    )
    ends = ends.to(box.dtype).to(box.device)
    score_difference(ends[:, 0], ends[:, 1])
    shares = box.restore_structure(masking.features.distribute(values))
    return KernelShap(shares, values, error, restore_segments(box, masking.features.ids), ends[:, 0], ends[:, 1])


def _subsets(n_features: int, n_samples: int, seed: int) -> tuple[Tensor, SampledMasks | None]:
    """The masks to run: all of them; or some, and after them all players and none."""
    if 2**n_features <= n_samples:
        return all_subsets(n_features), None
    sampled = shapley_mask_pairs(n_features, n_samples - 2, seed)
    ends = torch.tensor([[True], [False]]).expand(2, n_features)
    return torch.cat([sampled.masks, ends]), sampled


def _shapley_values(sampled: SampledMasks | None, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if sampled is None:
        values = exact_shapley(v, eps)
        return values, torch.zeros_like(values)
    return kernel_shapley(sampled, v[:-2][sampled.mask_index], empty_score=float(v[-1]), full_score=float(v[-2]))
