"""A training as a pure step function: it can be run again with other weights of its examples, and differentiated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ...errors import InputError
from ...model.state import outside_callers_modes
from ...validation import check_int
from ..batched_vjp import batched_vjp, vjp_one_by_one
from ..example_gradients.losses import check_losses_per_example

TrainingState = dict[str, Tensor]  # all that one step hands to the next: parameters, buffers, what the optimizer keeps
StepFn = Callable[[TrainingState, int, Tensor], TrainingState]
"""`step(state, t, weights)`: the state after step t, where the loss of the i-th example of the batch counts
`weights[i]`, 1 for a training as it was."""
NO_GRADIENT_PATH_MESSAGE = (
    "the state after a step does not depend on the examples' weights by any path with a gradient, so that all scores "
    "would be zero: give torch.autograd.grad create_graph=True (or use torch.func.grad), and do without detach(), "
    "item() and no_grad()"
)
MAX_RETRAINING_BYTES = (
    128 * 2**20
)  # of many trainings at once: with more, their states no longer fit near the processor
# Per training of many at once: before and after a step, the gradient, and what the update is made of
RETRAINING_MEMORY_IN_STATES = 6
QueryLossFn = Callable[[TrainingState, Tensor, Any], Tensor]


class Training:
    """A training that can be run again, exactly, with other weights of its examples.

    Make one of your own training loop by writing its step as a pure function: no state but its arguments, random draws
    by generators that are keyed by the step, and all operations differentiable. For a plain training of a model by
    `torch.optim`, `ModelTraining` writes it.

    Args:
        step: `step(state, t, weights)` gives the state after step t (0, 1, ...), a dict of tensors like the one before.
            `weights` (B,) multiply the losses of the batch's examples; divide by the batch size, not by their sum.
        start: The state before the first step, {name: tensor}.
        batches: The examples of each step: indices (B,) per step.
        query_loss: `query_loss(state, x, y)`, the losses (Q,) of queries x (Q, ...) with labels y (Q,).
        n_examples: Number of training examples. None: as many as the batches name.

    Raises:
        InputError: for a training without steps, and indices out of range.

    Example:
        >>> import torch, unboxed as ub
        >>> data = torch.tensor([1., 2., 6.])
        >>> def step(state, t, weights):  # gradient descent to the mean
        ...     return {"mean": state["mean"] - .1 * (weights * (state["mean"] - data)).mean()}
        >>> training = ub.influence.Training(
        ...     step, {"mean": torch.zeros(())}, [torch.arange(3)] * 50,
        ...     lambda state, x, y: .5 * (state["mean"] - x) ** 2)
        >>> round(training.run()["mean"].item(), 2), round(training.run(torch.tensor([1., 1., 0.]))["mean"].item(), 2)
        (2.98, 1.45)
    """

    def __init__(
        self,
        step: StepFn,
        start: Mapping[str, Tensor],
        batches: Sequence[Tensor],
        query_loss: QueryLossFn,
        n_examples: int | None = None,
    ) -> None:
        self.step, self.start, self.query_loss = step, {k: v.detach() for k, v in start.items()}, query_loss
        self.batches = [torch.as_tensor(b, dtype=torch.long) for b in batches]
        if not self.batches:
            raise InputError("a training needs at least one step; got no batches")
        largest = max(int(b.max()) for b in self.batches)
        self.n_examples = largest + 1 if n_examples is None else check_int("n_examples", n_examples, minimum=1)
        if largest >= self.n_examples or min(int(b.min()) for b in self.batches) < 0:
            raise InputError(f"batches hold indices of the {self.n_examples} training examples; got {largest}")

    is_vectorized = True
    """Whether many runs are one vectorized run, or made one after another."""

    def copy_with_query_loss(self, query_loss: QueryLossFn) -> Self:
        """The same training, of whose result `query_loss(state, x, y)` asks something else, such as a margin."""
        other = copy.copy(self)
        other.query_loss = query_loss
        return other

    @property
    def n_steps(self) -> int:
        return len(self.batches)

    @property
    def state_bytes(self) -> int:
        """Memory of one state."""
        return sum(h.numel() * h.element_size() for h in self.start.values())

    def n_at_once(self, max_bytes: int) -> int:
        """How many trainings `run_many` can take at a time within this memory; at least one."""
        return max(1, max_bytes // (RETRAINING_MEMORY_IN_STATES * self.state_bytes))

    def unit_example_weights(self, *shape: int) -> Tensor:
        """Weights (*shape, N) of 1 for the examples, in the dtype and on the device of the state."""
        like = next((h for h in self.start.values() if h.is_floating_point()), torch.zeros(()))
        return like.new_ones(*shape, self.n_examples)

    def warm_start(self, final: TrainingState) -> TrainingState:
        """The state from which training goes on after a final one, with its first steps."""
        return final

    def random_part_of_step_text(self, t: int) -> str:
        """What of step t draws random numbers where the step is not the same each time, in words."""
        return "dropout or augmentation"

    # -- running it --------------------------------------------------------------------------------------------------

    @outside_callers_modes
    def run(self, weights: Tensor | Sequence[float] | None = None, start: TrainingState | None = None) -> TrainingState:
        """The final state, where the examples' losses count `weights` (N,); None: 1 each."""
        for state in self.states(weights, start):  # noqa: B007
            pass
        return state

    def states(
        self,
        weights: Tensor | Sequence[float] | None = None,
        start: TrainingState | None = None,
        steps: range | None = None,
    ) -> Iterator[TrainingState]:
        """The states after each of these steps (None: all), from the state `start` before the first of them."""
        state = self.start if start is None else start
        weights = self.validate_example_weights(weights)
        for t in range(self.n_steps) if steps is None else steps:
            state = self.next_state(state, t, weights[self.batches[t]])
            yield state

    def next_state(self, state: TrainingState, t: int, weights: Tensor) -> TrainingState:
        """The state after step t, without a graph. `weights` (B,) are those of the batch."""
        with torch.no_grad():
            return {name: h.detach() for name, h in self.step(state, t, weights).items()}

    @outside_callers_modes
    def run_many(
        self, weights: Tensor, start: TrainingState | None = None, steps: range | None = None
    ) -> TrainingState:
        """The final states, stacked (M, ...), of trainings with weights (M, N) each, in one vectorized run.

        `start` may hold a start of each, stacked (M, ...); `steps` are those that are taken (None: all).
        """
        weights = self.validate_example_weights(weights, n_dims=2)
        states = {k: h.expand(len(weights), *h.shape) for k, h in self.start.items()} if start is None else start
        for t in range(self.n_steps) if steps is None else steps:
            states = self._next_states(states, t, weights[:, self.batches[t]])
        return states

    def _next_states(self, states: TrainingState, t: int, weights: Tensor) -> TrainingState:
        """The states stacked (M, ...) after step t; one after another where the step can't be vectorized."""
        with torch.no_grad():
            if self.is_vectorized:
                try:
                    after = _vmap_without_warnings(lambda state, w: self.functional_step(state, t, w), states, weights)
                    return {name: h.detach() for name, h in after.items()}
                except (RuntimeError, NotImplementedError):
                    self.is_vectorized = False
            rows = [self.next_state({k: h[i] for k, h in states.items()}, t, w) for i, w in enumerate(weights)]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def functional_step(self, state: TrainingState, t: int, weights: Tensor) -> TrainingState:
        """The step where `torch.func` transforms it."""
        return self.step(state, t, weights)

    @outside_callers_modes
    def query_losses(self, states: TrainingState, x: Tensor, y: Any) -> Tensor:
        """Losses (M, Q) of queries under states stacked (M, ...)."""
        with torch.no_grad():
            return map_states(lambda state: check_losses_per_example(self.query_loss(state, x, y), len(x)), states)

    def class_losses(self, state: TrainingState, x: Tensor, n_classes: int) -> Tensor:
        """The losses (Q, K) that queries would have with each of the classes as their label.

        Of a `ModelTraining` they are cross-entropies, whatever its loss: their differences are those of logits.
        """
        labels = torch.arange(n_classes, device=x.device).repeat(len(x))
        return self.query_loss(state, x.repeat_interleave(n_classes, 0), labels).reshape(len(x), n_classes)

    # -- differentiating it ------------------------------------------------------------------------------------------

    def query_adjoint(self, state: TrainingState, x: Tensor, y: Any) -> TrainingState:
        """Gradients (Q, ...) of the queries' losses with respect to a final state."""
        with torch.enable_grad():
            leaves = differentiable_leaves(state)
            losses = check_losses_per_example(self.query_loss({**state, **leaves}, x, y), len(x))
        return dict(zip(leaves, query_vjp([losses], [torch.eye(len(losses)).to(losses)], leaves.values()), strict=True))

    def vjp(
        self, state: TrainingState, t: int, adjoint: TrainingState, weights: Tensor | None = None
    ) -> tuple[TrainingState, Tensor]:
        """The adjoint (Q, ...) before step t, and derivatives (Q, B) by the weights of its batch, of the one after it.

        `state` is the one before the step; `weights` (B,) are those at which it is taken, None: 1 each.
        """
        with torch.enable_grad():
            leaves = differentiable_leaves(state)
            weights = self.differentiable_weights(t, weights)
            after = self.functional_step({**state, **leaves}, t, weights)
        names = [name for name in adjoint if after[name].requires_grad]
        *before, by_weight = query_vjp(
            [after[name] for name in names], [adjoint[name] for name in names], [*leaves.values(), weights]
        )
        return dict(zip(leaves, before, strict=True)), by_weight

    def differentiable_weights(self, t: int, weights: Tensor | None) -> Tensor:
        """Weights (B,) of step t's batch as a leaf of a new graph; None: 1 each."""
        ones = self.unit_example_weights()[: len(self.batches[t])]
        return (ones if weights is None else weights.to(ones).detach().clone()).requires_grad_()

    def validate_example_weights(self, weights: Tensor | Sequence[float] | None, n_dims: int = 1) -> Tensor:
        """Weights (N,), or (M, N) of `n_dims` 2, as the state's; None: 1 each. Raises InputError for another shape."""
        ones = self.unit_example_weights()
        if weights is None:
            return ones
        wanted = f"weights of the training examples, {'(M, N)' if n_dims == 2 else '(N,)'} with N = {self.n_examples}"
        try:
            weights = torch.as_tensor(weights)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"wanted {wanted}; got {weights!r}"[:300]) from error
        if weights.ndim != n_dims or weights.shape[-1] != self.n_examples:
            raise InputError(f"wanted {wanted}; got shape {tuple(weights.shape)}")
        return weights.to(ones)


