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
from ..engine.perturb.baselines import Baseline, difference
from ..engine.perturb.estimators import exact_shapley, kernel_shapley
from ..engine.perturb.masking import A_PLAYER, beside, few, game, objective, scores
from ..engine.perturb.masks import Draws, every_subset, shapley_pairs
from ..engine.perturb.segments import Segments, share
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_seed, check_int


@dataclass(frozen=True, eq=False)
class KernelShap:
    map: Any  # (N, 1 or C, H, W), or as x came: each value dealt out evenly among its player's numbers
    values: Tensor  # (N, F) of the players; zero beyond a row's own
    error: Tensor  # (N, F) standard errors of the values, by the draw of subsets; zero where all were run
    segments: Any  # (N, H, W) or as x came: the player of each number
    score: Tensor  # (N,) of x
    base: Tensor  # (N,) of the baseline: values sum to score - base


@card(
    name="KernelSHAP",
    source="Lundberg & Lee 2017, arXiv:1705.07874, section 4.1; pairs of subsets: Covert & Lee 2021, arXiv:2012.01536",
    shows="How this score's distance from the baseline's is shared out among the parts of the input, with its error.",
    does_not_show="What the model would say of inputs as they occur: parts are hidden in ways that no real input shows.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", share(box, 3)), n_samples=48),
    exempt={
        "one look": "it runs the model once for each subset drawn",
        "draws of rows": "subsets are drawn once for all rows with as many players, so that rows can be compared",
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
    score, _ = objective(box, target, x, batch_size)
    played = game(box, x, segments, baseline, most=max(1, n // A_PLAYER), seed=seed)
    if n < min(2 * played.players.most + 2, 2**played.players.most):
        least = 2 * played.players.most + 2
        said = f"{played.players.most} players take n_samples of {least} or more; got {n_samples}"
        raise InputError(f"{said}: take more, or larger segments")
    few(played, n)
    own = {a: _subsets(a, n, seed) for a in set(played.counts)}
    found = scores(played, [own[a][0] for a in played.counts], [score], batch_size)
    eps = torch.finfo(box.model_dtype).eps
    each = [_values(own[a][1], v[:, 0], eps) for a, v in zip(played.counts, found, strict=True)]
    values, error = (played.placed(h) for h in zip(*each, strict=True))
    ends = torch.stack([v[-2:, 0] if own[a][1] else v[[-1, 0], 0] for a, v in zip(played.counts, found, strict=True)])
    ends = ends.to(box.dtype).to(box.device)
    difference(ends[:, 0], ends[:, 1])
    shares = box.restore_structure(played.players.shared(values))
    return KernelShap(shares, values, error, beside(box, played.players.of), ends[:, 0], ends[:, 1])


def _subsets(a: int, n: int, seed: int) -> tuple[Tensor, Draws | None]:
    """The masks to run: all of them; or some, and after them all players and none."""
    if 2**a <= n:
        return every_subset(a), None
    drawn = shapley_pairs(a, n - 2, seed)
    ends = torch.tensor([[True], [False]]).expand(2, a)
    return torch.cat([drawn.masks, ends]), drawn


def _values(drawn: Draws | None, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if drawn is None:
        values = exact_shapley(v, eps)
        return values, torch.zeros_like(values)
    return kernel_shapley(drawn, v[:-2][drawn.at], none=float(v[-1]), whole=float(v[-2]))
