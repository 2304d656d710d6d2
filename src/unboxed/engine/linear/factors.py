"""Factors of features (N, D): a few directions and how much of each a row has, by NMF, ICA or PCA.

Lee & Seung 1999, "Learning the parts of objects by non-negative matrix factorization"; Hyvarinen & Oja 2000,
"Independent component analysis: algorithms and applications" (FastICA); scikit-learn fits both.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ... import rng
from ...errors import InputError
from ...model import state
from .principal import PrincipalBasis

Factorization = Literal["nmf", "ica", "pca"]

MAX_FIT_ITERATIONS = 300
MAX_COORDINATE_DESCENT_FACTORS = 32  # of NMF: more are fitted by multiplicative updates, which are matrix products
NNLS_STEPS = 300  # accelerated steps of non-negative least squares, at most
NNLS_CHECK_EVERY = 10  # steps between two looks at which rows still move
NNLS_ROUNDING = 64  # changes of so many machine epsilons, relative to a row's largest amount, are none
SEED_RANGE = 2**32  # of scikit-learn's seeds


@dataclass(frozen=True, eq=False)
class Factors:
    """h = amounts @ directions + offset, up to what the directions leave out."""

    kind: Factorization
    directions: Tensor  # (K, D)
    offset: Tensor  # (D,) 0 of NMF, else the mean
    read: Tensor | None  # (D, K) with amounts = (h - offset) @ read; None of NMF, whose amounts are never negative

    def encode(self, h: Tensor) -> Tensor:
        """The amounts (..., K) of each direction in features (..., D)."""
        if self.read is not None:
            return (h - self.offset) @ self.read
        return nonnegative_least_squares(h.reshape(-1, h.shape[-1]), self.directions).view(*h.shape[:-1], -1)

    def decode(self, amounts: Tensor) -> Tensor:
        """Features (..., D) of amounts (..., K)."""
        return amounts @ self.directions + self.offset


def fit_factors(h: Tensor, kind: Factorization, n: int, seed: int, *, random_start: bool = False) -> Factors:
    """n factors of features (N, D) in float64, the largest first (ICA: in no order).

    NMF starts from the singular vectors (NNDSVD), or at random if `random_start`. Raises InputError where the features
    allow no such factors.
    """
    check_factors_possible(h, kind, n)
    if kind == "nmf":
        return Factors(kind, _nmf_directions(h, n, seed, random_start), torch.zeros_like(h[0]), None)
    basis = PrincipalBasis.fit(h, n, standardize=False)
    if basis.axes.shape[1] < n:
        raise InputError(
            f"{n} directions by {kind.upper()} are more than the {basis.axes.shape[1]} in which these {len(h)} rows of "
            f"activations vary; ask for at most {basis.axes.shape[1]}, or give more examples"
        )
    axes = basis.axes.flip(1)  # (D, K), the largest variance first
    if kind == "ica":
        z = (h - basis.mean) @ axes
        scale = z.std(0, correction=0)
        mixing = _ica_rotation(z / scale, seed)  # (K, K) orthogonal
        return _with_signs_of_positive_skew(
            h, Factors(kind, (mixing * scale) @ axes.T, basis.mean, axes / scale @ mixing.T)
        )
    return _with_signs_of_positive_skew(h, Factors(kind, axes.T.contiguous(), basis.mean, axes))


def check_factors_possible(h: Tensor, kind: Factorization, n: int) -> None:
    """Raise InputError for more factors than rows, and for negative features where NMF would need none."""
    if n > len(h):
        raise InputError(f"{n} directions are more than the {len(h)} rows of activations; ask for fewer")
    if kind == "nmf" and bool((h < 0).any()):
        raise InputError(
            f"NMF takes no negative activations, and {float((h < 0).double().mean()):.0%} of these are; 'ica' and "
            "'pca' take them, as does NMF the output of a ReLU"
        )


def _nmf_directions(h: Tensor, n: int, seed: int, random_start: bool) -> Tensor:
    with state.forking_rngs_with_lock(0, rng.CPU):  # imports may draw from the global generators
        from sklearn.decomposition import NMF

    solver = "cd" if n <= MAX_COORDINATE_DESCENT_FACTORS else "mu"
    start = "random" if random_start or n > min(h.shape) else "nndsvda" if solver == "mu" else "nndsvd"
    model = NMF(n, init=start, solver=solver, max_iter=MAX_FIT_ITERATIONS, random_state=_sklearn_seed("NMF", seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model.fit(h.cpu().numpy())
    return torch.as_tensor(model.components_).to(h)


def _ica_rotation(z: Tensor, seed: int) -> Tensor:
    """The rotation (K, K) that makes whitened features (N, K) as independent as can be."""
    with state.forking_rngs_with_lock(0, rng.CPU):
        from sklearn.decomposition import FastICA

    model = FastICA(whiten=False, max_iter=MAX_FIT_ITERATIONS, random_state=_sklearn_seed("ICA", seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model.fit(z.cpu().numpy())
    return torch.as_tensor(model.components_).to(z)


def _sklearn_seed(stream: str, seed: int) -> int:
    return rng.derive_seed(stream, seed) % SEED_RANGE


def _with_signs_of_positive_skew(h: Tensor, factors: Factors) -> Factors:
    """The same factors with the sign that puts the rare large amounts above zero."""
    amounts = factors.encode(h)
    sign = torch.where((amounts - amounts.mean(0)).pow(3).sum(0) < 0, -1.0, 1.0).to(h)
    read = None if factors.read is None else factors.read * sign
    return Factors(factors.kind, factors.directions * sign[:, None], factors.offset, read)


def nonnegative_least_squares(h: Tensor, directions: Tensor, n_steps: int = NNLS_STEPS) -> Tensor:
    """The amounts (N, K), none negative, whose sum of directions (K, D) is nearest to each row of h (N, D).

    Each row by itself: accelerated projected gradient steps, with a restart where the objective would rise, until the
    row's amounts no longer change.

    Source:
        Beck & Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm", section 4; restarts of O'Donoghue &
        Candes 2015, "Adaptive restart for accelerated gradient schemes", by the gradient.
    """
    gram, target = directions @ directions.T, h @ directions.T
    step = 1 / float(torch.linalg.eigvalsh(gram)[-1].clamp_min(torch.finfo(h.dtype).tiny))
    found = torch.zeros_like(target)
    active = torch.arange(len(h), device=h.device)  # (A,) rows that still move
    amounts = ahead = found
    momentum = h.new_ones(len(h), 1)
    for i in range(1, n_steps + 1):
        new = (ahead - step * (ahead @ gram - target)).clamp_min(0)
        if i % NNLS_CHECK_EVERY == 0:
            found[active] = new
            moves = _moves(new, amounts) | _moves(new, ahead)
            if not bool(moves.any()):
                return found
            active, target, momentum = active[moves], target[moves], momentum[moves]
            new, ahead, amounts = new[moves], ahead[moves], amounts[moves]
        next_momentum = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        rises = ((ahead - new) * (new - amounts)).sum(1, keepdim=True) > 0
        ahead = torch.where(rises, new, new + (momentum - 1) / next_momentum * (new - amounts))
        amounts, momentum = new, torch.where(rises, 1.0, next_momentum)
    return found.index_copy(0, active, amounts)


def _moves(new: Tensor, old: Tensor) -> Tensor:
    """Which rows of (A, K) change by more than rounding: where a step leads nowhere, there is the solution."""
    bound = NNLS_ROUNDING * torch.finfo(new.dtype).eps * new.abs().amax(1)
    return (new - old).abs().amax(1) > bound
