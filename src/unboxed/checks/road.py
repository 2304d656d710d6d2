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
from ..engine.read.sizes import images_only
from ..errors import InputError, OutputError
from ..model.batching import BatchSize
from ..validation import check_seed, number
from .perturbing import Score, Target, drawn, fixed, importance, ranked, scores

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NEIGHBORS = {
    (0, 1): 1 / 6, (1, 0): 1 / 6, (0, -1): 1 / 6, (-1, 0): 1 / 6,
    (1, 1): 1 / 12, (1, -1): 1 / 12, (-1, 1): 1 / 12, (-1, -1): 1 / 12,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Road:
    fractions: Tensor  # (S,) of the pixels removed
    scores: Tensor  # (N, S)
    right: Tensor | None  # (N, S) bool: the class found is the target; None where the target is no class

    @property
    def accuracy(self) -> Tensor:
        """The share of examples still taken for their target, (S,). Raises OutputError where that is no class."""
        if self.right is None:
            raise OutputError("accuracy needs classes: this target is an objective, or the model does regression")
        return self.right.to(self.scores.dtype).mean(0)


def road(
    box: Box,
    x: Any,
    maps: Any,
    target: Target = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
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
    images_only(box, "ROAD")
    x = box.accept(x)
    if order not in ("morf", "lerf"):
        raise InputError(f'order is "morf" or "lerf"; got {order!r}')
    shares, noise, seed = _fractions(fractions), number("noise", noise, least=0), check_seed(seed)
    relevance = importance(box, x, maps, signed=signed)  # (N, P)
    rank = ranked(relevance if order == "morf" else -relevance, seed)
    counts = [round(f * rank.shape[1]) for f in shares]
    objective, classes = fixed(box, x, target, score, "probability", batch_size)
    weights = _weights(x.shape[-2], x.shape[-1])

    def points(examples: Tensor, ways: Tensor) -> list[Tensor]:
        new = [
            _imputed(x[n], rank[n] < counts[k], weights) for n, k in zip(examples.tolist(), ways.tolist(), strict=True)
        ]
        removed = rank[examples] < torch.tensor(counts, device=x.device)[ways, None]
        grain = noise * drawn(torch.randn, x.shape[1:], x, seed, examples, ways)
        return [torch.stack(new) + grain * removed.view(-1, 1, *x.shape[2:])]

    predict = classes is not None and box.outputs != "regression"
    found, *named = scores(box, objective, len(x), len(counts), points, batch_size, predict=predict)
    right = named[0] == classes[:, None] if classes is not None and named else None
    return Road(torch.tensor(shares, dtype=box.dtype, device=x.device), found.to(box.dtype), right)


def _fractions(fractions: Sequence[float]) -> list[float]:
    values = fractions.tolist() if isinstance(fractions, (Tensor, np.ndarray)) else fractions
    if isinstance(values, (str, int, float)) or not len(values):
        raise InputError(f"fractions is a list of shares in (0, 1]; got {fractions!r}")
    return [number("a fraction", f, above=0, most=1) for f in values]


def _weights(height: int, width: int) -> sparse.csr_matrix:
    """(P, P): what each pixel takes from each of its neighbors, summing to 1."""
    index = np.arange(height * width).reshape(height, width)
    rows, columns, values = [], [], []
    for (down, across), weight in NEIGHBORS.items():
        own = index[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)]
        rows.append(own.ravel())
        columns.append((own + down * width + across).ravel())
        values.append(np.full(own.size, weight))
    found = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
                              shape=(index.size, index.size))  # fmt: skip
    total = np.asarray(found.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.where(total > 0, total, 1)) @ found)


def _imputed(image: Tensor, removed: Tensor, weights: sparse.csr_matrix) -> Tensor:
    """The image (C, H, W) with each removed pixel (P,) the weighted mean of its neighbors, all solved at once."""
    flat, gone = image.flatten(1).double().cpu().numpy().T.copy(), removed.cpu().numpy()  # (P, C), (P,)
    if gone.all():
        flat[:] = flat.mean(0)
    elif gone.any():
        mine = weights[gone]
        system = sparse.identity(int(gone.sum()), format="csc") - mine[:, gone].tocsc()
        flat[gone] = splu(sparse.csc_matrix(system)).solve(np.asarray(mine[:, ~gone] @ flat[~gone]))
    return torch.from_numpy(flat.T.copy()).to(image).view_as(image)
