"""ROAD (remove and debias): the score and accuracy when pixels are removed so that they leave no trace of their shape.

Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", arXiv:2202.00449 (noisy
linear imputation and the removal orders; weights and noise as in the authors' code, `imputations.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from ..box import Box
from ..engine.read.sizes import require_images
from ..errors import InputError, OutputError
from ..model.batching import BatchSize
from ..validation import check_float, check_seed
from .perturbing import Score, Target, importance, keyed_noise, perturbed_scores, rank_descending, resolve_score

DEFAULT_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NEIGHBOR_WEIGHTS = {
    (0, 1): 1 / 6, (1, 0): 1 / 6, (0, -1): 1 / 6, (-1, 0): 1 / 6,
    (1, 1): 1 / 12, (1, -1): 1 / 12, (-1, 1): 1 / 12, (-1, -1): 1 / 12,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Road:
    removed_fractions: Tensor  # (S,) of the pixels removed
    scores: Tensor  # (N, S)
    correct: Tensor | None  # (N, S) bool: the class found is the target; None where the target is no class

    @property
    def accuracy(self) -> Tensor:
        """The share of examples still taken for their target, (S,). Raises OutputError where that is no class."""
        if self.correct is None:
            raise OutputError("accuracy needs classes: this target is an objective, or the model does regression")
        return self.correct.to(self.scores.dtype).mean(0)


def road(
    box: Box,
    x: Any,
    maps: Any,
    target: Target = None,
    *,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    order: Literal["morf", "lerf"] = "morf",
    noise: float = 0.01,
    score: Score | None = None,
    signed: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Road:
    """Score and accuracy with a share of the pixels removed, "morf" most relevant first, "lerf" least relevant first.

    A map that is right makes them fall soon under MoRF and late under LeRF. Removed pixels become the weighted mean of
    their neighbors (1/6 beside, 1/12 diagonal; at the border of those there are), all at once, plus Gaussian noise of
    standard deviation `noise`; where all are removed, the image's mean of each channel. `target` is the labels y (N,)
    for accuracy as in the paper; None is the class predicted for x as it is. `fractions` lie in (0, 1]. Ranks, `signed`
    and the score are as in `deletion`; noise is drawn by (seed, row, fraction). Raises InputError.
    """
    require_images(box, "ROAD")
    x = box.validate_inputs(x)
    if order not in ("morf", "lerf"):
        raise InputError(f'order is "morf" or "lerf"; got {order!r}')
    removed_fractions, noise, seed = (
        _check_fractions(fractions),
        check_float("noise", noise, minimum=0),
        check_seed(seed),
    )
    relevance = importance(box, x, maps, signed=signed)  # (N, P)
    rank = rank_descending(relevance if order == "morf" else -relevance, seed)
    counts = [round(f * rank.shape[1]) for f in removed_fractions]
    objective, classes = resolve_score(box, x, target, score, "probability", batch_size)
    weights = _neighbor_weights(x.shape[-2], x.shape[-1])

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        imputed = [
            _impute(x[n], rank[n] < counts[k], weights) for n, k in zip(examples.tolist(), steps.tolist(), strict=True)
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


def _check_fractions(fractions: Sequence[float]) -> list[float]:
    values = fractions.tolist() if isinstance(fractions, (Tensor, np.ndarray)) else fractions
    if isinstance(values, (str, int, float)) or not len(values):
        raise InputError(f"fractions is a list of shares in (0, 1]; got {fractions!r}")
    return [check_float("a fraction", f, above=0, maximum=1) for f in values]


def _neighbor_weights(height: int, width: int) -> sparse.csr_matrix:
    """(P, P): what each pixel takes from each of its neighbors, summing to 1."""
    index = np.arange(height * width).reshape(height, width)
    rows, columns, values = [], [], []
    for (down, across), weight in NEIGHBOR_WEIGHTS.items():
        inner = index[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)]
        rows.append(inner.ravel())
        columns.append((inner + down * width + across).ravel())
        values.append(np.full(inner.size, weight))
    matrix = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
                              shape=(index.size, index.size))  # fmt: skip
    total = np.asarray(matrix.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.where(total > 0, total, 1)) @ matrix)


def _impute(image: Tensor, removed_mask: Tensor, weights: sparse.csr_matrix) -> Tensor:
    """The image (C, H, W) with each removed pixel (P,) the weighted mean of its neighbors, all solved at once."""
    flat, is_removed = image.flatten(1).double().cpu().numpy().T.copy(), removed_mask.cpu().numpy()  # (P, C), (P,)
    if is_removed.all():
        flat[:] = flat.mean(0)
    elif is_removed.any():
        rows = weights[is_removed]
        system = sparse.identity(int(is_removed.sum()), format="csc") - rows[:, is_removed].tocsc()
        flat[is_removed] = splu(sparse.csc_matrix(system)).solve(np.asarray(rows[:, ~is_removed] @ flat[~is_removed]))
    return torch.from_numpy(flat.T.copy()).to(image).view_as(image)
