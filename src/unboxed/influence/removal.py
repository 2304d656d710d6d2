"""Remove these and it flips: the smallest set of training examples without which an answer changes, proved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.results import ResultMixin, class_name
from ..engine.unroll.training import (
    MAX_RETRAINING_BYTES,
    QueryLossFn,
    Training,
    TrainingState,
    check_is_training,
    map_states,
)
from ..errors import InputError
from ..model.state import outside_callers_modes
from ..parameters import InputBatch, Labels, Seed
from ..settings import AtLeast, AtMost, Unit, ValueRole, check_settings
from ..validation import valid_seed
from ._data import make_card_box_inputs_and_training
from .result import Influence
from .unrolled import DEFAULT_MAX_UNROLL_STATE_BYTES, unrolled

UNCONFIRMED_SET_GROWTH_FRACTION = 0.1  # of a set that the exact run does not confirm


@dataclass(frozen=True, eq=False, repr=False)
class Removal(ResultMixin):
    """The smallest sets found of training examples whose removal changes answers, with the proof by retraining.

    Margins are the logit of the answer minus the largest other one: below zero the answer has changed.

    Attributes:
        sets: Per query the indices of the removed training examples, the most helpful first.
        answer: (Q,) the classes that the model answers.
        margin: (Q,) margins of the model itself.
        predicted_margin: (Q,) margins without the set, by the scores alone.
        real_margin: (Q,) margins after retraining without the set.
        new_answer: (Q,) answers after retraining without the set.
        control_margin: (Q, C) margins after retraining without as many random examples.
        influence: The scores of all training examples for the margins, by which the sets were searched.
        max_size: The largest set that was tried.
        input: The queries (Q, ...), in the box's units.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    sets: tuple[Tensor, ...]
    answer: Tensor
    margin: Tensor
    predicted_margin: Tensor
    real_margin: Tensor
    new_answer: Tensor
    control_margin: Tensor
    influence: Influence
    max_size: int
    input: Tensor
    classes: tuple[str, ...] = ()

    def summary_lines(self) -> Iterator[str]:
        n_flipped, n = int(self.flipped.sum()), len(self.flipped)
        yield f"{n_flipped} of {n} answers flip when at most {self.max_size} examples are removed"
        for q, rows in enumerate(self.sets):
            before, after = (class_name(int(k[q]), self.classes) for k in (self.answer, self.new_answer))
            change = f"{before} becomes {after}" if bool(self.flipped[q]) else f"{before} stays"
            yield f"query {q}: {change} without {len(rows)} examples"

    @property
    def flipped(self) -> Tensor:
        """(Q,) whether the retrained model answers differently. False: no set of up to `max_size` was found."""
        return self.real_margin < 0

    @property
    def size(self) -> Tensor:
        """(Q,) numbers of examples in the sets."""
        return torch.tensor([len(s) for s in self.sets], device=self.answer.device)

    @property
    def control_flipped(self) -> Tensor:
        """(Q, C) whether the answer changes without as many random examples."""
        return self.control_margin < 0


