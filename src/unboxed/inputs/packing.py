"""Data of models with several inputs, packed: one row of numbers per example, as the methods take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, InputError
from .multi import MultiInput


def is_packed_pair(inputs: MultiInput, data: Any) -> bool:
    """Whether these are packed inputs already, with labels in any form."""
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor)
    return is_pair and data[0].shape[1:] == inputs.shape


def pack_example(inputs: MultiInput, item: Any) -> Any:
    """One example's inputs (D,), with its label if there is one. Raises DataError."""
    values, label = _split_inputs_and_label(inputs, item, 0)
    packed_row = pack_batch(inputs, _to_batch_of_one(values))[0]
    return (packed_row, *label) if label else packed_row


def iter_packed_examples(inputs: MultiInput, batch: Any) -> Iterator[Any]:
    """The packed examples of a batch of a DataLoader, with their labels if there are any. Raises DataError."""
    values, labels = _split_inputs_and_label(inputs, batch, 1)
    x = pack_batch(inputs, values)
    return zip(x, *labels, strict=True) if labels else iter(x)


def pack_batch(inputs: MultiInput, values: Any) -> Tensor:
    """Packed inputs (n, D) of a batch, which may be packed already. Raises DataError, and InputError for bad values."""
    if isinstance(values, Tensor) and values.shape[1:] == inputs.shape:
        return values
    if not inputs.has_structure_of_parts(values):
        try:
            inputs.values_of_parts(values)  # names and number
        except InputError as error:
            raise DataError(f"an example of a model of several inputs is a dict or tuple of tensors: {error}") from None
        got = type(values).__name__
        raise DataError(f"an example of a model of several inputs is a dict or tuple of tensors; got {got}")
    return inputs.pack(inputs.check(values))


def _to_batch_of_one(values: Any) -> Any:
    """A batch of one example. Raises DataError."""
    try:
        if isinstance(values, Mapping):
            return {name: torch.as_tensor(v)[None] for name, v in values.items()}
        if isinstance(values, (tuple, list)):
            return tuple(torch.as_tensor(v)[None] for v in values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"an example of a model of several inputs holds what is no tensor: {error}") from error
    return values[None] if isinstance(values, Tensor) else values


def _split_inputs_and_label(inputs: MultiInput, item: Any, n_batch_axes: int) -> tuple[Any, list[Any]]:
    """The inputs of an example, or of a batch (`n_batch_axes` 1), and its labels in a list, empty without any."""
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    has_label = is_pair and (not isinstance(item[0], Tensor) or item[0].shape[n_batch_axes:] == inputs.shape)
    return (item[0], [item[1]]) if has_label else (item, [])
