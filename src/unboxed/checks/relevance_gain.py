"""Symmetric relevance gain: does removing what a map marks lower the score sooner than removing what it does not?

Bluecher, Vielhaben & Strodthoff 2024, "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks",
arXiv:2401.06654: the area between the curves of the least relevant first (LeRF) and the most relevant first (MoRF). A
random order has 0 whatever the fill is, and the order of methods depends less on the fill than with either curve alone.
Removed parts take values of the data's own range (`fill_fn_by_name`), as black pixels are unlike photos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..box import Box
from ..checkpointing import tensor_digest
from ..engine.perturb.baselines import (
    baseline,
    baseline_of_row_means,
    blur_sigma,
    gaussian_blur,
    has_known_mean,
    shorter_side,
)
from ..engine.rows import broadcast_rows
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from ..objectives import Objective
from ..parameters import BatchSize
from .control_boxes import scores_shared_by_methods
from .perturbing import (
    n_removable_per_example,
    perturbed_scores,
    pixel_importance,
    rank_descending,
    removable_tokens,
    removal_mask_shape,
)
from .text_fills import text_fills

N_PARTS_PER_SHORTER_SIDE_BY_GRID = (7, 12)  # parts along an image's shorter side, each of which is removed at once
MAX_REMOVAL_STEPS = 6
# Of the largest score's magnitude: below it, removing parts changes nothing but rounding
MIN_SCORE_RANGE_RELATIVE_TO_SCORE = 1e-6
# Of the mean range of the scores: the gain of an example that hardly changes is small
MIN_EXAMPLE_SCORE_RANGE_FRACTION = 0.05
MIN_NEIGHBOR_WEIGHT_SUM = 1e-3  # of a removed pixel's surroundings, below which they are too far away

FillFn = Callable[[Tensor, Tensor], Tensor]
"""(examples (R,), removed (R, 1, H, W), (R, F) or (R, T, 1) bool) -> the values that take their place (R, ...)."""


def fill_fn_by_name(box: Box, x: Tensor, seed: int, baseline_kind: Any = None) -> dict[str, FillFn]:
    """The fills that apply to these inputs, by name. Those from around a pixel take its own slice of a volume.

    Columns take the values of a baseline, where one is given; images and texts have their own fills.
    """
    others = {"other examples": partial(_fill_from_baseline_values, x.roll(1, 0))} if len(x) > 1 else {}
    if isinstance(box.inputs, Tokens):
        return {name: partial(_fill_from_baseline_values, h) for name, h in text_fills(box.inputs, x, seed).items()}
    if not isinstance(box.inputs, Pixels):
        name, kind = "baseline", baseline_kind
        if kind is None:
            is_known = has_known_mean(box.inputs) or len(x) > 1
            name, kind = ("mean", baseline_of_row_means(box.inputs, x)) if is_known else ("zeros", None)
        return {name: partial(_fill_from_baseline_values, baseline(box, x, kind, seed=seed)), **others}
    blurred = partial(_fill_from_baseline_values, baseline(box, x, "blurred", seed=seed))
    return {
        "blurred": blurred,
        "surroundings": partial(_fill_from_weighted_neighbors, box.inputs, x),
        "nearest": partial(_fill_from_nearest_remaining_pixel, box.inputs, x),
        **others,
    }


def _fill_from_baseline_values(values: Tensor, examples: Tensor, removed: Tensor) -> Tensor:
    return values[examples]


def _fill_from_weighted_neighbors(inputs: Pixels, x: Tensor, examples: Tensor, removed: Tensor) -> Tensor:
    """The weighted mean of the pixels around that are left; far from any, the mean of the image."""
    images, known = inputs.slices(x[examples]), inputs.slices((~removed).to(x.dtype))  # (R, C or 1, D, H, W)
    sigma = blur_sigma(images)
    weight = gaussian_blur(known, sigma)
    near = gaussian_blur(images * known, sigma) / weight.clamp(min=MIN_NEIGHBOR_WEIGHT_SUM)
    filled = torch.where(weight > MIN_NEIGHBOR_WEIGHT_SUM, near, images.mean((2, 3, 4), keepdim=True))
    return filled.flatten(2, 3)


def _fill_from_nearest_remaining_pixel(inputs: Pixels, x: Tensor, examples: Tensor, removed: Tensor) -> Tensor:
    """The nearest pixel that is left; the mean of the image where none is."""
    images, masks = x[examples], inputs.slices(removed)[:, 0].cpu().numpy()  # (R, D, H, W)
    index = np.stack(
        [_nearest_remaining_pixel_index(mask) for mask in masks.reshape(-1, *masks.shape[2:])]
    )  # (R D, H W)
    taken = torch.from_numpy(index).to(x.device).view(len(images), 1, masks.shape[1], -1)
    slices = inputs.slices(images).flatten(3)  # (R, C, D, H W)
    near = slices.gather(3, taken.expand(slices.shape)).view_as(images)
    none_left = torch.from_numpy(masks.all((2, 3))).to(x.device)[:, None, :, None, None]  # (R, 1, D, 1, 1)
    mean = images.mean((2, 3), keepdim=True)
    return torch.where(none_left.expand_as(inputs.slices(removed)).flatten(2, 3), mean, near)


def _nearest_remaining_pixel_index(removed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The index (H W,) of the nearest pixel that is left to each of a slice (H, W); 0 where none is."""
    if removed.all():
        return np.zeros(removed.size, dtype=np.int64)
    y, x = distance_transform_edt(removed, return_distances=False, return_indices=True)
    return np.asarray(y * removed.shape[1] + x, dtype=np.int64).ravel()