@card(
    name="Removal",
    source="Ilyas & Engstrom 2025, arXiv:2503.13751; Yang et al. 2023, arXiv:2302.02169",
    shows="Which few training examples an answer hangs on: retrained without them, the model answers differently.",
    does_not_show="That no smaller set does it, or that these do it in a training with another seed.",
    example=lambda method, box, x, y: _run_card_example_with_result(method, box, x, y),
    exempt={
        "awkward": "the model is trained in train mode, where dropout, batch norm and a train() of its own take effect",
        "one forward": "it retrains the model",
        "row seeds": "its seed draws the training examples of the controls alone",
    },
    order=2,
)
@outside_callers_modes
def removal(
    box: Box,
    x: InputBatch,
    labels: Labels,
    training: Annotated[
        Training, ValueRole("object"), "The training that made the model: a `ModelTraining`, or a `Training`."
    ],
    *,
    max_fraction: Annotated[float, AtLeast(0), AtMost(1), "Largest part of the training examples to remove."] = 0.01,
    n_controls: Annotated[int, AtLeast(0), Unit("runs"), "Random sets of the same size to retrain without."] = 1,
    max_bytes: Annotated[
        int, AtLeast(1), Unit("bytes"), "Memory that states and adjoints may take."
    ] = DEFAULT_MAX_UNROLL_STATE_BYTES,
    seed: Seed = 0,
) -> Removal:
    """Find the smallest set of training examples without which each answer changes, and prove it by retraining.

    The strongest statement on why an answer is what it is: not a score, but what happens. Examples are ranked by
    `unrolled` scores of the margin; how many of them it takes is searched by bisection, each time with a retraining
    (same seed and order, weights 0), and the last retraining is the very run that anyone can repeat:
    `training.box(training.run(weights))`. About 10 retrainings per query, besides the scores.

    Args:
        box: The opened model, as `training.box(training.run())` gives it.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        labels: Correct classes (N,), or one for all. They must be what the model predicts, for these are flipped; None:
            its predictions.
        training: The training that made the model: a `ModelTraining`, or a `Training`, whose query loss
            must be a cross-entropy: margins are differences of it between classes.
        max_fraction: Largest part of the training examples to remove. At least one example is tried.
        n_controls: Random sets of the same size to retrain without. What flips without random examples, too, hangs on
            no example.
        max_bytes: Memory that states and adjoints may take.
        seed: Seed of all random draws: same seed, same result. Of the controls alone.

    Returns:
        A `Removal`. Where no set within `max_fraction` changes the answer, `flipped` is False, and the set is the
        largest one tried, with the margin that is left.

    Raises:
        InputError: for a label that is not the model's answer, or where the memory does not suffice.
        ModelError: for a box that is not the model that the training gives.
        OutputError: for a model without classes that exclude one another.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> x, y = ub.data.digits("train").first(32)
        >>> training = ub.influence.ModelTraining(model, inputs, (x, y), epochs=2, batch_size=16)
        >>> box = training.box(training.run())
        >>> result = ub.influence.removal(box, x[:2], None, training, max_fraction=.5)
        >>> bool((result.size <= 16).all()), bool((result.flipped == (result.new_answer != result.answer)).all())
        (True, True)

    Source:
        Yang et al. 2023, "How many and which training points would need to be removed to flip this prediction?",
        arXiv:2302.02169, with scores by Ilyas & Engstrom 2025, arXiv:2503.13751. The set is smallest along the ranking:
        one example less of it did not flip the answer; another set may be smaller.
    """
    check_settings(removal, locals())
    check_is_training(training)
    box.require_class_scores("removal", exclusive=True)
    x, seed = box.validate_inputs(x), valid_seed(seed)
    answer = _predict_and_require_same_labels(box, x, labels)
    margins = training.copy_with_query_loss(_margin_query_loss_fn(training, box.n_outputs))
    influence = unrolled(box, x, answer, margins, max_bytes=max_bytes, check_smoothness=False)
    retraining = _Retraining(training, x, answer, box.n_outputs, max_bytes)
    max_size = max(1, int(max_fraction * training.n_examples))
    order = influence.top(max_size)  # (Q, max_size)
    margin, _ = retraining.margins_and_answers_of_exact_run(range(len(x)), None)
    sizes = _smallest_flipping_set_sizes(retraining, order, _predicted_removal_set_sizes(influence, order, margin))
    sets, real, new = _confirm_sets_by_exact_runs(retraining, order, sizes)
    predicted = margin - torch.stack([row[s].sum() for row, s in zip(influence.scores, sets, strict=True)])
    return Removal(
        sets,
        answer,
        margin,
        predicted,
        real,
        new,
        _margins_without_random_examples(retraining, sets, n_controls, seed),
        influence,
        max_size,
        box.restore_structure(x),
        box.classes,
    )


def _predict_and_require_same_labels(box: Box, x: Tensor, labels: Labels) -> Tensor:
    """The model's answers (Q,). Raises InputError where the labels are others."""
    answer = box.predict(x).to(box.device)
    wrong = [] if labels is None else (box.class_labels(labels, len(x)) != answer).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"the model's answer to query {wrong[0]} is {int(answer[wrong[0]])}, not its label: only an answer that is "
            "given can be removed. Give labels=None, for the answers whatever they are, or the queries that are right"
        )
    return answer


def _margin_query_loss_fn(training: Training, n_classes: int) -> QueryLossFn:
    """Minus the margin of each query's class, as a loss: what helps an answer raises its margin.

    A difference of cross-entropies is one of logits.
    """

    def negative_margins(state: TrainingState, x: Tensor, y: Tensor) -> Tensor:
        return -_margin_from_class_losses(training.class_losses(state, x, n_classes), y)

    return negative_margins


