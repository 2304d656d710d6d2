"""RISE: the mean of random masks, weighted by the score that the input keeps under each.

Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", arXiv:1806.07421.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, resolve_result_target
from ..engine.cpu_cache import forward_batch_size_and_max_rows
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.perturb.masking import MASKED_INPUT_NAME_IN_ERRORS, resolve_objective_and_classes, score_perturbed_inputs
from ..engine.perturb.masks import rise_masks
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import map_in_batches
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective
from ..parameters import BatchSize, ExplainedQuantity, InputBatch, NSamples, Seed, Target
from ..settings import Above, AtLeast, Below, Unit, check_settings
from ..validation import valid_seed

RiseNormalization = Literal["expectation", "coverage", "difference"]


@card(
    name="RISE",
    source="Petsiuk et al. 2018, arXiv:1806.07421, sections 3.1 and 3.2",
    shows="Which regions keep the score high when the rest of the image is dimmed at random.",
    does_not_show="Fine detail, or signs: the map is as coarse as the grid, and one from few masks is mostly noise.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, y, n_samples=24, cells=3),
    exempt={
        "one forward": "it runs the model once for each mask",
        "row seeds": "all rows are seen through the same masks, so that their maps can be compared",
    },
    runs=lambda s: s["n_samples"],
    order=12,
)
def rise(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    n_samples: NSamples = 4000,
    cells: Annotated[int, AtLeast(1), Unit("cells"), "Cells along each side of the grid that masks are drawn on."] = 7,
    keep: Annotated[float, Above(0), Below(1), "Probability with which a cell is kept."] = 0.5,
    normalize: Annotated[RiseNormalization, "What the sum of weighted masks is divided by."] = "expectation",
    on: ExplainedQuantity = None,
    baseline: Baseline = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The mean of random smooth masks, each weighted by the score that the image keeps under it.

    Needs only the model's output. It takes thousands of forward passes; `lime` and `kernel_shap` say more with fewer,
    and with standard errors, and `grad_cam` is as coarse but takes one pass.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        n_samples: Number of random samples. Each is a mask, the same for all rows.
        cells: Cells along each side of the grid that masks are drawn on. Grids are enlarged (bilinear) and shifted at
            random.
        keep: Probability with which a cell is kept.
        normalize: What the sum of weighted masks is divided by. "expectation": n_samples * keep, as in the paper;
            "coverage": each pixel's own sum of masks; "difference": coverage, less the mean score.
        on: What is explained: the probability of the class, or the score of `target`. None is the probability where
            target is a class, as in the paper.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The mean over masks M (1, H, W) of score(x M + baseline (1 - M)) M / keep, (N, 1, H, W).

    Raises:
        InputError: for inputs that are not images, or more cells than pixels.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.rise(box, x, y, n_samples=64, cells=5).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Petsiuk et al. 2018, arXiv:1806.07421, sections 3.1 and 3.2, equation 6.
    """
    check_settings(rise, locals())
    inputs, seed = require_images(box, "RISE"), valid_seed(seed)
    size = inputs.shape[-2], inputs.shape[-1]
    if cells > min(size[2 - min(inputs.n_axes, 2) :]):
        raise InputError(f"a grid of {cells} cells is finer than images of {size[0]}x{size[1]}")
    x = box.validate_inputs(x)
    score, classes = resolve_objective_and_classes(box, target, x, batch_size, on)
    baseline_values = baseline_of(box, x, baseline, seed=seed)
    sums = _RiseAccumulator(box, x, baseline_values, score, lambda ks: rise_masks(ks, size, cells, keep, seed, x))
    sums.run(n_samples, batch_size)
    if not sums.score_sums.isfinite().all():  # x itself may be the cause
        check_finite_scores(score_perturbed_inputs(box, x, [score], torch.arange(len(x), device=x.device)))
        check_finite_scores(sums.score_sums, MASKED_INPUT_NAME_IN_ERRORS)
    maps = sums.normalized_map(n_samples, keep, normalize).to(box.dtype).to(box.device)
    return Attribution(
        box.restore_structure(maps),
        input=box.restore_structure(x),
        target=resolve_result_target(box, target if classes is None else classes, len(x)),
        method="RISE",
        classes=box.classes,
    )


class _RiseAccumulator:
    """Sums over the masks so far: masks are drawn batch by batch, and none is stored."""

    def __init__(
        self, box: Box, x: Tensor, baseline_values: Tensor, score: Objective, masks: Callable[[range], Tensor]
    ) -> None:
        self.box, self.x, self.baseline_values, self.score, self.masks = box, x, baseline_values, score, masks
        sum_dtype = torch.float32 if x.device.type == "mps" else torch.float64
        self.weighted_masks = torch.zeros(len(x), x[0, 0].numel(), dtype=sum_dtype, device=x.device)  # of score * M
        self.coverage = self.weighted_masks.new_zeros(x[0, 0].numel())  # of M
        self.score_sums = self.weighted_masks.new_zeros(len(x))

    def run(self, n_masks: int, batch_size: BatchSize) -> None:
        rows = len(self.x)
        if self.box.batch_dependent or self.score.batch_dependent:  # then a batch is all rows under one mask
            map_in_batches(lambda k: self._add_mask_row_pairs(slice(k.start * rows, k.stop * rows)), n_masks, 1, 1)
        else:
            map_in_batches(
                self._add_mask_row_pairs,
                n_masks * rows,
                *forward_batch_size_and_max_rows(self.box, n_masks * rows, batch_size),
            )

    def _add_mask_row_pairs(self, pairs: slice) -> None:
        """Pairs of mask and row; all rows of a mask come before the next mask."""
        rows = len(self.x)
        first, last = pairs.start // rows, -(-pairs.stop // rows)
        masks = self.masks(range(first, last))  # (K, 1, H, W)
        at = torch.arange(pairs.start, pairs.stop, device=self.x.device)
        k, row = at // rows - first, at % rows
        x, baseline_values = self.x[row], self.baseline_values[row]
        pair_scores = score_perturbed_inputs(
            self.box, baseline_values + masks[k] * (x - baseline_values), [self.score], row
        )[:, 0].to(self.weighted_masks)
        table = self.weighted_masks.new_zeros(len(masks), rows).index_put((k, row), pair_scores)
        flat = masks.flatten(1).to(self.weighted_masks)  # (K, H W)
        self.weighted_masks += table.T @ flat
        self.score_sums += table.sum(0)
        self.coverage += flat[-(-pairs.start // rows) - first :].sum(0)  # a mask counts where its first row is

    def normalized_map(self, n_masks: int, keep_probability: float, normalize: RiseNormalization) -> Tensor:
        shape = (len(self.x), 1, *self.x.shape[2:])
        if normalize == "expectation":
            return (self.weighted_masks / (n_masks * keep_probability)).view(shape)
        coverage_map = self.weighted_masks / self.coverage.clamp(min=1e-12)
        return (coverage_map if normalize == "coverage" else coverage_map - self.score_sums[:, None] / n_masks).view(
            shape
        )