@dataclass(frozen=True, eq=False)
class RemovalCurves:
    """Scores while parts are removed in a map's order (MoRF) and in the opposite one (LeRF), by each fill and grid."""

    fractions: Tensor  # (V, S + 1) of the parts removed, from 0 to 1
    morf: Tensor  # (N, V, S + 1), V = fills x grids
    lerf: Tensor  # (N, V, S + 1)
    variants: tuple[str, ...]  # the V fills and grids: "blurred, 49 parts"

    @property
    def gain(self) -> Tensor:
        """The area between both curves (N, V), in fractions of the range of the example's scores.

        It is at most 1, and 0 on average for a random order. NaN where removing parts does not change the scores.
        """
        area = torch.trapezoid(self.lerf - self.morf, self.fractions, dim=-1)
        scores = torch.cat([self.morf, self.lerf], -1)
        score_range = scores.amax(-1) - scores.amin(-1)  # (N, V)
        mean_range = score_range.mean(0)
        gain = area / score_range.maximum(MIN_EXAMPLE_SCORE_RANGE_FRACTION * mean_range)
        return torch.where(mean_range > MIN_SCORE_RANGE_RELATIVE_TO_SCORE * scores.abs().amax(), gain, torch.nan)

    @property
    def gain_by_fill(self) -> dict[str, float]:
        """{fill: the mean gain with it}, over examples and grids; NaN where it changes no score."""
        by_variant = zip(self.fill_names, self.gain.nanmean(0).tolist(), strict=True)
        gains: dict[str, list[float]] = {}
        for name, mean in by_variant:
            gains.setdefault(name, []).append(mean)
        return {name: sum(means) / len(means) for name, means in gains.items()}

    @property
    def fill_names(self) -> list[str]:
        """The fill of each variant (V,)."""
        return [variant.partition(",")[0] for variant in self.variants]

    def followed_by(self, other: RemovalCurves) -> RemovalCurves:
        """These curves and those by other fills."""
        return RemovalCurves(
            torch.cat([self.fractions, other.fractions]), torch.cat([self.morf, other.morf], 1),
            torch.cat([self.lerf, other.lerf], 1), self.variants + other.variants,
        )  # fmt: skip

    def where(self, chosen: Tensor, other: RemovalCurves) -> RemovalCurves:
        """These curves for the examples chosen (N,), the other ones for the rest."""
        mask = chosen[:, None, None]
        return replace(
            self, morf=torch.where(mask, self.morf, other.morf), lerf=torch.where(mask, self.lerf, other.lerf)
        )


def removal_curves(
    box: Box, x: Tensor, maps: Tensor, objective: Objective, fill_by_name: Mapping[str, FillFn], *,
    signed: bool | Tensor, seed: int, batch_size: BatchSize = "auto",
) -> RemovalCurves:  # fmt: skip
    """The curves of maps (N, ...), for validated inputs and a fixed objective.

    Parts are ranked by the map's sum over them, or by its magnitude's; `signed` (N,) says which for each example. Both
    orders share their ends.
    """
    rankings = _rank_of_pixel_part_per_grid(box, x, _relevance(box, x, maps, signed), seed)
    run = partial(_scores_during_removal, box, x, objective, batch_size=batch_size)
    variants = [(name, fill, *ranking) for name, fill in fill_by_name.items() for ranking in rankings]
    counts = [_n_removed_after_step(n_removable_per_example(box, x, n_parts)) for *_, n_parts in variants]
    ends = [  # none and all of the parts removed: the same for every map
        scores_shared_by_methods(
            box, ("removal", tensor_digest(x), objective, name, n_parts, seed), partial(run, *arguments)
        )
        for (name, fill, rank, n_parts), c in zip(variants, counts, strict=True)
        for arguments in [(fill, rank, c[:, [0, -1]])]
    ]
    inner = [
        run(fill, rank, torch.cat([c[:, 1:-1], -c[:, 1:-1]], 1), c[:, -1]) if c.shape[1] > 2 else ends[0][:, :0]
        for (_, fill, rank, _), c in zip(variants, counts, strict=True)
    ]
    both_ends, both_orders = torch.stack(ends, 1), torch.stack(inner, 1)  # (N, V, 2), (N, V, 2 (S - 1))
    n_inner = both_orders.shape[2] // 2
    morf, lerf = (
        torch.cat([both_ends[..., :1], half, both_ends[..., 1:]], 2)  # (N, V, S + 1)
        for half in (both_orders[..., :n_inner], both_orders[..., n_inner:])
    )
    longest = [c[c[:, -1].argmax()] for c in counts]
    fractions = torch.stack([c.to(morf.dtype) / max(1, int(c[-1])) for c in longest])
    return RemovalCurves(fractions, morf, lerf, tuple(f"{name}, {n_parts} parts" for name, _, _, n_parts in variants))


