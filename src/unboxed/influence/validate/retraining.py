"""Retrainings with other weights of the examples: as many at a time as fit in memory, kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...checkpointing import CheckpointFile
from ...engine.example_gradients.labels import resolve_query_labels
from ...engine.unroll.checks import check_steps_are_repeatable, nonfinite_query_loss_error
from ...engine.unroll.fingerprint import training_fingerprint
from ...engine.unroll.model_training import ModelTraining
from ...engine.unroll.training import MAX_RETRAINING_BYTES, Training, TrainingState
from ...errors import InputError
from ...parameters import CheckpointPath
from ...settings import AtLeast, Unit, ValueRole

TrainingToRepeat = Annotated[
    Training, ValueRole("object"), "The training that made the model: a `ModelTraining`, or a `Training`."
]
MaxRetrainingBytes = Annotated[int, AtLeast(1), Unit("bytes"), "Memory that the trainings which run at once may take."]
QuietSetting = Annotated[bool, "No progress bar."]


def resolve_queries(training: Training, final: TrainingState, x: Any, labels: Any) -> tuple[Tensor, Any]:
    """Queries (Q, ...) and their labels (Q,) as the training's loss takes them; None: the classes predicted by `final`.

    Raises InputError.
    """
    check_steps_are_repeatable(training)
    if not isinstance(training, ModelTraining):
        if labels is None:
            raise InputError("labels can be left out for a ModelTraining alone: a step function predicts no classes")
        return x, labels
    box = training.box(final)
    x = box.validate_inputs(x)
    return x, resolve_query_labels(box, x, labels)


def open_retraining_checkpoint(
    path: CheckpointPath, training: Training, final: TrainingState, x: Tensor, y: Any, settings: dict[str, Any]
) -> CheckpointFile | None:
    """The file that losses after retraining are kept in; None for none."""
    if path is None:
        return None
    return CheckpointFile(Path(path), "retraining", training_fingerprint(training, final, x, y) | settings)


def retrained_losses(
    training_of: Callable[[int], Training],
    n_trainings: int,
    weights: Tensor,
    x: Tensor,
    y: Any,
    *,
    start: TrainingState | None = None,
    steps: range | None = None,
    max_bytes: int = MAX_RETRAINING_BYTES,
    file: CheckpointFile | None = None,
    quiet: bool = True,
) -> Tensor:
    """Losses (K, M, Q) of queries after each of K trainings with each of these weights (M, N) of its examples.

    `start` is one state that all of them start from, and `steps` are those that they take; None: a training's own.
    The losses that are there are written to the file after each batch of trainings.
    """
    saved = file.read() if file is not None else None
    done = [saved["losses"]] if saved is not None else list[Tensor]()
    n_done, m = sum(map(len, done)), len(weights)
    with tqdm(total=n_trainings * m, initial=n_done, desc="retraining", unit="training", disable=quiet) as bar:
        for k in range(n_done // m, n_trainings):
            training = training_of(k)
            n_at_once = training.n_at_once(max_bytes)
            for i in range(max(0, n_done - k * m), m, n_at_once):
                rows = weights[i : i + n_at_once]
                starts = None if start is None else {n: h.expand(len(rows), *h.shape) for n, h in start.items()}
                done.append(training.query_losses(training.run_many(rows, starts, steps), x, y).cpu())
                bar.update(len(rows))
                if file is not None:
                    file.write({"losses": torch.cat(done)})
    return torch.cat(done).reshape(n_trainings, m, -1).to(x.device)


def check_finite_losses_of_queries(training: Training, losses: Tensor) -> None:
    """Raise InputError for losses (M, Q) that are not finite; NaNError that names the training examples at fault."""
    bad = (~losses.isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        raise nonfinite_query_loss_error(training, bad[0])
