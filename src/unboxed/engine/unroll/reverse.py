"""Reverse mode through a whole training: from the final state back to the weights of its examples, in bounded memory.

Maclaurin, Duvenaud & Adams 2015, arXiv:1502.03492; Ilyas & Engstrom 2025, arXiv:2503.13751.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import InputError
from .training import Training, TrainingState

ADJOINT_MEMORY_FACTOR = 3  # of a state per query: the adjoint, the derivatives of a step, and what they are made of


@dataclass(frozen=True)
class UnrollPlan:
    """What a pass back through a training keeps in memory."""

    n_queries: int
    queries_per_pass: int
    segment_steps: int  # steps whose states are in memory at a time
    n_segments: int
    peak_bytes: int  # states and adjoints, without the activations of one step

    @property
    def stores_all_states(self) -> bool:
        """Whether all states are kept, so that none is computed twice."""
        return self.n_segments == 1

    def __str__(self) -> str:
        states = (
            "all states kept" if self.stores_all_states else f"{self.n_segments} segments of {self.segment_steps} steps"
        )
        passes = math.ceil(self.n_queries / self.queries_per_pass)
        return f"{states}, {passes} pass{'es' * (passes > 1)} back, about {self.peak_bytes / 2**20:,.0f} MiB"


def plan_unroll(training: Training, n_queries: int, max_bytes: int, *, store: bool | None = None) -> UnrollPlan:
    """How to go back within `max_bytes`: all queries at once and all states kept where that fits.

    `store` True keeps all states, False recomputes them in segments; None decides by the memory. Raises InputError
    where not even one query in segments fits.
    """
    n_steps, state, query = training.n_steps, training.state_bytes, ADJOINT_MEMORY_FACTOR * training.state_bytes
    shortest = math.ceil(math.sqrt(n_steps))
    smallest = _stored_states_bytes(n_steps, shortest, state)
    fits = _stored_states_bytes(n_steps, n_steps, state) + query <= max_bytes
    segment = n_steps if store or (store is None and fits) else shortest
    states = _stored_states_bytes(n_steps, segment, state)
    if smallest + query > max_bytes or states + query > max_bytes:
        wanted = min(states, smallest) + query if store is None else states + query
        raise InputError(
            f"going back through this training takes at least {wanted / 2**20:,.0f} MiB; max_bytes allows "
            f"{max_bytes / 2**20:,.0f}. Raise it, or unroll a shorter training or a smaller model"
        )
    queries = max(1, min(n_queries, (max_bytes - states) // query))
    return UnrollPlan(n_queries, queries, segment, math.ceil(n_steps / segment), states + queries * query)


def _stored_states_bytes(n_steps: int, segment: int, state_bytes: int) -> int:
    """Memory of the states at the segments' starts and of those within one."""
    return state_bytes * (math.ceil(n_steps / segment) + segment)


class Trajectory:
    """The states of a training from its end to its start: kept, or recomputed a segment at a time.

    `weights` (N,) are those of its examples; None: 1 each.
    """

    def __init__(self, training: Training, segment_steps: int, weights: Tensor | None = None) -> None:
        self.training, self.segment_steps, self.weights = training, segment_steps, weights
        self._starts = {0: training.start}  # {step: the state before it}
        self.final = training.start
        self._last_segment = list[TrainingState]()
        for t, state in enumerate(training.states(weights), start=1):
            if t % segment_steps == 0 and t < training.n_steps:
                self._starts[t], self._last_segment = state, []
            elif t < training.n_steps:
                self._last_segment.append(state)
            self.final = state

    def iter_states_backward(self) -> Iterator[tuple[int, TrainingState]]:
        """(t, the state before step t), from the last step to the first."""
        last_start = max(self._starts)
        for start in sorted(self._starts, reverse=True):
            states = self._last_segment if start == last_start else self._recompute_segment(start)
            for t in range(start + len(states), start - 1, -1):
                yield t, states[t - start - 1] if t > start else self._starts[start]

    def _recompute_segment(self, start: int) -> list[TrainingState]:
        steps = range(start, start + self.segment_steps - 1)
        return list(self.training.states(self.weights, start=self._starts[start], steps=steps))


def example_weight_gradients(
    training: Training,
    trajectory: Trajectory,
    x: Tensor,
    y: Any,
    callback: Callable[[int], object] = lambda t: None,
) -> Tensor:
    """d loss(query) / d weight of each training example, (Q, N), for all queries x at once.

    Taken at the weights of the trajectory. `callback(t)` is called after each step t.
    """
    adjoint = training.query_adjoint(trajectory.final, x, y)
    first = next(iter(adjoint.values()))
    gradients = first.new_zeros(len(first), training.n_examples)
    for t, state in trajectory.iter_states_backward():
        weights = None if trajectory.weights is None else trajectory.weights[training.batches[t]]
        adjoint, by_weight = training.vjp(state, t, adjoint, weights)
        gradients.index_add_(1, training.batches[t].to(gradients.device), by_weight)
        callback(t)
    return gradients