def _relevance(box: Box, x: Tensor, maps: Tensor, signed: bool | Tensor) -> Tensor:
    """The map at each pixel (N, P), with its sign or by its magnitude."""
    if isinstance(signed, bool):
        return pixel_importance(box, x, maps, signed=signed)
    by_sign, by_magnitude = (pixel_importance(box, x, maps, signed=choice) for choice in (True, False))
    return torch.where(signed[:, None], by_sign, by_magnitude)


def _n_removed_after_step(n_parts: Tensor) -> Tensor:
    """How many of each example's parts (N,) are removed after each step (N, S + 1), from none to all; a table of few
    columns has a step for each."""
    n_steps = max(1, min(MAX_REMOVAL_STEPS, int(n_parts.max())))
    steps = [torch.linspace(0, n, n_steps + 1, device=n_parts.device) for n in n_parts.tolist()]
    return torch.stack(steps).round().long()


def _scores_during_removal(
    box: Box, x: Tensor, objective: Objective, fill: FillFn, rank: Tensor, counts: Tensor,
    totals: Tensor | None = None, *, batch_size: BatchSize,
) -> Tensor:  # fmt: skip
    """Scores (N, T) with so many parts removed (N, T): the most relevant, or of a negative count the least relevant of
    `totals` (N,)."""
    totals = counts[:, -1] if totals is None else totals

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        count, total, ranks = counts[examples, steps], totals[examples], rank[examples]
        low = broadcast_rows(torch.where(count < 0, total + count, 0), rank)
        high = broadcast_rows(torch.where(count < 0, total, count), rank)
        removed = (ranks >= low) & (ranks < high)
        return [torch.where(removed, fill(examples, removed), x[examples])]

    (scores,) = perturbed_scores(box, objective, len(x), counts.shape[1], perturb, batch_size)
    return scores


def _rank_of_pixel_part_per_grid(box: Box, x: Tensor, relevance: Tensor, seed: int) -> list[tuple[Tensor, int]]:
    """The rank of the part that each pixel belongs to, 0 is the most relevant, and the number of parts, for each grid.

    What is no image has one ranking, of its columns or tokens. A part of a volume is in one of its slices.
    """
    if not isinstance(box.inputs, Pixels) or x.ndim != 4:
        rank = rank_descending(relevance, seed, removable_tokens(box, x))
        return [(rank.view(len(x), *removal_mask_shape(box)), relevance.shape[1])]
    n_slices, height, width = box.inputs.slices(x).shape[2:]
    rankings = []
    for per_side in N_PARTS_PER_SHORTER_SIDE_BY_GRID:
        in_slice = _grid_part_index_of_pixel(height, width, per_side).to(x.device)  # (H W,)
        per_slice = int(in_slice.max()) + 1
        part = (torch.arange(n_slices, device=x.device)[:, None] * per_slice + in_slice).flatten()  # (D H W,)
        sums = relevance.new_zeros(len(x), n_slices * per_slice).index_add_(1, part, relevance)
        rank = rank_descending(sums, seed)[:, part]
        rankings.append((rank.view(-1, 1, *x.shape[2:]), n_slices * per_slice))
    return rankings


def _grid_part_index_of_pixel(height: int, width: int, per_side: int) -> Tensor:
    """The index (H W,) of the part that each pixel belongs to: a grid with `per_side` parts along the shorter side."""
    side = max(1.0, shorter_side(height, width) / per_side)
    rows, columns = (max(1, round(n / side)) for n in (height, width))
    row, column = (torch.arange(n) * k // n for n, k in ((height, rows), (width, columns)))
    return (row[:, None] * columns + column).flatten()
