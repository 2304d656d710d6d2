"""Whether a training is smooth enough for its derivative to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import rng
from ...errors import warn
from ..results import ResultMixin
from .training import Training, TrainingState

RELATIVE_START_PERTURBATION = 1e-5  # relative to each initial parameter
N_PERTURBED_STARTS, N_RANDOM_SUBSETS = 4, 4  # runs from moved starts, and without a random subset
SUBSET_DROPPED_FRACTION = 0.01  # of the training examples, in each subset
MAX_NOISE_TO_SIGNAL = 0.15  # above it, scores are warned of


@dataclass(frozen=True, eq=False, repr=False)
class Smoothness(ResultMixin):
    """How smooth a training is where scores of its examples were computed.

    Attributes:
        noise_to_signal: (Q,) standard deviation of each query's loss over runs whose initial parameters were moved by a
            relative 1e-5, divided by that over runs without a random 1 % of the examples. Where rounding of the start
            moves a loss as much as examples do, no score of single examples can be right.
        prediction_error: Norm of what the scores miss of the changes in those runs, relative to the changes; 0 is
            exact. NaN where there are no scores.
    """

    noise_to_signal: Tensor
    prediction_error: float = float("nan")

    @property
    def is_smooth(self) -> bool:
        """Whether the median noise-to-signal ratio is below the bound, 0.15."""
        return bool(self.noise_to_signal.median() <= MAX_NOISE_TO_SIGNAL)


def measure_smoothness(
    training: Training, x: Tensor, y: Any, scores: Tensor | None = None, seed: int = 0
) -> Smoothness:
    """Run the training 9 times at once, from moved starts and without random subsets, and compare queries' losses.

    `scores` (Q, N) are compared with what leaving the subsets out really does.
    """
    n = training.n_examples
    kept = training.unit_example_weights(1 + N_PERTURBED_STARTS + N_RANDOM_SUBSETS)
    for i in range(N_RANDOM_SUBSETS):
        dropped = torch.randperm(n, generator=rng.keyed_generator(rng.CPU, "dropped subset", seed, i))
        kept[1 + N_PERTURBED_STARTS + i, dropped[: max(1, round(SUBSET_DROPPED_FRACTION * n))].to(kept.device)] = 0
    losses = _losses_of_perturbed_trainings(training, x, y, kept, seed)
    real = losses[1 + N_PERTURBED_STARTS :] - losses[0]  # (S, Q)
    error = float("nan")
    if scores is not None:
        predicted = (1 - kept[1 + N_PERTURBED_STARTS :]) @ scores.T
        error = float((real - predicted).norm() / real.norm().clamp_min(torch.finfo(real.dtype).tiny))
    return Smoothness(noise_to_signal(losses[: 1 + N_PERTURBED_STARTS], losses[1 + N_PERTURBED_STARTS :]), error)


def warn_if_not_smooth(ratio: float, removed: str, consequence: str) -> None:
    """Warn of a noise-to-signal ratio beyond the bound, against leaving out `removed`."""
    if ratio > MAX_NOISE_TO_SIGNAL:
        warn(
            "this training is not smooth: moving its start by a relative 1e-5 changes the queries' losses "
            f"{ratio:.2f} times as much as leaving out {removed} (bound {MAX_NOISE_TO_SIGNAL}), so that {consequence}; "
            "a smooth activation (GELU, SiLU), a smaller lr or fewer epochs help"
        )


def losses_from_perturbed_starts(training: Training, x: Tensor, y: Any, seed: int = 0) -> Tensor:
    """Losses (1 + N_PERTURBED_STARTS, Q) of queries: of the training, then from starts moved by a relative 1e-5."""
    return _losses_of_perturbed_trainings(training, x, y, training.unit_example_weights(1 + N_PERTURBED_STARTS), seed)


def noise_to_signal(noise: Tensor, signal: Tensor) -> Tensor:
    """Standard deviation (Q,) of losses (M, Q) of moved starts, relative to that of losses (S, Q) without subsets."""
    deviation = signal.std(0)
    return noise.std(0) / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)


def _losses_of_perturbed_trainings(training: Training, x: Tensor, y: Any, weights: Tensor, seed: int) -> Tensor:
    starts = _stack_perturbed_starts(training, len(weights), seed)
    return training.query_losses(training.run_many(weights, starts), x, y)  # (M, Q)


def _stack_perturbed_starts(training: Training, n: int, seed: int) -> TrainingState:
    """Starts stacked (n, ...), of which those of rows 1 to N_PERTURBED_STARTS are moved."""
    starts: TrainingState = {}
    for name, h in training.start.items():
        starts[name] = h.expand(n, *h.shape).clone()
        if h.is_floating_point():
            generator = rng.keyed_generator(h.device, "moved start", seed, name)
            moves = torch.randn(N_PERTURBED_STARTS, *h.shape, generator=generator, device=h.device, dtype=h.dtype)
            starts[name][1 : 1 + N_PERTURBED_STARTS] *= 1 + RELATIVE_START_PERTURBATION * moves
    return starts
