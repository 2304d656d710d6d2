"""The one door for examples: whatever holds inputs of a model, with or without labels, opened as tensors.

Tensors, arrays, Pillow images, paths, lists of these, `(x, y)`, torch Datasets and DataLoaders, Hugging Face data sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..atomic_write import to_printable
from ..errors import BrokenImageError, DataError, InputError, warn
from ..validation import missing_path_text
from .base import Inputs
from .features import Features
from .forms import (
    has_batch_ndim,
    image_and_label_of_row,
    is_nested_list,
    may_be_multi_input,
    normalize_loader_batch,
    split_inputs_and_labels,
    to_example,
)
from .frames import frames_to_arrays, is_data_frame
from .items import (
    ACCEPTED_DATA_TEXT,
    SkippedExamples,
    add_loader_skips,
    data_name_for_errors,
    drop_label,
    is_batching_loader,
    is_indexable,
    is_shuffling_loader,
    item_or_data_error,
    iter_loader_batches,
)
from .labeled_texts import drop_text_labels, open_texts
from .multi import MultiInput
from .packing import is_packed_pair, iter_packed_examples, pack_batch
from .pixel_arrays import (
    WHITE_LEVEL_BY_DTYPE,
    array_to_tensor,
    integers_to_unit_range,
    is_encoded_image,
    is_image_folder,
    is_single_image_source,
)
from .pixels import Pixels
from .tokens import Tokens

EXAMPLES_PER_READ = 1024  # examples that are stacked at a time


@dataclass(frozen=True, eq=False)
class OpenedDataset:
    """Examples that are read by index, converted on access: an input, or (input, label)."""

    data: Any
    inputs: Inputs | None
    labels: Any = None  # one per example, where they come beside the inputs

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return self._convert(i, item_or_data_error(self.data, i))

    def _convert(self, i: int, item: Any) -> Any:
        example = to_example(item, self.inputs, f"example {i} of {data_name_for_errors(self.data)}")
        return example if self.labels is None else (drop_label(example), self.labels[i])

    def iter_examples(self, skipped: SkippedExamples) -> Iterator[Any]:
        """All that can be read; the others are recorded."""
        for i in range(len(self)):  # some data sets never raise IndexError
            try:
                item = item_or_data_error(self.data, i)
                example = self._convert(i, item)
            except BrokenImageError as error:
                skipped.add(i, str(error))
                continue
            if isinstance(self.inputs, Pixels):
                skipped.note_8_bit_values(item)
            yield example


@dataclass(frozen=True, eq=False)
class OpenedStream:
    """Examples that come one after another, from an iterable or a DataLoader."""

    data: Any
    inputs: Inputs | None
    has_label_maps: bool = False  # labels may have as many axes as inputs

    def iter_examples(self, skipped: SkippedExamples) -> Iterator[Any]:
        """All that can be read; the others are recorded."""
        if is_batching_loader(self.data):
            yield from self._iter_loader(skipped)
            return
        for i, item in enumerate(self.data):
            try:
                example = to_example(item, self.inputs, f"example {i} of {data_name_for_errors(self.data)}")
            except BrokenImageError as error:
                skipped.add(i, str(error))
                continue
            if isinstance(self.inputs, Pixels):
                skipped.note_8_bit_values(item)
            yield example

    def iter_batches(self, skipped: SkippedExamples) -> Iterator[list[Any]]:
        """The examples of each batch of a DataLoader that can be read; the others are recorded."""
        yield from (list(self._iter_batch(batch, skipped)) for batch in iter_loader_batches(self.data))

    def _iter_loader(self, skipped: SkippedExamples) -> Iterator[Any]:
        n_read = 0
        for batch in self.iter_batches(skipped):
            n_read += len(batch)
            yield from batch
        add_loader_skips(self.data, n_read, skipped)

    def _iter_batch(self, batch: Any, skipped: SkippedExamples) -> Iterator[Any]:
        if isinstance(self.inputs, MultiInput):
            return iter_packed_examples(self.inputs, batch)
        batch = normalize_loader_batch(batch, self.inputs)
        is_inputs_alone = isinstance(batch, (tuple, list)) and len(batch) == 1 and has_batch_ndim(batch[0], self.inputs)
        pair = tuple(batch) if self.has_label_maps and isinstance(batch, list) else batch
        return iter_examples(
            open_data(batch[0] if is_inputs_alone else pair, self.inputs, self.has_label_maps), skipped
        )


TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
ROW_FILE_SUFFIXES = (*TABLE_SUFFIXES, ".jsonl")
OPENER_BY_SUFFIX = {".npy": "np.load(path)", ".npz": "np.load(path)", ".xlsx": "pandas.read_excel(path)"}


def is_table_file(data: object) -> bool:
    """Whether this is the path of a file of rows or texts."""
    is_path = isinstance(data, (str, os.PathLike)) and os.fspath(data).lower().endswith(ROW_FILE_SUFFIXES)
    return is_path and os.path.isfile(data)  # type: ignore[arg-type]


def _open_file_of_inputs(data: Any, inputs: Inputs | None) -> Tensor | OpenedDataset | None:
    """The inputs in the file of a table, rows or images, or in a folder of images; None for other data, and for the
    file of an image.

    Raises DataError, with what opens it, for another file.
    """
    if not isinstance(data, (str, os.PathLike)):
        return None
    if is_image_folder(data, inputs):
        return OpenedDataset(import_module("unboxed.data.folders").folder_with_warning(data, inputs), inputs)
    path, suffix = to_printable(os.fspath(data)), Path(data).suffix.lower()
    if not os.path.isfile(data):
        if suffix in ROW_FILE_SUFFIXES:
            raise DataError(missing_path_text(path))
        return None
    if suffix in TABLE_SUFFIXES and isinstance(inputs, (Features, Pixels)):
        read = import_module("unboxed.data.tables").inputs_of_table(data, inputs)  # which is above this module
        return read if isinstance(read, Tensor) else OpenedDataset(read, inputs)
    if isinstance(inputs, Pixels) and suffix not in ROW_FILE_SUFFIXES:
        return None
    opener = "ub.data.texts(path, box)" if getattr(inputs, "is_text", False) else OPENER_BY_SUFFIX.get(suffix, "")
    advice = f"open it with {opener}" if opener else f"a table is a {', '.join(TABLE_SUFFIXES)} file or a DataFrame"
    raise DataError(f"{path} is a path: {advice}")


OpenedData = Tensor | tuple[Tensor, Any] | OpenedDataset | OpenedStream


def open_data(data: Any, inputs: Inputs | None = None, has_label_maps: bool = False) -> OpenedData:
    """Data in any form as a tensor (N, ...), a pair (x, y), or examples that are converted when they are read.

    `inputs` says what an input is: images are resized and cropped to it, several inputs are packed. None leaves inputs
    as they are. `has_label_maps`: labels may have as many axes as inputs. Raises DataError for what holds no examples.
    """
    if isinstance(data, (OpenedDataset, OpenedStream)):
        return data
    data = frames_to_arrays(data, inputs)
    if isinstance(inputs, Tokens):
        _open_file_of_inputs(data, inputs)  # none of texts: it refuses one
        return open_texts(data, inputs)
    if isinstance(inputs, MultiInput) and (packed := _open_multi_input(data, inputs)) is not None:
        return packed
    if isinstance(data, Tensor):
        return integers_to_unit_range(data, inputs) if isinstance(inputs, Pixels) else data
    if isinstance(data, np.ndarray):
        return _open_array(data, inputs)
    if isinstance(data, Mapping) and not is_encoded_image(data) and not isinstance(inputs, MultiInput):
        images, labels = image_and_label_of_row(data)
        return _pair_with_labels(open_data(images, inputs), labels)
    if (read := _open_file_of_inputs(data, inputs)) is not None:
        return read
    if isinstance(inputs, Pixels) and is_single_image_source(data):
        data = [data]
    if isinstance(data, (tuple, list)) and len(data) == 2 and is_table_file(data[0]):
        return _pair_with_labels(open_data(data[0], inputs), data[1])
    if not isinstance(inputs, MultiInput) and (pair := split_inputs_and_labels(data, inputs, has_label_maps)):
        return _pair_with_labels(open_data(pair[0], inputs), pair[1])
    if is_indexable(data):
        return OpenedDataset(data, inputs)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, nn.Module)):
        return OpenedStream(data, inputs, has_label_maps)
    raise DataError(f"{ACCEPTED_DATA_TEXT}; got {type(data).__name__}")


def iter_examples(data: OpenedData, skipped: SkippedExamples) -> Iterator[Any]:
    """The examples one by one, inputs or (input, label); those that cannot be read are left out, and recorded."""
    if isinstance(data, (OpenedDataset, OpenedStream)):
        return data.iter_examples(skipped)
    x, y = data if isinstance(data, tuple) else (data, None)
    return iter(x) if y is None else zip(x, y, strict=True)


def input_batches(data: Any, size: int, skipped: SkippedExamples | None = None) -> Iterator[Tensor]:
    """The inputs (at most `size`, ...) of `data`, in their order; labels are left out.

    Image files that cannot be read are left out, and recorded in `skipped`. Raises DataError where there are no inputs.
    """
    opened, skipped, n_read = drop_label(open_data(data)), skipped or SkippedExamples(), 0
    for x in _iter_slices(opened, size) if isinstance(opened, Tensor) else _iter_stacked_batches(opened, size, skipped):
        n_read += len(x)
        yield x
    skipped.raise_if_none_read(n_read)
    skipped.warn()


def to_batch(x: Any, inputs: Inputs) -> Any:
    """Examples in any form as one batch (N, ...) in memory; what holds none is returned as it is. Raises InputError."""
    if isinstance(inputs, Tokens):
        try:
            return drop_text_labels(frames_to_arrays(x, inputs))
        except DataError as error:
            raise InputError(str(error)) from error
    if isinstance(x, Tensor):
        return (
            integers_to_unit_range(x, inputs) if isinstance(inputs, Pixels) and x.dtype in WHITE_LEVEL_BY_DTYPE else x
        )
    if isinstance(inputs, MultiInput) and may_be_multi_input(x) and not is_packed_pair(inputs, x):
        return _parts_to_batches(x, inputs)
    if is_nested_list(x) if isinstance(inputs, Pixels) else isinstance(x, (str, os.PathLike)) and not is_table_file(x):
        return x
    if (
        not isinstance(x, (np.ndarray, Iterable))
        and not is_indexable(x)
        and not is_single_image_source(x)
        and not is_data_frame(x)
    ):
        return x
    if isinstance(x, nn.Module):
        return x
    if is_shuffling_loader(x):
        warn("this DataLoader gives its examples in another order at each pass: what is called with it again, or with "
             "maps or labels made before, sees other examples")  # fmt: skip
    try:
        skipped = SkippedExamples(renumbers=True)
        return torch.cat(list(input_batches(open_data(x, inputs), EXAMPLES_PER_READ, skipped)))
    except DataError as error:
        raise InputError(str(error)) from error


def _parts_to_batches(x: Any, inputs: MultiInput) -> Any:
    """Several inputs with each part as a batch; what has not the parts wanted as it is. Raises InputError."""
    parts = inputs.parts
    if isinstance(x, Mapping) and isinstance(parts, Mapping) and set(x) == set(parts):
        return {name: to_batch(x[name], part) for name, part in parts.items()}
    if isinstance(x, (tuple, list)) and not isinstance(parts, Mapping) and len(x) == len(parts):
        return tuple(to_batch(value, part) for value, part in zip(x, parts, strict=True))
    return x


def stack_inputs(items: list[Any]) -> Tensor:
    """The inputs of examples as one batch. Raises DataError."""
    try:
        return torch.stack([torch.as_tensor(drop_label(item)) for item in items])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"these examples are no inputs of one shape: {error}. {ACCEPTED_DATA_TEXT}") from error


def is_single_pass_data(data: Any) -> bool:
    """Whether a second pass over `data` would give nothing, or other examples."""
    data = data.data if isinstance(data, OpenedStream) else data
    return is_shuffling_loader(data) or isinstance(data, Iterator)


def make_repeatable(data: Any, inputs: Inputs) -> Any:
    """Data that may be passed over several times: a stream, or a shuffling loader, in memory; all other data as is."""
    if not is_single_pass_data(data):
        return data
    skipped = SkippedExamples()
    examples = list(iter_examples(open_data(data, inputs), skipped))
    skipped.warn()
    return examples


def _iter_slices(x: Tensor, size: int) -> Iterator[Tensor]:
    yield from (x[i : i + size] for i in range(0, len(x) if x.ndim else 0, size))


def _iter_stacked_batches(data: OpenedData, size: int, skipped: SkippedExamples) -> Iterator[Tensor]:
    examples = iter_examples(data, skipped)
    while chunk := list(islice(examples, size)):
        yield stack_inputs(chunk)


# -- whole data --------------------------------------------------------------------------------------------------------


def _open_multi_input(data: Any, inputs: MultiInput) -> OpenedData | None:
    """Data of a model with several inputs that are packed already, or that are a structure of tensors; else None."""
    if isinstance(data, Tensor) or is_packed_pair(inputs, data):
        return data  # type: ignore[no-any-return]
    if inputs.has_structure_of_parts(values := _parts_to_batches(data, inputs) if may_be_multi_input(data) else data):
        return pack_batch(inputs, values)
    if isinstance(data, (tuple, list)) and len(data) == 2 and may_be_multi_input(data[0]):
        values = _parts_to_batches(data[0], inputs)
        return (pack_batch(inputs, values), data[1]) if inputs.has_structure_of_parts(values) else None
    return None


def _open_array(array: NDArray[Any], inputs: Inputs | None) -> OpenedData:
    """A batch of inputs, (N, C, H, W), (N, H, W, C) or (N, H, W) for images. Raises DataError."""
    if array.dtype.kind in "OUS":
        return open_data(list(array), inputs)
    if not isinstance(inputs, Pixels):
        return torch.as_tensor(array)
    if array.ndim == 3 and inputs.shape[0] == 1 and array.shape[1:] == inputs.shape[1:]:
        array = array[:, None]
    return integers_to_unit_range(array_to_tensor(array, "the array", inputs.shape), inputs)


def _pair_with_labels(x: OpenedData, labels: Any) -> OpenedData:
    if isinstance(x, Tensor):
        return (x, labels) if labels is not None else x
    if isinstance(x, OpenedDataset):
        if labels is not None and len(labels) != len(x):
            raise DataError(f"there are {len(x)} inputs and {len(labels)} labels; wanted one label per input")
        return OpenedDataset(x.data, x.inputs, labels)
    raise DataError(f"{ACCEPTED_DATA_TEXT}; got labels beside a {type(x).__name__}")
