"""RISE: the mean of random masks, weighted by the score that the input keeps under each.

Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", arXiv:1806.07421.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.perturb.masking import MASKED_INPUT, forward_batch_plan, resolve_objective, score_points
from ..engine.perturb.masks import rise_masks
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import BatchSize, in_batches
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective
from ..validation import check_float, check_int, check_seed

Normalize = Literal["expectation", "coverage", "difference"]


@card(
    name="RISE",
    source="Petsiuk et al. 2018, arXiv:1806.07421, sections 3.1 and 3.2",
    shows="Which regions the score stays high with when all else is dimmed at random.",
    does_not_show="Fine detail, or signs: the map is as coarse as the grid, and one from few masks is mostly their noise.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, y, n_samples=24, cells=3),
    exempt={
        "one forward": "it runs the model once for each mask",
        "row seeds": "all rows are seen through the same masks, so that their maps can be compared",
    },
)
def rise(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    n_samples: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    normalize: Normalize = "expectation",
    on: Literal["probability", "score"] | None = None,
    baseline: Baseline = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """The mean over masks M (1, H, W) of score(x M + baseline (1 - M)) M / keep, (N, 1, H, W).

    Masks are grids of cells x cells, each kept with probability `keep`, enlarged and shifted at random; the same for
    all rows. `normalize="coverage"` divides by each pixel's own sum of masks in place of n_samples * keep, and
    "difference" subtracts from that the mean score. `on="probability"` scores the class's probability, as in the paper
    and by default where target means a class; "score" takes what target means by itself.
    Raises InputError for inputs that are no images, or more cells than pixels.
    """
    inputs = require_images(box, "RISE")
    n, cells = check_int("n_samples", n_samples, minimum=1), check_int("cells", cells, minimum=1)
    keep, seed = check_float("keep", keep, 0, 1), check_seed(seed)
    if normalize not in ("expectation", "coverage", "difference"):
        raise InputError(f'normalize is "expectation", "coverage" or "difference"; got {normalize!r}')
    size = inputs.shape[-2], inputs.shape[-1]
    if cells > min(size):
        raise InputError(f"a grid of {cells} cells is finer than images of {size[0]}x{size[1]}")
    x = box.validate_inputs(x)
    score, _ = resolve_objective(box, target, x, batch_size, on)
    baseline_values = baseline_of(box, x, baseline, seed=seed)
    sums = _RiseSums(box, x, baseline_values, score, lambda ks: rise_masks(ks, size, cells, keep, seed, x))
    sums.run(n, batch_size)
    check_finite_scores(sums.score_sums, MASKED_INPUT)
    return sums.normalized_map(n, keep, normalize).to(box.dtype).to(box.device)


class _RiseSums:
    """Sums over masks so far: they are drawn batch by batch, and none is kept."""

    def __init__(
        self, box: Box, x: Tensor, baseline_values: Tensor, score: Objective, masks: Callable[[range], Tensor]
    ) -> None:
        self.box, self.x, self.baseline_values, self.score, self.masks = box, x, baseline_values, score, masks
        sum_dtype = torch.float32 if x.device.type == "mps" else torch.float64
        self.weighted_masks = torch.zeros(
            len(x), x[0, 0].numel(), dtype=sum_dtype, device=x.device
        )  # sums of score * M
        self.coverage = self.weighted_masks.new_zeros(x[0, 0].numel())  # of M
        self.score_sums = self.weighted_masks.new_zeros(len(x))

    def run(self, n: int, batch_size: BatchSize) -> None:
        rows = len(self.x)
        if self.box.batch_dependent or self.score.batch_dependent:  # then a batch is all rows under one mask
            in_batches(lambda k: self._add_batch(slice(k.start * rows, k.stop * rows)), n, 1, 1)
        else:
            in_batches(self._add_batch, n * rows, *forward_batch_plan(self.box, n * rows, batch_size))

    def _add_batch(self, pairs: slice) -> None:
        """Pairs of mask and row, the rows of one mask side by side."""
        rows = len(self.x)
        first, last = pairs.start // rows, -(-pairs.stop // rows)
        masks = self.masks(range(first, last))  # (K, 1, H, W)
        at = torch.arange(pairs.start, pairs.stop, device=self.x.device)
        k, row = at // rows - first, at % rows
        x, baseline_values = self.x[row], self.baseline_values[row]
        pair_scores = score_points(self.box, baseline_values + masks[k] * (x - baseline_values), [self.score], row)[
            :, 0
        ].to(self.weighted_masks)
        table = self.weighted_masks.new_zeros(len(masks), rows).index_put((k, row), pair_scores)
        flat = masks.flatten(1).to(self.weighted_masks)  # (K, H W)
        self.weighted_masks += table.T @ flat
        self.score_sums += table.sum(0)
        self.coverage += flat[-(-pairs.start // rows) - first :].sum(0)  # a mask counts where its first row is

    def normalized_map(self, n: int, keep_probability: float, normalize: Normalize) -> Tensor:
        shape = (len(self.x), 1, *self.x.shape[2:])
        if normalize == "expectation":
            return (self.weighted_masks / (n * keep_probability)).view(shape)
        coverage_map = self.weighted_masks / self.coverage.clamp(min=1e-12)
        return (coverage_map if normalize == "coverage" else coverage_map - self.score_sums[:, None] / n).view(shape)
