"""Symmetric relevance gain: does removing what a map marks lower the score sooner than removing what it does not?

Bluecher, Vielhaben & Strodthoff 2024, "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks",
arXiv:2401.06654: the area between the curves of the least relevant first (LeRF) and the most relevant first (MoRF). A
random order has 0 whatever the fill is, and the order of methods depends less on the fill than with either curve alone.
Removed parts take values of the data's own range (`FILLS`), as black pixels are unlike photos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class RemovalCurves:
    """Scores while parts are removed in a map's order (MoRF) and in the opposite one (LeRF), by each fill and grid."""

    fractions: Tensor  # (S + 1,) of the cells removed, from 0 to 1
    morf: Tensor  # (N, V, S + 1), V = fills x grids
    lerf: Tensor  # (N, V, S + 1)
    variants: tuple[str, ...]  # the V fills and grids: "blurred, 7 x 7"

    @property
    def gain(self) -> Tensor:
        """The area between both curves (N, V), in fractions of what removing everything costs.

        0 is that of a random order; at 1 the score is lost at once, or not until the end, and more is possible where a
        part scores above the whole. NaN where removing everything costs next to nothing.
        """
        first, last = self.morf[..., 0], self.morf[..., -1]
        loss = (first - last).mean(0)
        area = torch.trapezoid(self.lerf - self.morf, self.fractions, dim=-1)
        return torch.where(loss > MIN_SCORE_LOSS * first.abs().mean(0), area / loss, torch.nan)


def removal_curves(
    box: Box, x: Tensor, maps: Tensor, objective: Objective, fill_by_name: Mapping[str, Fill], *,
    signed: bool, seed: int, batch_size: BatchSize = "auto",
) -> RemovalCurves:  # fmt: skip
    """The curves of maps (N, ...), for validated inputs and a fixed objective.

    Cells are ranked by the map's sum over them, or by its magnitude's. Both orders share their ends.
    """
    rankings = _rankings(box, x, importance(box, x, maps, signed=signed), seed)
    run = partial(_scores, box, x, objective, batch_size=batch_size)
    variants = [(name, fill, *ranking) for name, fill in fill_by_name.items() for ranking in rankings]
    scores = torch.stack([run(fill, rank, n_cells) for _, fill, rank, n_cells in variants], 1)  # (N, V, 2 S)
    morf, inner = scores[..., : N_STEPS + 1], scores[..., N_STEPS + 1 :]
    lerf = torch.cat([morf[..., :1], inner, morf[..., -1:]], -1)
    fractions = torch.linspace(0, 1, N_STEPS + 1, dtype=scores.dtype, device=x.device)
    return RemovalCurves(fractions, morf, lerf, tuple(f"{name}, {n_cells} parts" for name, _, _, n_cells in variants))


def _scores(
    box: Box, x: Tensor, objective: Objective, fill: Fill, rank: Tensor, n_cells: int, *, batch_size: BatchSize
) -> Tensor:
    """Scores (N, 2 S): MoRF from none to all, then the inner steps of LeRF."""
    counts = torch.linspace(0, n_cells, N_STEPS + 1, device=x.device).round().long()
    thresholds = torch.cat([counts, -counts[1:-1]])

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        count = thresholds[steps].view(-1, *[1] * (rank.ndim - 1))
        removed = torch.where(count >= 0, rank[examples] < count, rank[examples] >= n_cells + count)
        return [torch.where(removed, fill(examples, removed), x[examples])]

    (scores,) = perturbed_scores(box, objective, len(x), len(thresholds), perturb, batch_size)
    return scores


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