def check_is_training(training: object) -> None:
    """Raise InputError for what is no training, such as the box that one gave."""
    if not isinstance(training, Training):
        raise InputError(
            f"training must be the training that made the model, a ModelTraining or a Training; got "
            f"{type(training).__name__}"
        )


def map_states(func: Callable[..., Tensor], states: TrainingState, *rows: Tensor) -> Tensor:
    """`func(state, *row)` of each of M stacked states and rows (M, ...); one after another where vmap can't."""
    try:
        values: Tensor = _vmap_without_warnings(func, states, *rows)
        return values
    except (RuntimeError, NotImplementedError):
        n = len(next(iter(states.values())))
        return torch.stack([func({k: h[i] for k, h in states.items()}, *(r[i] for r in rows)) for i in range(n)])


def _vmap_without_warnings(func: Callable[..., Any], *stacked: Any) -> Any:
    """`func` of each of what is stacked; torch does operations that have no batching rule one by one, rightly."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        return torch.func.vmap(func, randomness="same")(*stacked)


def differentiable_leaves(state: TrainingState) -> TrainingState:
    """The floating-point tensors of a state as leaves of a new graph."""
    return {name: h.detach().requires_grad_() for name, h in state.items() if h.is_floating_point()}


def query_vjp(outputs: Sequence[Tensor], adjoints: Sequence[Tensor], inputs: Iterable[Tensor]) -> list[Tensor]:
    """Derivatives (Q, ...) with respect to the inputs of outputs whose adjoints are (Q, ...), all queries at once.

    One query after another where an operation has no batched derivative. Raises InputError where there are no outputs.
    """
    inputs = list(inputs)
    if not outputs:
        raise InputError(NO_GRADIENT_PATH_MESSAGE)
    try:
        return batched_vjp(outputs, inputs, adjoints)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return vjp_one_by_one(outputs, inputs, adjoints)
