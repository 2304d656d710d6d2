"""The exponential moving average of a model's weights, which is often the better model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Of all parameters and floating point buffers: average = decay average + (1 - decay) weights, after each step.

    In the first steps the decay is smaller, (1 + step) / (10 + step), or the untrained weights would count for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        tensors = (*model.parameters(), *model.buffers())
        self.live = [h.data for h in tensors if h.is_floating_point()]
        self.kept = [h.clone() for h in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, h in zip(self.kept, self.live, strict=True):
            average.lerp_(h, share)

    @torch.no_grad()
    def put(self) -> None:
        """Into the model, in place of its weights."""
        for average, h in zip(self.kept, self.live, strict=True):
            h.copy_(average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For looks at the average: the model holds it inside, and its own weights again afterwards."""
        own = [h.clone() for h in self.live]
        try:
            self.put()
            yield
        finally:
            for h, value in zip(self.live, own, strict=True):
                h.copy_(value)

    def restore(self, kept: list[Tensor]) -> None:
        """What a checkpoint held."""
        for average, h in zip(self.kept, kept, strict=True):
            average.copy_(h)
