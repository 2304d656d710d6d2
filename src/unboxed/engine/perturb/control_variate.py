"""A cheap model of the score, learned from masks already run: what bends in it is taken out of the noise.

Let g be any function of masks and Pg its weighted linear regression over all masks, which costs no run of the model. A
regression of y - (g - Pg) has the solution of that of y, for g - Pg has none, and where g is like y it has less noise:
g is a control variate. Each mask's g is learned without it and its pair, so that no y is held against itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

KERNELS = ((1.0, 10.0, 0.0, 0.0), (1.0, 10.0, 10.0, 0.0), (1.0, 10.0, 10.0, 10.0), (1.0, 10.0, 3.0, 1.0))
"""How much of the score is expected in 0 to 3 players working together."""
NOISES = (0.03, 0.3, 1.0, 3.0)  # how much in what is beyond
LEARN = 512  # masks to learn from: what they cost grows with their cube
TRY = 192  # masks on which kernel and noise are chosen
LEAST = 32  # masks without which nothing is learned
PART = 2048  # masks at a time that are scored by it
EDGE = 1e-6  # of probabilities
Orders = tuple[float, float, float, float]
Remaining = Callable[[Tensor], float]


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Kernel ridge regression on masks z (K, A), its kernel a polynomial in how many players agree.

    What depends on the masks alone is solved once for all scores. Pairs of masks lie side by side.
    """

    z: Tensor
    _solved: dict[tuple[Orders, float], Tensor] = field(default_factory=dict)
    _spectra: dict[Orders, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def fit(self, y: Tensor, remaining: Remaining, *, odds: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g of each mask (K,), learned without it and its pair, and g itself: (M, A) -> (M,).

        `odds`: y are probabilities, whose log-odds are learned. `remaining` tells how much of y stays unexplained by
        values g of the first masks (at most TRY): kernel and noise are those that leave the least.
        """
        p = y.clamp(EDGE, 1 - EDGE)
        t = (p / (1 - p)).log() if odds else y
        middle, scale = t[:LEARN].mean(), t[:LEARN].std().clamp(min=1e-12)
        r = (t - middle) / scale

        def back(h: Tensor) -> Tensor:
            return (h * scale + middle).sigmoid() if odds else h * scale + middle

        orders, noise = self._best(r[:TRY], lambda h: remaining(back(h)))
        inverse = self._inverse(orders, noise)
        alpha = inverse @ r[:LEARN]
        own = r[:LEARN] - _pairs_left_out(alpha, inverse.diagonal(), inverse.diagonal(1))

        def g(at: Tensor) -> Tensor:
            parts = [agreement(part, self.z[:LEARN], orders) @ alpha for part in torch.split(at, PART)]
            return back(torch.cat(parts))

        return (torch.cat([back(own), g(self.z[LEARN:])]) if len(self.z) > LEARN else back(own)), g

    def _best(self, r: Tensor, remaining: Remaining) -> tuple[Orders, float]:
        found = {}
        for orders in KERNELS:
            values, vectors = self._spectrum(orders)
            along = vectors.T @ r
            for noise in NOISES:
                d = 1 / (values.clamp(min=0) + noise)
                diagonal, beside = (vectors**2) @ d, (vectors[:-1] * vectors[1:]) @ d
                found[orders, noise] = remaining(r - _pairs_left_out(vectors @ (along * d), diagonal, beside))
        return min(found, key=lambda k: found[k])

    def _spectrum(self, orders: Orders) -> tuple[Tensor, Tensor]:
        if orders not in self._spectra:
            values, vectors = torch.linalg.eigh(agreement(self.z[:TRY], self.z[:TRY], orders))
            self._spectra[orders] = values, vectors
        return self._spectra[orders]

    def _inverse(self, orders: Orders, noise: float) -> Tensor:
        if (orders, noise) not in self._solved:
            kernel = agreement(self.z[:LEARN], self.z[:LEARN], orders)
            kernel.diagonal().add_(noise)
            self._solved[orders, noise] = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
        return self._solved[orders, noise]


def agreement(a: Tensor, b: Tensor, orders: Orders) -> Tensor:
    """The kernel (M, L) of masks (M, A) and (L, A): a polynomial in the mean of their products, as -1 and 1."""
    t = (2 * a - 1) @ (2 * b - 1).T / max(1, a.shape[1])
    c0, c1, c2, c3 = orders
    return t.mul(c3).add_(c2).mul_(t).add_(c1).mul_(t).add_(c0)


def _pairs_left_out(alpha: Tensor, diagonal: Tensor, beside: Tensor) -> Tensor:
    """The errors (L,) of kernel ridge regression at each mask, learned without it and the one beside it.

    In closed form: the block of the kernel's inverse, solved for the weights alpha (Allen's PRESS, 1974, in pairs).
    """
    whole = len(alpha) // 2 * 2
    first, second = alpha[:whole:2], alpha[1:whole:2]
    a, d, b = diagonal[:whole:2], diagonal[1:whole:2], beside[:whole:2]
    det = a * d - b * b
    errors = torch.stack([(d * first - b * second) / det, (a * second - b * first) / det], 1).flatten()
    return errors if whole == len(alpha) else torch.cat([errors, alpha[-1:] / diagonal[-1:]])
