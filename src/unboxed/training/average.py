"""The exponential moving average of a net's weights, which is often the better net."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Of all parameters and floating point buffers: average = decay average + (1 - decay) weights, after each step.

    In the first steps the decay is smaller, (1 + step) / (10 + step), or the untrained weights would count for long.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        tensors = (*net.parameters(), *net.buffers())
        self.live = [h.data for h in tensors if h.is_floating_point()]
        self.kept = [h.clone() for h in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, h in zip(self.kept, self.live, strict=True):
            average.lerp_(h, share)

    @torch.no_grad()
    def exchange(self) -> None:
        """The net gets the average, and the average's place keeps what the net had; and back."""
        for average, h in zip(self.kept, self.live, strict=True):
            was = h.clone()
            h.copy_(average)
            average.copy_(was)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For looks at the average: the net holds it inside."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state(self) -> list[Tensor]:
        return self.kept

    def restore(self, kept: list[Tensor]) -> None:
        for average, h in zip(self.kept, kept, strict=True):
            average.copy_(h)
