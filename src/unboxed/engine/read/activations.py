"""The activations that `Box.read` gives: a dict of tensors that shows itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...box import Box
from ...errors import InputError, LayerError
from ...model.batching import BatchSize, map_in_batches
from ...objectives import INPUT_OUTPUT_ADDRESSES, is_equal_value
from ...validation import address_list
from ..result_views import ResultViewsMixin

MAX_BYTES_OF_ALL_LAYERS = 2**32  # from which on the layers to read must be named
MAX_REPR_LAYERS = 3  # that a repr lists


class Activations(dict[str, Tensor], ResultViewsMixin):
    """{address: activation (N, ...)}: a dict that shows itself.

    >>> Activations({"conv1": torch.zeros(2, 16, 24, 24)})
    Activations(1 layer of 2 inputs: conv1 (2, 16, 24, 24))
    """

    returns: ClassVar[str] = "activations"

    def __repr__(self) -> str:
        listed = ", ".join(f"{a} {tuple(h.shape)}" for a, h in islice(self.items(), MAX_REPR_LAYERS))
        rest = ", ..." * (len(self) > MAX_REPR_LAYERS)
        n = len(next(iter(self.values()))) if self else 0
        return f"Activations({len(self)} layer{'s' * (len(self) != 1)} of {n} input{'s' * (n != 1)}: {listed}{rest})"

    def __eq__(self, other: object) -> bool:
        """Whether the addresses and the values are equal; a dict would ask tensors for their truth."""
        return isinstance(other, Mapping) and is_equal_value({**self}, {**other})

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # as of a dict


def read_activations(
    box: Box, x: Any, layers: str | nn.Module | Sequence[str | nn.Module] | None, batch_size: BatchSize
) -> Activations:
    """The body of `Box.read`, which describes it."""
    addresses = _leaf_addresses(box) if layers is None else [_resolve(box, a) for a in _as_list(layers)]
    x = box.validate_inputs(x)
    if layers is None:
        _check_fits_in_memory(box, len(x))

    def read_rows(rows: slice) -> dict[str, Tensor]:
        with box.isolated(grad=False):
            acts = box.forward(x[rows], addresses)
            return {a: h if h.is_complex() else h.to(box.dtype) for a, h in acts.items()}

    # activations without a batch axis cannot be joined from parts
    unsplittable = any(not box.has_batch_axis(a) for a in addresses)
    size, limit = box.batch_size_and_max_rows(len(x), batch_size, batch_dependent=unsplittable)
    parts = map_in_batches(
        read_rows, len(x), size, limit if box.batch_dependent or unsplittable else box.forward_batch_limit
    )
    if len(parts) == 1:
        return Activations({a: parts[0][a] for a in addresses})
    return Activations({a: torch.cat([p[a] for p in parts]) for a in addresses})


def _as_list(layers: str | nn.Module | Sequence[str | nn.Module]) -> list[Any]:
    return [layers] if isinstance(layers, nn.Module) else address_list(layers)


def _resolve(box: Box, address: str | nn.Module) -> str:
    """A module as its address; a name, which is checked, as it is. Raises LayerError."""
    if isinstance(address, str) and address in INPUT_OUTPUT_ADDRESSES:
        return address
    resolved = box.layers.resolve(address)
    return address if isinstance(address, str) else resolved


def _leaf_addresses(box: Box) -> list[str]:
    """Every call of every module without children whose output has a row per example."""
    addresses = [a for row in box.layers.leaves if row.has_batch_axis and row.shape for a in row.addresses]
    if not addresses:
        raise LayerError("no module of this model runs by itself; name functional ops: box.read(x, [':relu#0'])")
    return addresses


def _check_fits_in_memory(box: Box, n: int) -> None:
    """Raise InputError where all layers of n examples are too much to hold at once."""
    n_bytes = n * box.profile.bytes_per_example // 2  # which counts a layer's gradient, too
    if n_bytes > MAX_BYTES_OF_ALL_LAYERS:
        raise InputError(
            f"all layers of {n} inputs take {n_bytes / 2**30:.1f} GiB: name the layers that you need "
            f'(box.read(x, ["{box.layers.leaves[0].path}"])), or read fewer inputs at a time'
        )
