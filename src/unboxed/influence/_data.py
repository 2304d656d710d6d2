"""What the methods read: labeled training examples, and queries with the labels whose loss is explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.example_gradients.labels import read_training_examples as read_training_examples
from ..engine.example_gradients.labels import resolve_query_labels as resolve_query_labels
from ..engine.unroll.model_training import ModelTraining
from ..errors import InputError
from ..settings import ValueRole

TrainingData = Annotated[
    Any, ValueRole("data"), "Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader."
]

TrainIndex = Annotated[
    int | Sequence[int] | Tensor, ValueRole("ints"), "Index of the training example, or one per query (N,)."
]


def random_card_training_data(box: Box, n: int = 6) -> tuple[Tensor, Tensor]:
    """Random labeled examples, the same for each box, for the examples of cards."""
    x = box.inputs.random_inputs(n, torch.Generator(box.device).manual_seed(1)).to(box.dtype)
    return x, torch.arange(n, device=box.device) % max(2, box.n_outputs)


def check_train_index(index: Any, n_queries: int | None, n_train: int, device: torch.device) -> Tensor:
    """Indices (Q,) of training examples: given, or one for all queries."""
    try:
        rows = torch.as_tensor(index, device=device)
    except (TypeError, ValueError, RuntimeError):
        rows = torch.empty(0)
    is_count_right = rows.ndim == 0 or (rows.ndim == 1 and len(rows) and n_queries in (None, len(rows)))
    if rows.is_floating_point() or rows.dtype == torch.bool or not is_count_right:
        wanted = "a list of them" if n_queries is None else f"one per query ({n_queries},)"
        raise InputError(
            f"index must be a whole number, the index of a training example, or {wanted}; got {index!r}"[:300]
        )
    if not bool(((rows >= 0) & (rows < n_train)).all()):
        raise InputError(f"index must lie between 0 and {n_train - 1}, the last training example; got {index!r}"[:300])
    return rows.long().expand(n_queries or max(1, rows.numel()))


def make_card_box_inputs_and_training(box: Box, x: Tensor, y: Tensor) -> tuple[Box, Tensor, Tensor, ModelTraining]:
    """A box whose model was trained for two steps, x, y, and the training, for the examples of cards."""
    training = ModelTraining(
        box.model,
        box.inputs,
        random_card_training_data(box),
        epochs=1,
        batch_size=3,
        lr=1e-3,
        outputs=box.outputs,
    )
    return training.box(training.run()), x, y, training
