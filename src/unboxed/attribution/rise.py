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
from ..engine.perturb.masking import HIDDEN, objective, scored, splits
from ..engine.perturb.masks import grids
from ..engine.read.sizes import images_only
from ..errors import InputError
from ..model.answers import check_finite_scores
from ..model.batching import BatchSize, in_batches
from ..objectives import Objective
from ..validation import check_seed, check_float, check_int

Normalize = Literal["expectation", "coverage", "difference"]


@card(
    name="RISE",
    source="Petsiuk et al. 2018, arXiv:1806.07421, sections 3.1 and 3.2",
    shows="Which regions the score stays high with when all else is dimmed at random.",
    does_not_show="Fine detail, or signs: the map is as coarse as the grid, and one from few masks is mostly their noise.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, y, n_samples=24, cells=3),
    exempt={
        "one look": "it runs the model once for each mask",
        "draws of rows": "all rows are seen through the same masks, so that their maps can be compared",
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
    inputs = images_only(box, "RISE")
    n, cells = check_int("n_samples", n_samples, minimum=1), check_int("cells", cells, minimum=1)
    keep, seed = check_float("keep", keep, 0, 1), check_seed(seed)
    if normalize not in ("expectation", "coverage", "difference"):
        raise InputError(f'normalize is "expectation", "coverage" or "difference"; got {normalize!r}')
    size = inputs.shape[-2], inputs.shape[-1]
    if cells > min(size):
        raise InputError(f"a grid of {cells} cells is finer than images of {size[0]}x{size[1]}")
    x = box.validate_inputs(x)
    score, _ = objective(box, target, x, batch_size, on)
    base = baseline_of(box, x, baseline, seed=seed)
    seen = _Seen(box, x, base, score, lambda ks: grids(ks, size, cells, keep, seed, x))
    seen.run(n, batch_size)
    check_finite_scores(seen.scores, HIDDEN)
    return seen.normalized(n, keep, normalize).to(box.dtype).to(box.device)


class _Seen:
    """Sums over masks so far: they are drawn batch by batch, and none is kept."""

    def __init__(self, box: Box, x: Tensor, base: Tensor, score: Objective, masks: Callable[[range], Tensor]) -> None:
        self.box, self.x, self.base, self.score, self.masks = box, x, base, score, masks
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        self.weighted = torch.zeros(len(x), x[0, 0].numel(), dtype=wide, device=x.device)  # sums of score * M
        self.cover = self.weighted.new_zeros(x[0, 0].numel())  # of M
        self.scores = self.weighted.new_zeros(len(x))

    def run(self, n: int, batch_size: BatchSize) -> None:
        rows = len(self.x)
        if self.box.batch_dependent or self.score.batch_dependent:  # then a batch is all rows under one mask
            in_batches(lambda k: self._part(slice(k.start * rows, k.stop * rows)), n, 1, 1)
        else:
            in_batches(self._part, n * rows, *splits(self.box, n * rows, batch_size))

    def _part(self, pairs: slice) -> None:
        """Pairs of mask and row, the rows of one mask side by side."""
        rows = len(self.x)
        first, last = pairs.start // rows, -(-pairs.stop // rows)
        masks = self.masks(range(first, last))  # (K, 1, H, W)
        at = torch.arange(pairs.start, pairs.stop, device=self.x.device)
        k, row = at // rows - first, at % rows
        x, base = self.x[row], self.base[row]
        found = scored(self.box, base + masks[k] * (x - base), [self.score], row)[:, 0].to(self.weighted)
        table = self.weighted.new_zeros(len(masks), rows).index_put((k, row), found)
        flat = masks.flatten(1).to(self.weighted)  # (K, H W)
        self.weighted += table.T @ flat
        self.scores += table.sum(0)
        self.cover += flat[-(-pairs.start // rows) - first :].sum(0)  # a mask counts where its first row is

    def normalized(self, n: int, keep: float, how: Normalize) -> Tensor:
        shape = (len(self.x), 1, *self.x.shape[2:])
        if how == "expectation":
            return (self.weighted / (n * keep)).view(shape)
        kept = self.weighted / self.cover.clamp(min=1e-12)
        return (kept if how == "coverage" else kept - self.scores[:, None] / n).view(shape)
