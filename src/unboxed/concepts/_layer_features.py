"""How a layer's activations, and a score's gradients there, are features: all values, or of wide layers the units'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import unit_axis
from ..engine.read.features import read_features
from ..model.batching import BatchSize

MAX_UNPOOLED_FEATURES = 2**16  # of a layer; of more, vectors are the same at all positions
MAX_GROUP_VALUES = 2**28  # features of all examples that are held at a time


@dataclass(frozen=True)
class LayerFeatures:
    """A layer whose vectors have a value per value of its activations, or per unit, for all positions alike.

    Attributes:
        address: Its address.
        shape: Shape of its activations, without N.
        unit_axis: Axis of the units whose means over positions are the features; None: all values are.
    """

    address: str
    shape: tuple[int, ...]
    unit_axis: int | None = None

    @property
    def n_features(self) -> int:
        return math.prod(self.shape) if self.unit_axis is None else self.shape[self.unit_axis - 1]

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """The shape of a vector, as `direction` takes it."""
        return self.shape if self.unit_axis is None else (self.n_features,)

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The derivatives (N, D) in the features: a vector that is the same at all positions moves them all."""
        gradient = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        if self.unit_axis is None:
            return gradient.flatten(1)
        return gradient.movedim(self.unit_axis, 1).flatten(2).sum(2)

    def move(self, h: Tensor, vector: Tensor) -> Tensor:
        """Activations (N, ...) plus a vector (D,), at all positions where it is the same there."""
        if h.is_complex():
            return torch.view_as_complex(self.move(torch.view_as_real(h), vector).contiguous())
        if self.unit_axis is None:
            return h + vector.view(1, *self.shape).to(h)
        return h + vector.view(-1, *[1] * (len(self.shape) - self.unit_axis)).to(h)

    def read(self, h: Tensor) -> Tensor:
        """Features (N, D) of activations (N, ...)."""
        h = torch.view_as_real(h) if h.is_complex() else h
        return h.flatten(1) if self.unit_axis is None else h.movedim(self.unit_axis, 1).flatten(2).mean(2)


def layers_as_features(box: Box, x: Tensor, addresses: Sequence[str], batch_size: BatchSize) -> list[LayerFeatures]:
    """How each layer becomes features."""
    acts = box.read(x if box.batch_dependent else x[:1], addresses, batch_size=batch_size)
    return [_as_features(box, a, acts[a]) for a in addresses]


def _as_features(box: Box, address: str, h: Tensor) -> LayerFeatures:
    shape = tuple(torch.view_as_real(h).shape[1:] if h.is_complex() else h.shape[1:])
    is_wide = math.prod(shape) > MAX_UNPOOLED_FEATURES and h.ndim > 2 and not h.is_complex()
    return LayerFeatures(address, shape, unit_axis(box, address, h.ndim) if is_wide else None)


def read_features_in_groups(
    box: Box, x: Tensor, layers: Sequence[LayerFeatures], batch_size: BatchSize
) -> Iterator[tuple[list[LayerFeatures], dict[str, Tensor]]]:  # fmt: skip
    """Layers with the features (N, D) of x by address, on the CPU, as many at a time as fit in memory."""
    for group in _memory_bounded_groups(layers, len(x)):
        axes = {f.address: f.unit_axis for f in group if f.unit_axis is not None}
        h = read_features(box, x, [f.address for f in group], batch_size=batch_size, unit_axes=axes)
        yield group, {a: v.cpu() for a, v in h.items()}


def _memory_bounded_groups(layers: Sequence[LayerFeatures], n: int) -> list[list[LayerFeatures]]:
    groups, held = [list[LayerFeatures]()], 0
    for layer in layers:
        if groups[-1] and held + n * layer.n_features > MAX_GROUP_VALUES:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += n * layer.n_features
    return groups
