"""A small classifier with one hidden layer, for probes that are not linear: seeded, in float64, by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import rng
from .softmax import minimize_lbfgs

N_HIDDEN_UNITS = 64
MAX_MLP_LBFGS_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class HiddenLayerClassifier:
    """Logits of a layer of tanh units."""

    hidden: Tensor  # (H, R + 1) weights and bias
    out: Tensor  # (K, H + 1) weights and bias

    def __call__(self, z: Tensor) -> Tensor:
        """Logits (N, K) of features (N, R)."""
        return _append_ones(torch.tanh(_append_ones(z) @ self.hidden.T)) @ self.out.T


def fit_mlp(z: Tensor, y: Tensor, n_classes: int, l2: float, *, seed: int = 0) -> HiddenLayerClassifier:
    """A local minimum of the mean cross-entropy + l2 / 2 times the squared weights; the biases are free.

    Args:
        z: Features (N, R) in float64.
        y: Classes (N,).
        n_classes: Number of classes K.
        l2: Penalty, above 0.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        The classifier.
    """
    first = _random_mlp(z, n_classes, seed)  # not another penalty's: a large one leaves all weights at zero
    n, r = z.shape
    z1, labels = _append_ones(z), torch.nn.functional.one_hot(y, n_classes).to(z)
    cut = N_HIDDEN_UNITS * (r + 1)

    def unpack_layer_weights(parameters: Tensor) -> tuple[Tensor, Tensor]:
        return parameters[:cut].view(N_HIDDEN_UNITS, r + 1), parameters[cut:].view(n_classes, N_HIDDEN_UNITS + 1)

    def loss_and_gradient(parameters: Tensor) -> tuple[Tensor, Tensor]:
        hidden, out = unpack_layer_weights(parameters)
        a = _append_ones(torch.tanh(z1 @ hidden.T))  # (N, H + 1)
        log_p = torch.log_softmax(a @ out.T, 1)
        residual = (log_p.exp() - labels) / n
        penalized = hidden[:, :r], out[:, :N_HIDDEN_UNITS]
        back = (residual @ out[:, :N_HIDDEN_UNITS]) * (1 - a[:, :N_HIDDEN_UNITS].square())
        gradients = back.T @ z1, residual.T @ a
        for gradient, weight in zip(gradients, penalized, strict=True):
            gradient[:, : weight.shape[1]] += l2 * weight
        loss = -(labels * log_p).sum() / n + l2 / 2 * sum(w.square().sum() for w in penalized)
        return loss, torch.cat([g.flatten() for g in gradients])

    start_vector = torch.cat([first.hidden.flatten(), first.out.flatten()])
    return HiddenLayerClassifier(
        *unpack_layer_weights(minimize_lbfgs(loss_and_gradient, start_vector, MAX_MLP_LBFGS_ITERATIONS))
    )


def _random_mlp(z: Tensor, n_classes: int, seed: int) -> HiddenLayerClassifier:
    generator = rng.keyed_generator(rng.CPU, "mlp probe", seed)
    norm = z.square().sum(1).mean().sqrt().clamp_min(1e-12)
    hidden = torch.randn(N_HIDDEN_UNITS, z.shape[1] + 1, generator=generator, dtype=z.dtype) / norm
    out = torch.randn(n_classes, N_HIDDEN_UNITS + 1, generator=generator, dtype=z.dtype) / N_HIDDEN_UNITS**0.5
    hidden[:, -1] = 0
    out[:, -1] = 0
    return HiddenLayerClassifier(hidden, out)


def _append_ones(z: Tensor) -> Tensor:
    """A column of ones at the end, for the bias."""
    return torch.cat([z, z.new_ones(len(z), 1)], 1)
