"""Data of models with several inputs, packed: one row of numbers per example, as the methods take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from ...box import Box
from ...errors import DataError
from ...inputs.multi import MultiInput
from .items import SkippedExamples, is_batching_loader, is_indexable, is_tensor_pair, iter_examples, iter_loader_batches


def pack_data(box: Box, data: Any) -> Any:
    """Data of a model with several inputs as packed tensors or a dataset of them; all other data unchanged.

    They may be a dict or a tuple of tensors as the model takes them, a pair of these and labels, a Dataset or iterable
    of such inputs of one example, or of (inputs, label), or a DataLoader of either.
    """
    if not isinstance(box.inputs, MultiInput) or isinstance(data, Tensor) or _is_packed_pair(box.inputs, data):
        return data
    if box.inputs.is_structure(data):
        return box.validate_inputs(data)
    if isinstance(data, (tuple, list)) and len(data) == 2 and box.inputs.is_structure(data[0]):
        return box.validate_inputs(data[0]), torch.as_tensor(data[1])
    if is_batching_loader(data):
        return _PackedLoader(box.inputs, data)
    return (
        _PackedDataset(box.inputs, data)
        if is_indexable(data)
        else (_pack_example(box.inputs, i) for i in iter_examples(data, SkippedExamples()))
    )


def _is_packed_pair(inputs: MultiInput, data: Any) -> bool:
    """Whether these are packed tensors (x, y) already, as `pack_data` returns them."""
    return is_tensor_pair(data) and data[0].shape[1:] == inputs.shape


class _PackedDataset:
    """A dataset of several inputs, whose examples are packed on access."""

    def __init__(self, inputs: MultiInput, data: Any) -> None:
        self.inputs, self.data = inputs, data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return _pack_example(self.inputs, self.data[i])


@dataclass(frozen=True)
class _PackedLoader:
    """The packed examples of a DataLoader of several inputs, with their labels if there are any."""

    inputs: MultiInput
    loader: DataLoader[Any]

    def __iter__(self) -> Iterator[Any]:
        for batch in iter_loader_batches(self.loader):
            values, labels = _split_labels(self.inputs, batch, 1)
            yield from (
                zip(_pack_batch(self.inputs, values), *labels, strict=True)
                if labels
                else _pack_batch(self.inputs, values)
            )


def is_single_pass(data: Any) -> bool:
    """Whether a second pass over `data` would give nothing, or other examples."""
    data = data.loader if isinstance(data, _PackedLoader) else data
    if isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, "sampler", None)  # a loader's own `sampler` is not that of batch_sampler=
        return is_batching_loader(data) and not isinstance(sampler, SequentialSampler)
    return isinstance(data, Iterator)


def _pack_example(inputs: MultiInput, item: Any) -> Any:
    """One example's inputs (D,), with its label if there is one. Raises DataError."""
    values, label = _split_labels(inputs, item, 0)
    packed_row = _pack_batch(inputs, _as_batch(values))[0]
    return (packed_row, *label) if label else packed_row


def _as_batch(values: Any) -> Any:
    """A batch of one example. Raises DataError."""
    try:
        if isinstance(values, Mapping):
            return {name: torch.as_tensor(v)[None] for name, v in values.items()}
        if isinstance(values, (tuple, list)):
            return tuple(torch.as_tensor(v)[None] for v in values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"an example of a model of several inputs holds what is no tensor: {error}") from error
    return values[None] if isinstance(values, Tensor) else values


def _split_labels(inputs: MultiInput, item: Any, n_batch_axes: int) -> tuple[Any, list[Any]]:
    """The inputs of an example, or of a batch (`axes` 1), and its labels in a list, empty where there are none."""
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    has_label = is_pair and (not isinstance(item[0], Tensor) or item[0].shape[n_batch_axes:] == inputs.shape)
    return (item[0], [item[1]]) if has_label else (item, [])


def _pack_batch(inputs: MultiInput, values: Any) -> Tensor:
    """Packed inputs (n, D) of a batch, which may be packed already. Raises DataError."""
    if isinstance(values, Tensor) and values.shape[1:] == inputs.shape:
        return values
    if not inputs.is_structure(values):
        got = type(values).__name__
        raise DataError(f"an example of a model of several inputs is a dict or tuple of tensors; got {got}")
    return inputs.pack(inputs.check(values))
