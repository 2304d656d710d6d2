"""Whether a training is a function that can be run again and differentiated; and whose loss is not a finite number."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError, NaNError, UnboxedError
from ...model.nan_checks import NAN_HINT, row_numbers_text
from .model_training import ModelTraining
from .training import NO_GRADIENT_PATH_MESSAGE, Training, TrainingState, differentiable_leaves

# Of two runs of a step, relative to what it changes: rounding may differ, draws may not
MAX_RELATIVE_REPEAT_DIFFERENCE = 1e-2

MOVE = 1e-3  # of a state, relative and absolute, to see what depends on it


def check_steps_are_repeatable(training: Training) -> None:
    """Raise InputError where a step that is repeated gives another state: it draws without keys."""
    t = training.n_steps // 2
    weights = training.unit_example_weights()[training.batches[t]]
    first, again = (training.next_state(training.start, t, weights) for _ in range(2))
    if _state_distance(first, again) > MAX_RELATIVE_REPEAT_DIFFERENCE * _state_distance(first, training.start):
        raise InputError(
            f"step {t} of this training gives another state when it is repeated: "
            f"{training.random_part_of_step_text(t)} draws "
            "random numbers without keys, so that no run is the training again. Draw them by generators that are "
            "seeded by the step (augment gets one)"
        )


def check_differentiable(training: Training) -> None:
    """Raise InputError where a step's gradient is cut: by the examples' weights, or on the way from state to state."""
    t = training.n_steps // 2
    with torch.enable_grad():
        weights, leaves = training.differentiable_weights(t, None), differentiable_leaves(training.start)
        after = training.functional_step({**training.start, **leaves}, t, weights)
        outputs = [h.sum() for h in after.values() if h.requires_grad]
        if not outputs:
            raise InputError(NO_GRADIENT_PATH_MESSAGE)
        grads = torch.autograd.grad(outputs, [weights, *leaves.values()], allow_unused=True)
    if grads[0] is None:
        raise InputError(NO_GRADIENT_PATH_MESSAGE)
    unreached = [name for name, grad in zip(leaves, grads[1:], strict=True) if grad is None]
    cut = _tensors_changed_by_moving(
        training, t, list(leaves), [name for name, h in after.items() if not h.requires_grad]
    )
    cut += [name for name in unreached if _tensors_changed_by_moving(training, t, [name], list(after))]
    if cut:
        raise InputError(
            f"the step cuts the gradient of its state's {', '.join(map(repr, dict.fromkeys(cut)))}: the state after "
            "it changes with the one before, but by no path with a gradient, so that the scores would be wrong. Do "
            "without detach(), .data, item() and no_grad() in the step"
        )


def _tensors_changed_by_moving(training: Training, t: int, moved: list[str], watched: list[str]) -> list[str]:
    """Those tensors after step t, of the watched ones, that change where these of the state before it are moved."""
    watched = [name for name in watched if training.start.get(name, torch.zeros(())).is_floating_point()]
    if not watched:
        return []
    weights = training.unit_example_weights()[training.batches[t]]
    start = {**training.start, **{name: training.start[name] * (1 + MOVE) + MOVE for name in moved}}
    before, after = (training.next_state(state, t, weights) for state in (training.start, start))
    return [name for name in watched if not torch.equal(before[name], after[name])]


def check_finite_scores(scores: Tensor) -> None:
    """Raise NaNError for derivatives (Q, N) by weights that are not finite: it names the training examples."""
    if rows := (~scores.isfinite()).any(0).nonzero().flatten().tolist():
        raise NaNError(
            f"the derivative is NaN or infinite for {len(rows)} of {scores.shape[1]} training examples "
            f"({row_numbers_text(rows)}): its loss may be, or its gradient. {NAN_HINT}", rows, "training examples",
        )  # fmt: skip


def nonfinite_query_loss_error(training: Training, query: int) -> UnboxedError:
    """The error of a query's loss that is not finite: it names the training examples that made it so, or the lr."""
    if rows := _examples_with_nonfinite_loss(training):
        return NaNError(
            f"the loss is NaN or infinite for {len(rows)} of {training.n_examples} training examples "
            f"({row_numbers_text(rows)}), and so is the model after them. {NAN_HINT}", rows, "training examples",
        )  # fmt: skip
    return InputError(f"the loss of query {query} is not a finite number after the training; use a smaller lr")


def _examples_with_nonfinite_loss(training: Training) -> list[int]:
    """Those of the first step from which numbers are not finite; none where it is no single examples."""
    if not isinstance(training, ModelTraining):
        return []
    before = training.start
    for t, state in enumerate(training.states()):
        if not all(h.isfinite().all() for h in state.values()):
            bad = ~training.batch_losses(before, t).isfinite()
            return [] if bool(bad.all()) else training.batches[t][bad.cpu()].tolist()
        before = state
    return []


def _state_distance(a: TrainingState, b: TrainingState) -> float:
    parts = [(a[name] - b[name]).double().norm() for name, h in b.items() if h.is_floating_point()]
    return float(torch.stack([p.cpu() for p in parts]).norm()) if parts else 0.0
