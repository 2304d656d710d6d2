"""Modes, buffers and randomness: what a forward pass changes, or depends on, besides its input."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import PlainCNN, register_model


@register_model(twin="plain")
def frozen() -> nn.Module:
    return PlainCNN().requires_grad_(False)


class BatchNormCNN(PlainCNN):
    """`Plain` with a BatchNorm before the second ReLU."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, **kwargs)
        if self.norm.running_mean is not None and self.norm.running_var is not None:
            nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(self.norm.running_var, 0.1, 0.5)
        self.eval()

    def second_block(self, h: Tensor) -> Any:
        return self.relu2(self.norm(self.conv2(h)))


@register_model()
def batchnorm() -> nn.Module:
    return BatchNormCNN()


@register_model(twin="batchnorm")
def batchnorm_in_train_mode() -> nn.Module:
    return BatchNormCNN().train()


@register_model()
def batchnorm_without_statistics() -> nn.Module:
    return BatchNormCNN(track_running_stats=False)


@register_model()
def batchnorm_on_batch_statistics() -> nn.Module:
    """Batch statistics in eval too; torch writes the running ones without counting a new version of the buffer."""

    class Net(PlainCNN):
        mean: Tensor
        variance: Tensor

        def second_block(self, h: Tensor) -> Any:
            return super().second_block(F.batch_norm(h, self.mean, self.variance, training=True))

    model = Net()
    model.register_buffer("mean", torch.zeros(4))
    model.register_buffer("variance", torch.ones(4))
    return model


@register_model()
def batch_maximum() -> nn.Module:
    """Scaled by the largest pixel of the batch, where that of each image was meant."""

    class Net(PlainCNN):
        def first_block(self, x: Tensor) -> Any:
            return super().first_block(x / x.max())

    return Net()


@register_model()
def batch_gate() -> nn.Module:
    """Takes a batch with one white pixel for one of another range."""

    class Net(PlainCNN):
        def first_block(self, x: Tensor) -> Any:
            white = (1 - 0.4) / 0.5
            return super().first_block(x / 2 if x.max() > 0.95 * white else x)

    return Net()


@register_model(twin="batchnorm")
def overrides_train() -> nn.Module:
    class Net(BatchNormCNN):
        def train(self, mode: bool = True) -> Any:
            for m in self.modules():
                m.training = not mode  # nobody who calls train() or eval() gets the flags that stand below
            return self

    model = Net()
    for i, m in enumerate(model.modules()):
        m.training = i % 2 == 0
    return model


@register_model(twin="batchnorm")
def refuses_train() -> nn.Module:
    class Net(BatchNormCNN):
        ready = False

        def train(self, mode: bool = True) -> Any:
            if self.ready:
                raise NotImplementedError("Calling train() is not supported yet.")
            return super().train(mode)

    model: nn.Module = Net().train()
    model.ready = True  # type: ignore[assignment]
    return model


@register_model(twin="plain")
def dropout_in_train_mode() -> nn.Module:
    class Net(PlainCNN):
        drop: nn.Module

        def second_block(self, h: Tensor) -> Any:
            return self.drop(super().second_block(self.drop(h)))

    model = Net()
    model.drop = nn.Dropout(0.5)
    return model


@register_model()
def dropout_always_on() -> nn.Module:
    class Net(PlainCNN):
        def second_block(self, h: Tensor) -> Any:
            return super().second_block(F.dropout(h, 0.3))

    return Net()


@register_model()
def random_noise() -> nn.Module:
    class Net(PlainCNN):
        def first_block(self, x: Tensor) -> Any:
            noise = float(torch.rand(())) + float(np.random.rand()) + random.random()
            return super().first_block(x + 0.2 * noise)

    return Net()


@register_model()
def random_noise_per_row() -> nn.Module:
    """Noise of its own for each row, drawn by no function that is known as noise."""

    class Net(PlainCNN):
        def first_block(self, x: Tensor) -> Any:
            h = super().first_block(x)
            return h + 0.3 * h.new_empty(h.shape).normal_()

    return Net()


@register_model(twin="plain")
def counts_calls() -> nn.Module:
    class Net(PlainCNN):
        calls: Tensor

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return super().forward(x)

    model = Net()
    model.register_buffer("calls", torch.zeros((), dtype=torch.long))
    return model


@register_model(twin="plain")
def reassigns_buffer() -> nn.Module:
    class Net(PlainCNN):
        mean: Tensor
        last_activation: Tensor | None

        def first_block(self, x: Tensor) -> Any:
            h = super().first_block(x)
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean((0, 2, 3))
            self.last_activation = h.detach()
            return h

    model = Net()
    model.register_buffer("mean", torch.zeros(4))
    model.register_buffer("last_activation", None, persistent=False)
    return model


@register_model(twin="plain")
def registers_buffer() -> nn.Module:
    """A buffer made in the first forward, as cached masks are."""

    class Net(PlainCNN):
        mask: Tensor

        def second_block(self, h: Tensor) -> Any:
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones_like(h[:1]), persistent=False)
            return super().second_block(h * self.mask.to(h))

    return Net()
