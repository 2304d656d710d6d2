"""ROAD (remove and debias): score and accuracy when pixels are replaced by noisy linear imputation of their neighbors.

Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", arXiv:2202.00449 (noisy
linear imputation and the removal orders; weights and noise as in the authors' code, `imputations.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import splu
from torch import Tensor

from ..box import Box
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..errors import InputError, OutputError
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, InputBatch, Seed, Target
from ..settings import AtLeast, Unit, check_settings
from ..validation import check_float, valid_seed
from .methods import Maps, RankBySignedValue
from .perturbing import (
    ScoreSetting,
    fix_score_and_classes,
    keyed_noise,
    perturbed_scores,
    pixel_importance,
    rank_descending,
)

DEFAULT_REMOVED_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
IMPUTATION_WEIGHT_BY_OFFSET = {
    (0, 1): 1 / 6, (1, 0): 1 / 6, (0, -1): 1 / 6, (-1, 0): 1 / 6,
    (1, 1): 1 / 12, (1, -1): 1 / 12, (-1, 1): 1 / 12, (-1, -1): 1 / 12,
}  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class Road(ResultMixin):
    """Scores and predictions as fractions of the pixels are removed."""

    removed_fractions: Tensor  # (S,) of the pixels removed
    scores: Tensor  # (N, S)
    correct: Tensor | None  # (N, S) bool: the predicted class is the target; None where the target is not a class

    @property
    def accuracy(self) -> Tensor:
        """The fraction of examples that are still classified as their target, (S,). Raises OutputError without one."""
        if self.correct is None:
            raise OutputError("accuracy needs classes: this target is an objective, or the model does regression")
        return self.correct.to(self.scores.dtype).mean(0)


def road(
    box: Box,
    x: InputBatch,
    maps: Maps,
    target: Target = None,
    *,
    fractions: Annotated[Sequence[float], "Fractions of the pixels that are removed, each in (0, 1]."]
    = DEFAULT_REMOVED_FRACTIONS,
    order: Annotated[Literal["morf", "lerf"], "Remove the most relevant pixels first (MoRF) or the least (LeRF)."]
    = "morf",
    noise: Annotated[
        float, AtLeast(0), Unit("pixel range"), "Standard deviation of the noise added to imputed pixels."
    ] = 0.01,
    score: ScoreSetting = None,
    signed: RankBySignedValue = True,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Road:  # fmt: skip
    """Score and accuracy with fractions of the pixels removed by noisy linear imputation.

    A good map makes them fall fast under MoRF and slowly under LeRF. Imputed pixels leave no trace of the removed
    shape, which black pixels (`deletion`) do.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result. A pixel's
            importance is the sum over its channels, which are removed together.
        target: The score: a class, one per example (N,), or an objective. The labels give the accuracy as in the
            paper; None is the class predicted for x.
        fractions: Fractions of the pixels that are removed, each in (0, 1].
        order: Remove the most relevant pixels first (MoRF) or the least (LeRF).
        noise: Standard deviation of the noise added to imputed pixels.
        score: What is measured of the class: its "probability" or its "logit". None is the probability; with an
            objective as `target` it must be None.
        signed: Rank pixels by the map with its sign; False ranks by its magnitude.
        seed: Seed of all random draws: same seed, same result. Noise is keyed by (seed, row, fraction).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Road`: `removed_fractions` (S,), `scores` (N, S), `correct` (N, S) and its mean, `accuracy` (S,).

    Raises:
        InputError: for maps, inputs or settings that do not fit.
        OutputError: for the probability of a regression model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> maps = ub.attribution.gradient_x_input(box, x, y)
        >>> r = ub.checks.road(box, x, maps, y, fractions=[0.1, 0.3])
        >>> r.scores.shape, r.accuracy.shape
        (torch.Size([4, 2]), torch.Size([2]))

    Source:
        Rong et al. 2022, arXiv:2202.00449, section 4: imputed pixels are the weighted mean of their neighbors (1/6
        horizontally and vertically, 1/12 diagonally; at the border of those there are), all solved at once; where all
        are removed, each channel's mean. Slices of a volume are imputed one by one. Weights and noise as in the
        authors' code, `imputations.py`.
    """
    check_settings(road, locals())
    inputs = require_images(box, "ROAD")
    x = box.validate_inputs(x)
    removed_fractions, seed = _check_removed_fractions(fractions), valid_seed(seed)
    relevance = pixel_importance(box, x, maps, signed=signed)  # (N, P)
    rank = rank_descending(relevance if order == "morf" else -relevance, seed)
    counts = [round(f * rank.shape[1]) for f in removed_fractions]
    objective, classes = fix_score_and_classes(box, x, target, score, "probability", batch_size)
    weights = _neighbor_weight_matrix(*inputs.slices(x).shape[-2:])

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        imputed = [
            _impute_slices(inputs, x[n], rank[n] < counts[k], weights)
            for n, k in zip(examples.tolist(), steps.tolist(), strict=True)
        ]
        removed = rank[examples] < torch.tensor(counts, device=x.device)[steps, None]
        noise_rows = noise * keyed_noise(torch.randn, x.shape[1:], x, seed, examples, steps)
        return [torch.stack(imputed) + noise_rows * removed.view(-1, 1, *x.shape[2:])]

    predict = classes is not None and box.outputs != "regression"
    scores_per_step, *classes_per_step = perturbed_scores(
        box, objective, len(x), len(counts), perturb, batch_size, predict=predict
    )
    correct = classes_per_step[0] == classes[:, None] if classes is not None and classes_per_step else None
    return Road(
        torch.tensor(removed_fractions, dtype=box.dtype, device=x.device), scores_per_step.to(box.dtype), correct
    )


def _check_removed_fractions(fractions: Sequence[float]) -> list[float]:
    values = fractions.tolist() if isinstance(fractions, (Tensor, np.ndarray)) else fractions
    if isinstance(values, (str, int, float)) or not len(values):
        raise InputError(f"fractions must be a list of numbers in (0, 1]; got {fractions!r}")
    return [check_float("a fraction", f, above=0, maximum=1) for f in values]


def _neighbor_weight_matrix(height: int, width: int) -> sparse.csr_matrix:
    """(P, P): the weight of each neighbor in the mean of each pixel's neighbors; rows sum to 1."""
    index = np.arange(height * width).reshape(height, width)
    rows, columns, values = [], [], []
    for (down, across), weight in IMPUTATION_WEIGHT_BY_OFFSET.items():
        inner = index[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)]
        rows.append(inner.ravel())
        columns.append((inner + down * width + across).ravel())
        values.append(np.full(inner.size, weight))
    matrix = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
                              shape=(index.size, index.size))  # fmt: skip
    total = np.asarray(matrix.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.where(total > 0, total, 1)) @ matrix)


def _impute_slices(inputs: Pixels, image: Tensor, removed: Tensor, weights: sparse.csr_matrix) -> Tensor:
    """The image (C, H, W) with each removed pixel (P,) imputed from the slice of a volume that it is in."""
    slices = inputs.slices(image[None])[0].unbind(1)
    masks, means = removed.view(len(slices), -1), image.mean((1, 2)).double().cpu().numpy()
    return torch.cat([_impute_noisy_linear(h, mask, weights, means) for h, mask in zip(slices, masks, strict=True)], 1)


def _impute_noisy_linear(
    image: Tensor, removed_mask: Tensor, weights: sparse.csr_matrix, means: NDArray[np.float64] | None = None
) -> Tensor:
    """The image (C, H, W) with each removed pixel (P,) the weighted mean of its neighbors, all solved at once."""
    flat, is_removed = image.flatten(1).double().cpu().numpy().T.copy(), removed_mask.cpu().numpy()  # (P, C), (P,)
    if is_removed.all():
        flat[:] = flat.mean(0) if means is None else means
    elif is_removed.any():
        rows = weights[is_removed]
        system = sparse.identity(int(is_removed.sum()), format="csc") - rows[:, is_removed].tocsc()
        flat[is_removed] = splu(sparse.csc_matrix(system)).solve(np.asarray(rows[:, ~is_removed] @ flat[~is_removed]))
    return torch.from_numpy(flat.T.copy()).to(image).view_as(image)
