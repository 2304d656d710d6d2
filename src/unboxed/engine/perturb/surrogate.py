"""A cheap model of the score, learned from masks that were run: kernel ridge regression on masks.

`control_variate` uses it to reduce the variance of LIME's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

INTERACTION_WEIGHT_CHOICES = (
    (1.0, 10.0, 0.0, 0.0),
    (1.0, 10.0, 10.0, 0.0),
    (1.0, 10.0, 10.0, 10.0),
    (1.0, 10.0, 3.0, 1.0),
)
"""Prior variance of the interactions of 0 to 3 segments."""
NOISE_VARIANCE_CHOICES = (0.03, 0.3, 1.0, 3.0)  # prior variance of all else
MAX_TRAINING_MASKS = 512  # masks to learn from: the cost grows with their cube
N_KERNEL_SELECTION_MASKS = 192  # masks on which kernel and noise are selected
MIN_TRAINING_MASKS = 32  # with fewer masks nothing is learned
SURROGATE_MASKS_PER_BATCH = 2048  # masks that are scored at a time
MIN_LOG_ODDS_PROBABILITY = 1e-6  # probabilities are clipped to it before their log-odds
InteractionWeights = tuple[float, float, float, float]
SelectionLossFn = Callable[[Tensor], float]


@dataclass(frozen=True, eq=False)
class KernelRidgeSurrogate:
    """Kernel ridge regression on masks z (K, A), with a polynomial kernel in how many segments agree.

    What depends on the masks alone is computed once for all scores. Complementary pairs of masks are adjacent.
    """

    z: Tensor
    _inverses: dict[tuple[InteractionWeights, float], Tensor] = field(default_factory=dict)
    _eigenpairs: dict[InteractionWeights, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def fit(
        self, y: Tensor, unexplained: SelectionLossFn, *, use_log_odds: bool
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g of each mask (K,), learned without it and its pair, and g itself: (M, A) -> (M,).

        `use_log_odds`: y are probabilities, whose log-odds are learned. `unexplained(g)` is how much of y the values g
        of the first N_KERNEL_SELECTION_MASKS masks leave: kernel and noise are those that leave the least.
        """
        p = y.clamp(MIN_LOG_ODDS_PROBABILITY, 1 - MIN_LOG_ODDS_PROBABILITY)
        t = (p / (1 - p)).log() if use_log_odds else y
        center, scale = t[:MAX_TRAINING_MASKS].mean(), t[:MAX_TRAINING_MASKS].std().clamp(min=1e-12)
        standardized = (t - center) / scale

        def undo_standardization(h: Tensor) -> Tensor:
            return (h * scale + center).sigmoid() if use_log_odds else h * scale + center

        interaction_weights, noise = self._select_kernel_and_noise(
            standardized[:N_KERNEL_SELECTION_MASKS], lambda h: unexplained(undo_standardization(h))
        )
        inverse = self._kernel_inverse(interaction_weights, noise)
        alpha = inverse @ standardized[:MAX_TRAINING_MASKS]
        held_out = standardized[:MAX_TRAINING_MASKS] - _leave_pair_out_errors(
            alpha, inverse.diagonal(), inverse.diagonal(1)
        )

        def surrogate_score(masks: Tensor) -> Tensor:
            parts = [
                interaction_kernel(part, self.z[:MAX_TRAINING_MASKS], interaction_weights) @ alpha
                for part in torch.split(masks, SURROGATE_MASKS_PER_BATCH)
            ]
            return undo_standardization(torch.cat(parts))

        return (
            torch.cat([undo_standardization(held_out), surrogate_score(self.z[MAX_TRAINING_MASKS:])])
            if len(self.z) > MAX_TRAINING_MASKS
            else undo_standardization(held_out)
        ), surrogate_score

    def _select_kernel_and_noise(self, r: Tensor, unexplained: SelectionLossFn) -> tuple[InteractionWeights, float]:
        losses = {}
        for interaction_weights in INTERACTION_WEIGHT_CHOICES:
            values, vectors = self._eigendecomposition(interaction_weights)
            projections = vectors.T @ r
            for noise in NOISE_VARIANCE_CHOICES:
                d = 1 / (values.clamp(min=0) + noise)
                diagonal, off_diagonal = (vectors**2) @ d, (vectors[:-1] * vectors[1:]) @ d
                losses[interaction_weights, noise] = unexplained(
                    r - _leave_pair_out_errors(vectors @ (projections * d), diagonal, off_diagonal)
                )
        return min(losses, key=lambda k: losses[k])

    def _eigendecomposition(self, interaction_weights: InteractionWeights) -> tuple[Tensor, Tensor]:
        if interaction_weights not in self._eigenpairs:
            values, vectors = torch.linalg.eigh(
                interaction_kernel(
                    self.z[:N_KERNEL_SELECTION_MASKS], self.z[:N_KERNEL_SELECTION_MASKS], interaction_weights
                )
            )
            self._eigenpairs[interaction_weights] = values, vectors
        return self._eigenpairs[interaction_weights]

    def _kernel_inverse(self, interaction_weights: InteractionWeights, noise: float) -> Tensor:
        if (interaction_weights, noise) not in self._inverses:
            kernel = interaction_kernel(self.z[:MAX_TRAINING_MASKS], self.z[:MAX_TRAINING_MASKS], interaction_weights)
            kernel.diagonal().add_(noise)
            self._inverses[interaction_weights, noise] = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
        return self._inverses[interaction_weights, noise]


def interaction_kernel(a: Tensor, b: Tensor, interaction_weights: InteractionWeights) -> Tensor:
    """The kernel (M, L) of masks (M, A) and (L, A): a polynomial in the mean of their products, as -1 and 1."""
    t = (2 * a - 1) @ (2 * b - 1).T / max(1, a.shape[1])
    c0, c1, c2, c3 = interaction_weights
    return t.mul(c3).add_(c2).mul_(t).add_(c1).mul_(t).add_(c0)


def _leave_pair_out_errors(alpha: Tensor, diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    """The errors (L,) of kernel ridge regression at each mask, learned without it and its pair.

    In closed form: the block of the kernel's inverse, solved for the weights alpha (Allen's PRESS, 1974, in pairs).
    """
    n_paired = len(alpha) // 2 * 2
    first, second = alpha[:n_paired:2], alpha[1:n_paired:2]
    a, d, b = diagonal[:n_paired:2], diagonal[1:n_paired:2], off_diagonal[:n_paired:2]
    det = a * d - b * b
    errors = torch.stack([(d * first - b * second) / det, (a * second - b * first) / det], 1).flatten()
    return errors if n_paired == len(alpha) else torch.cat([errors, alpha[-1:] / diagonal[-1:]])
