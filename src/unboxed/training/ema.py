"""The exponential moving average of a model's weights, which is often the better model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ModelEMA:
    """Of all parameters and floating point buffers: average = decay average + (1 - decay) weights, after each step.

    In the first steps the decay is smaller, (1 + step) / (10 + step), so that the initial weights soon count little.
    (`swa_utils.AveragedModel` starts with the weights after the first step, and copies the model with its hooks.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        tensors = (*model.parameters(), *model.buffers())
        self.weights = [tensor.data for tensor in tensors if tensor.is_floating_point()]
        self.average = [h.clone() for h in self.weights]

    def update(self, step: int) -> None:
        """Average after step number `step`, from 1."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        average(self.average, self.weights, step)

    def copy_to_model(self) -> None:
        """Replace the model's weights by the average."""
        torch._foreach_copy_(self.weights, self.average)

    @contextmanager
    def using_averaged_weights(self) -> Iterator[None]:
        """Inside, the model has the average as its weights."""
        saved_weights = [tensor.clone() for tensor in self.weights]
        try:
            self.copy_to_model()
            yield
        finally:
            torch._foreach_copy_(self.weights, saved_weights)

    def restore(self, saved_average: list[Tensor]) -> None:
        """Continue from the average of a checkpoint."""
        torch._foreach_copy_(self.average, saved_average)
