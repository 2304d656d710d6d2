"""The exponential moving average of a model's weights, which is often the better model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ModelEMA:
    """Of all parameters and floating point buffers: average = decay average + (1 - decay) weights, after each step.

    In the first steps the decay is smaller, (1 + step) / (10 + step), or the untrained weights would count for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        tensors = (*model.parameters(), *model.buffers())
        self.weights = [tensor.data for tensor in tensors if tensor.is_floating_point()]
        self.average = [h.clone() for h in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, from 1."""
        new_weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for ema_tensor, tensor in zip(self.average, self.weights, strict=True):
            ema_tensor.lerp_(tensor, new_weight)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Into the model, in place of its weights."""
        for ema_tensor, tensor in zip(self.average, self.weights, strict=True):
            tensor.copy_(ema_tensor)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """For looks at the average: the model holds it inside, and its own weights again afterwards."""
        saved_weights = [tensor.clone() for tensor in self.weights]
        try:
            self.copy_to_model()
            yield
        finally:
            for h, saved_tensor in zip(self.weights, saved_weights, strict=True):
                h.copy_(saved_tensor)

    def restore(self, saved_average: list[Tensor]) -> None:
        """What a checkpoint held."""
        for ema_tensor, saved_tensor in zip(self.average, saved_average, strict=True):
            ema_tensor.copy_(saved_tensor)