def _margin_from_class_losses(losses: Tensor, y: Tensor) -> Tensor:  # (Q, K), (Q,)
    """The smallest loss of another class minus that of the class itself, (Q,)."""
    is_label = torch.arange(losses.shape[1], device=y.device) == y[:, None]
    return losses.masked_fill(is_label, torch.inf).amin(1) - losses.gather(1, y[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class _Retraining:
    """Retrains without sets of examples, and asks for the margins of queries."""

    training: Training
    x: Tensor  # (Q, ...)
    answer: Tensor  # (Q,)
    n_classes: int
    max_bytes: int

    def margins(self, queries: Sequence[int], removed: Sequence[Tensor]) -> Tensor:
        """The margin (M,) of queries[m] after a training without removed[m], as many trainings at once as fit."""
        size = self.training.n_at_once(min(self.max_bytes, MAX_RETRAINING_BYTES))
        chunks = [slice(i, i + size) for i in range(0, len(queries), size)]
        return torch.cat([self._margins_at_once(queries[c], removed[c]) for c in chunks] or [self.x.new_empty(0)])

    def margins_and_answers_of_exact_run(self, queries: Sequence[int], removed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Margins and answers of queries after one training without examples, as `training.run` has it."""
        index = torch.tensor(queries, device=self.x.device)
        state = self.training.run(None if removed is None else self._example_weights_without_removed([removed])[0])
        with torch.no_grad():
            losses = self.training.class_losses(state, self.x[index], self.n_classes)
        return _margin_from_class_losses(losses, self.answer[index]), losses.argmin(1)

    def _margins_at_once(self, queries: Sequence[int], removed: Sequence[Tensor]) -> Tensor:
        index = torch.tensor(queries, device=self.x.device)
        states = self.training.run_many(self._example_weights_without_removed(removed))
        with torch.no_grad():
            losses = map_states(self._class_losses, states, self.x[index])  # (M, K)
        return _margin_from_class_losses(losses, self.answer[index])

    def _class_losses(self, state: TrainingState, x: Tensor) -> Tensor:
        return self.training.class_losses(state, x[None], self.n_classes)[0]

    def _example_weights_without_removed(self, removed: Sequence[Tensor]) -> Tensor:
        weights = self.training.unit_example_weights(len(removed))
        for row, indices in zip(weights, removed, strict=True):
            row[indices] = 0
        return weights


def _predicted_removal_set_sizes(influence: Influence, order: Tensor, margin: Tensor) -> Tensor:
    """How many examples (Q,) the scores say that it takes; as many as are tried where they do not suffice."""
    removed = influence.scores.gather(1, order).cumsum(1)  # (Q, max_size)
    return (1 + (removed <= margin[:, None]).sum(1)).clamp(max=order.shape[1])


def _smallest_flipping_set_sizes(retraining: _Retraining, order: Tensor, guess: Tensor) -> Tensor:
    """The smallest sizes (Q,) whose removal flips, along the order, by bisection from a guess; else the largest."""
    low, high = torch.zeros_like(guess), torch.full_like(guess, order.shape[1])  # not flipped; flipped
    flips = retraining.margins(range(len(order)), list(order)) < 0
    middle = guess
    while rows := (flips & (high - low > 1)).nonzero().flatten().tolist():
        middle = middle.clamp(low + 1, (high - 1).clamp(min=1))
        flipped = retraining.margins(rows, [order[q, : middle[q]] for q in rows]) < 0
        high[rows] = torch.where(flipped, middle[rows], high[rows])
        low[rows] = torch.where(flipped, low[rows], middle[rows])
        middle = (low + high) // 2
    return high


def _confirm_sets_by_exact_runs(
    retraining: _Retraining, order: Tensor, sizes: Tensor
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Sets, margins and answers of exact runs; a set that one does not confirm grows, up to the largest."""
    sets, margins, answers = list[Tensor](), list[Tensor](), list[Tensor]()
    for q, size in enumerate(sizes.tolist()):
        margin, answer = retraining.margins_and_answers_of_exact_run([q], order[q, :size])
        while not bool(margin < 0) and size < order.shape[1]:
            size = min(order.shape[1], size + max(1, round(UNCONFIRMED_SET_GROWTH_FRACTION * size)))
            margin, answer = retraining.margins_and_answers_of_exact_run([q], order[q, :size])
        sets.append(order[q, :size])
        margins.append(margin)
        answers.append(answer)
    return tuple(sets), torch.cat(margins), torch.cat(answers)


def _margins_without_random_examples(
    retraining: _Retraining, sets: Sequence[Tensor], n_controls: int, seed: int
) -> Tensor:
    """Margins (Q, C) after trainings without as many random examples."""
    n, queries = retraining.training.n_examples, [q for q in range(len(sets)) for _ in range(n_controls)]
    generator = rng.keyed_generator(rng.CPU, "removal's controls", seed)
    removed = [torch.randperm(n, generator=generator)[: len(sets[q])] for q in queries]
    return retraining.margins(queries, removed).reshape(len(sets), n_controls)


def _run_card_example_with_result(method: object, box: Box, x: Tensor, y: Tensor) -> Removal:
    trained, x, _, training = make_card_box_inputs_and_training(box, x, y)
    result: Removal = method(trained, x, None, training, max_fraction=0.5)  # type: ignore[operator]
    return result
