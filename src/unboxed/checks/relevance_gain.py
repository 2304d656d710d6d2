"""Symmetric relevance gain: does removing what a map marks lower the score sooner than removing what it does not?

Bluecher, Vielhaben & Strodthoff 2024, "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks",
arXiv:2401.06654: the area between the curves of the least relevant first (LeRF) and the most relevant first (MoRF). A
random order has 0 whatever the fill is, and the order of methods depends less on the fill than with either curve alone.
Removed parts take values of the data's own range (`FILLS`), as black pixels are unlike photos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..engine.perturb.baselines import BLUR_SIGMA_FRACTION, baseline, gaussian_blur
from ..inputs.pixels import Pixels
from ..objectives import Objective
from ..parameters import BatchSize
from .perturbing import importance, perturbed_scores, rank_descending

GRIDS = (7, 12)  # cells along an image's shorter side, each of which is removed at once
N_STEPS = 6
MIN_SCORE_LOSS = 0.05  # of the score's magnitude, that removing everything must cost for a fill to be used
MIN_KNOWN_WEIGHT = 1e-3  # of a removed pixel's surroundings, below which they are too far away

Fill = Callable[[Tensor, Tensor], Tensor]
"""(examples (R,), removed (R, 1, H, W) or (R, F) bool) -> the values that take their place (R, ...)."""


def fills(box: Box, x: Tensor, seed: int) -> dict[str, Fill]:
    """The fills that apply to these inputs, by name."""
    others = {"other examples": partial(_take, x.roll(1, 0))} if len(x) > 1 else {}
    if not isinstance(box.inputs, Pixels):
        return {"mean": partial(_take, baseline(box, x, "mean", seed=seed)), **others}
    blurred = baseline(box, x, "blurred", seed=seed)
    return {"blurred": partial(_take, blurred), "surroundings": partial(_surroundings, x), **others}


def _take(values: Tensor, examples: Tensor, removed: Tensor) -> Tensor:
    return values[examples]


def _surroundings(x: Tensor, examples: Tensor, removed: Tensor) -> Tensor:
    """The weighted mean of the pixels around that are left; far from any, the mean of the image."""
    images, known = x[examples], (~removed).to(x.dtype)
    sigma = BLUR_SIGMA_FRACTION * min(x.shape[-2:])
    weight = gaussian_blur(known, sigma)
    near = gaussian_blur(images * known, sigma) / weight.clamp(min=MIN_KNOWN_WEIGHT)
    return torch.where(weight > MIN_KNOWN_WEIGHT, near, images.mean((2, 3), keepdim=True))


def relevance_gain(
    box: Box, x: Tensor, maps: Tensor, objective: Objective, fill_by_name: Mapping[str, Fill], *,
    signed: bool, seed: int, batch_size: BatchSize = "auto",
) -> Tensor:  # fmt: skip
    """The area between both curves per example (N, F G), by each fill and grid of cells.

    In fractions of what removing everything costs: 1 is the largest possible, 0 that of a random order. NaN where
    removing everything costs next to nothing.
    """
    relevance = importance(box, x, maps, signed=signed)  # (N, P)
    rankings = _rankings(box, x, relevance, seed)
    run = partial(_area_between_curves, box, x, objective, batch_size=batch_size)
    return torch.stack([run(ranks, n, fill) for fill in fill_by_name.values() for ranks, n in rankings], 1)


def _area_between_curves(
    box: Box, x: Tensor, objective: Objective, ranks: Tensor, n_cells: int, fill: Fill, *, batch_size: BatchSize
) -> Tensor:
    """The area per example (N,), by ranks of each pixel's cell (N, 1, H, W), or of columns (N, F)."""
    counts = torch.linspace(0, n_cells, N_STEPS + 1, device=x.device).round().long()
    thresholds = torch.cat([counts, -counts[1:-1]])  # MoRF from 0 to all, then the inner steps of LeRF

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        count = thresholds[steps].view(-1, *[1] * (ranks.ndim - 1))
        removed = torch.where(count >= 0, ranks[examples] < count, ranks[examples] >= n_cells + count)
        return [torch.where(removed, fill(examples, removed), x[examples])]

    (scores,) = perturbed_scores(box, objective, len(x), len(thresholds), perturb, batch_size)
    return _area_between(scores)


def _area_between(scores: Tensor) -> Tensor:
    """The area between the curves (N,), of scores (N, N_STEPS + 1) of MoRF and (N, N_STEPS - 1) of LeRF beside them."""
    morf, lerf = scores[:, 1:N_STEPS], scores[:, N_STEPS + 1 :]
    loss = (scores[:, 0] - scores[:, N_STEPS]).mean()
    if loss <= MIN_SCORE_LOSS * scores[:, 0].abs().mean():
        return torch.full_like(scores[:, 0], torch.nan)
    return (lerf - morf).sum(1) / N_STEPS / loss


def _rankings(box: Box, x: Tensor, relevance: Tensor, seed: int) -> list[tuple[Tensor, int]]:
    """The rank of the cell that each pixel belongs to, 0 is the most relevant, and the number of cells, for each grid.

    What is no image has one ranking, of its columns.
    """
    if not isinstance(box.inputs, Pixels) or x.ndim != 4:
        return [(rank_descending(relevance, seed).view(len(x), *_feature_shape(box, x)), relevance.shape[1])]
    height, width = x.shape[-2:]
    rankings = []
    for per_side in GRIDS:
        side = max(1.0, min(height, width) / per_side)
        grid = max(1, round(height / side)), max(1, round(width / side))
        cells = F.adaptive_avg_pool2d(relevance.view(-1, 1, height, width), grid)
        rank = rank_descending(cells.flatten(1), seed).view(-1, 1, *grid)
        pixels = F.interpolate(rank.float(), (height, width), mode="nearest-exact").long()
        rankings.append((pixels, grid[0] * grid[1]))
    return rankings


def _feature_shape(box: Box, x: Tensor) -> tuple[int, ...]:
    return (1, *x.shape[2:]) if isinstance(box.inputs, Pixels) else tuple(x.shape[1:])
