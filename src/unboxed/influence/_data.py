"""What the methods read: labeled training examples, and queries with the labels whose loss is explained."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.examples import labeled_examples
from ..settings import Holds

TrainingData = Annotated[
    Any, Holds("data"), "Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader."
]


def read_labeled(box: Box, train: Any) -> tuple[Tensor, Tensor]:
    """Training inputs (N, ...) and classes (N,). Raises DataError where there are none, or no labels."""
    return labeled_examples(box, train)


def random_training_data(box: Box, n: int = 6) -> tuple[Tensor, Tensor]:
    """Random labeled examples, the same for each box, for the examples of cards."""
    x = box.inputs.random_inputs(n, torch.Generator(box.device).manual_seed(1)).to(box.dtype)
    return x, torch.arange(n, device=box.device) % max(2, box.n_outputs)
