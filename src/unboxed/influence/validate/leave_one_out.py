"""What really happens when single training examples are left out: from scratch, or from the final state on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ...engine.results import ResultMixin
from ...engine.unroll.training import MAX_RETRAINING_BYTES, Training, TrainingState, check_is_training
from ...errors import InputError
from ...parameters import CheckpointPath, InputBatch, Labels
from ...settings import AtLeast, Unit, ValueRole, check_settings
from ..result import Influence
from .agreement import Agreement, check_estimates_same_truth, check_scores_match_queries, measure_agreement
from .retraining import (
    MaxRetrainingBytes,
    QuietSetting,
    TrainingToRepeat,
    check_finite_losses_of_queries,
    open_retraining_checkpoint,
    resolve_queries,
    retrained_losses,
)

StartKind = Literal["scratch", "warm"]
LeftOutIndices = Annotated[
    Sequence[int] | Tensor, ValueRole("ints"), "Training examples (K,) to leave out, one at a time, by their index."
]


@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut(ResultMixin):
    """Real changes of queries' losses without single training examples.

    Attributes:
        changes: (Q, K) loss without the example, minus loss with it, in nats: positive where it helped.
        indices: (K,) the examples that were left out.
        losses: (Q,) losses with all examples.
        start: "scratch" or "warm".
        n_steps: Steps of each retraining.
        target: (Q,) the classes whose loss changes; or what the loss was given.
        train_labels: (N,) the training examples' labels; None for a `Training` of one's own.
    """

    changes: Tensor
    indices: Tensor
    losses: Tensor
    start: StartKind
    n_steps: int
    target: Any
    train_labels: Tensor | None = None

    def agreement(self, result: Influence, *, allow_other_truth: bool = False) -> Agreement:
        """How well scores of these queries predict the changes.

        Raises InputError for scores that do not estimate one run, unless `allow_other_truth`, and of other queries.
        """
        check_estimates_same_truth(result, "one run", allow_other_truth=allow_other_truth)
        check_scores_match_queries(result, len(self.changes), result.n_train, self.target, self.train_labels)
        if int(self.indices.max()) >= result.n_train:
            raise InputError(f"these are scores of {result.n_train} examples; example {int(self.indices.max())} was "
                             "left out")  # fmt: skip
        return measure_agreement(result.scores[:, self.indices].to(self.changes), self.changes)


def leave_one_out(
    training: TrainingToRepeat,
    x: InputBatch,
    labels: Labels,
    indices: LeftOutIndices,
    *,
    start: Annotated[StartKind, 'Retrain from "scratch", or go on from the final state ("warm").'] = "scratch",
    n_steps: Annotated[
        int | None, AtLeast(1), Unit("steps"), "Steps of a warm start: the first ones of the training."
    ] = None,
    max_bytes: MaxRetrainingBytes = MAX_RETRAINING_BYTES,
    checkpoint: CheckpointPath = None,
    quiet: QuietSetting = True,
) -> LeaveOneOut:  # fmt: skip
    """Leave training examples out one at a time, retrain, and see how the queries' losses change.

    What scores in nats predict. For small models and a few hundred examples: each is a training, though many run at
    once. A single example changes little: see that the change is above the noise of the training
    (`linear_datamodeling_score` says how large that is).

    Args:
        training: The training that made the model: a `ModelTraining`, or a `Training`.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. The loss of these changes; None: of the predicted classes.
        indices: Training examples (K,) to leave out, one at a time, by their index.
        start: Retrain from "scratch", or go on from the final state ("warm"). From scratch it is the same training with
            weight 0 for the example. A warm start takes steps without the example, with a fresh optimizer, and is
            compared with the same steps with it: for trainings that have converged, and too long to repeat.
        n_steps: Steps of a warm start: the first ones of the training. None: as many as it has.
        max_bytes: Memory that the trainings which run at once may take. Their activations come on top.
        checkpoint: File from which a call that was stopped goes on.
        quiet: No progress bar.

    Returns:
        A `LeaveOneOut` with the changes (Q, K); `agreement(result)` compares scores with them.

    Raises:
        InputError: for indices that are none, or not of training examples; `n_steps` with a start from scratch; losses
            that are not finite.
        ModelError: for a checkpoint of another training, other queries or examples.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> x, y = ub.data.digits("train").first(64)
        >>> training = ub.influence.ModelTraining(model, inputs, (x, y), epochs=1, batch_size=16)
        >>> result = ub.influence.unrolled(training.box(training.run()), x[:1], y[:1], training)
        >>> real = ub.influence.validate.leave_one_out(training, x[:1], y[:1], result.top(4)[0])
        >>> real.changes.shape, bool(real.agreement(result).pearson[0] > .9)
        (torch.Size([1, 4]), True)

    Source:
        Koh & Liang 2017, arXiv:1703.04730, section 4.1, where retraining goes on from the final state.
    """
    check_settings(leave_one_out, locals())
    check_is_training(training)
    chosen = _check_left_out_indices(indices, training.n_examples)
    if start == "scratch" and n_steps is not None:
        raise InputError('n_steps is for start="warm"; from scratch the whole training is repeated')
    n_taken = min(training.n_steps, n_steps or training.n_steps)
    final = training.run()
    x, y = resolve_queries(training, final, x, labels)
    settings = {"start": start, "n_steps": n_taken, "examples left out": chosen.tolist()}
    warm = training.warm_start(final) if start == "warm" else None
    losses = _losses_after_leaving_out(
        training, chosen, x, y, warm, range(n_taken), max_bytes=max_bytes,
        file=open_retraining_checkpoint(checkpoint, training, final, x, y, settings), quiet=quiet,
    )  # fmt: skip
    check_finite_losses_of_queries(training, losses)
    return LeaveOneOut(
        (losses[1:] - losses[0]).T.contiguous(), chosen, losses[0], start, n_taken, y, getattr(training, "y", None)
    )  # fmt: skip


def _losses_after_leaving_out(
    training: Training,
    chosen: Tensor,
    x: Tensor,
    y: object,
    start: TrainingState | None,
    steps: range,
    **kwargs: object,
) -> Tensor:
    """Losses (1 + K, Q): with all examples, then without each of the chosen."""
    weights = training.unit_example_weights(1 + len(chosen))
    weights[torch.arange(1, 1 + len(chosen)), chosen] = 0
    losses = retrained_losses(lambda k: training, 1, weights, x, y, start=start, steps=steps, **kwargs)  # type: ignore[arg-type]
    return losses[0]


def _check_left_out_indices(indices: Sequence[int] | Tensor, n: int) -> Tensor:
    chosen = torch.as_tensor(indices).cpu()
    is_valid = chosen.ndim == 1 and len(chosen) and not chosen.is_floating_point() and chosen.dtype != torch.bool
    if not is_valid or int(chosen.min()) < 0 or int(chosen.max()) >= n:
        raise InputError(f"indices are those of training examples (K,), 0 to {n - 1}; got {indices!r}")
    return chosen.long()
