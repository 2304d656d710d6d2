"""What tells one training from another, for the files that its results are kept in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...checkpointing import tensor_digest
from .model_training import ModelTraining
from .training import Training, TrainingState


def training_fingerprint(training: Training, final: TrainingState, x: Tensor, y: Any) -> dict[str, Any]:
    """A training with its final state, and queries, as the settings of a checkpoint.

    The losses after it stand for what digests cannot: its learning rates, its loss, its code.
    """
    examples = {}
    if isinstance(training, ModelTraining):
        examples["training examples"] = tensor_digest(training.x, training.y)
    with torch.no_grad():
        losses = training.query_loss(final, x, y).detach().cpu()
    return {
        **examples,
        "training's start": tensor_digest(*training.start.values()),
        "training's order": tensor_digest(*training.batches),
        "queries": tensor_digest(x),
        "labels": tensor_digest(torch.as_tensor(y)),
        "query losses after the training": losses,
    }
