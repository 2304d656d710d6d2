"""The forms that examples come in: one item of data, a pair (x, y), a collection."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..validation import listed_names
from .base import Inputs
from .items import ACCEPTED_DATA_TEXT, is_indexable
from .multi import MultiInput
from .packing import pack_example
from .pixel_arrays import (
    WHITE_LEVEL_BY_DTYPE,
    image_to_tensor,
    is_encoded_image,
    is_single_image_source,
    move_channels_first,
)
from .pixels import Pixels

HF_IMAGE_COLUMN_NAMES, HF_LABEL_COLUMN_NAMES = (
    ("image", "img", "images"),
    ("label", "labels", "fine_label"),
)  # of Hugging Face data

# -- one example -------------------------------------------------------------------------------------------------------


def to_example(item: Any, inputs: Inputs | None, where: str) -> Any:
    """An item of data as an input, or (input, label). Raises DataError, BrokenImageError for an unreadable file."""
    if isinstance(inputs, MultiInput):
        return pack_example(inputs, item)
    is_row = isinstance(item, (tuple, list)) and bool(item) and isinstance(item[0], Real)  # of a table
    value, label = (torch.tensor(item), None) if is_row and not isinstance(inputs, Pixels) else split_item(item)
    x = _value_to_input(value, inputs, where)
    return x if label is None else (x, label)


def split_item(item: Any) -> tuple[Any, Any]:
    """The input and the label of an item: (input, label), (input,), or a row with columns such as image and label."""
    if isinstance(item, Mapping) and not is_encoded_image(item):
        item = image_and_label_of_row(item)
    if isinstance(item, (tuple, list)) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _value_to_input(value: Any, inputs: Inputs | None, where: str) -> Any:
    if not isinstance(inputs, Pixels):
        return value
    if inputs.n_axes != 2:  # signals, volumes
        return torch.as_tensor(value) if isinstance(value, np.ndarray) else value
    if not isinstance(value, Tensor) or value.dtype in WHITE_LEVEL_BY_DTYPE:
        return image_to_tensor(value, where, inputs)
    value = move_channels_first(value, inputs.shape)
    if value.ndim == 4:
        raise DataError(f"{where} is a batch {tuple(value.shape)}, not one image: torch.cat(x) joins a list of batches")
    return value[None] if value.ndim == 2 and inputs.shape[0] == 1 else value


def normalize_loader_batch(batch: Any, inputs: Inputs | None) -> Any:
    """A batch of a DataLoader with images (N, C, H, W), where it stacked arrays (H, W, C) or (H, W) to a tensor."""
    if not isinstance(inputs, Pixels) or inputs.n_axes != 2:
        return batch
    if isinstance(batch, Tensor):
        is_gray = inputs.shape[0] == 1 and batch.ndim == 3 and batch.shape[1:] == inputs.shape[1:]
        return batch[:, None] if is_gray else move_channels_first(batch, inputs.shape) if batch.ndim == 4 else batch
    if isinstance(batch, Mapping):
        return {
            name: normalize_loader_batch(v, inputs) if name in HF_IMAGE_COLUMN_NAMES else v for name, v in batch.items()
        }
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        return batch
    are_images = any(isinstance(v, Tensor) and v.ndim == batch[0].ndim for v in batch[1:])  # a list of single ones
    return batch if are_images else [normalize_loader_batch(batch[0], inputs), *batch[1:]]


def image_and_label_of_row(row: Mapping[Any, Any]) -> tuple[Any, Any]:
    """The image and the label of a row, or of the columns, of a Hugging Face data set. Raises DataError."""
    image = next((row[name] for name in HF_IMAGE_COLUMN_NAMES if name in row), None)
    if image is None:
        names = listed_names(row)
        are_splits = bool(row) and all(hasattr(value, "column_names") for value in row.values())
        advice = f"; these are the splits of a data set: pass one, data[{next(iter(row))!r}]" if are_splits else ""
        raise DataError(f"got a dict of {names}; the columns image and label are taken{advice}; {ACCEPTED_DATA_TEXT}")
    return image, next((row[name] for name in HF_LABEL_COLUMN_NAMES if name in row), None)


# -- whole data --------------------------------------------------------------------------------------------------------


def split_inputs_and_labels(data: Any, inputs: Inputs | None, has_label_maps: bool = False) -> tuple[Any, Any] | None:
    """The inputs and the labels of a pair (x, y), or None: then data are a collection of examples.

    `has_label_maps`: labels may have as many axes as inputs, in a tuple (x, y).
    """
    if not isinstance(data, (tuple, list)) or len(data) < 2:
        return None
    x, y = data[:2]
    are_maps = has_label_maps and isinstance(data, tuple) and len(data) == 2 and isinstance(y, (Tensor, np.ndarray))
    if has_batch_ndim(x, inputs):
        return (x, y) if are_maps or _may_be_labels(y, x, inputs) else None
    if not isinstance(data, tuple) or len(data) != 2:
        return None
    if is_single_image_source(x) and isinstance(y, Integral):
        return [x], [y]
    are_two_items = isinstance(x, tuple) and isinstance(y, tuple)
    are_examples = is_indexable(x) and not isinstance(x, (Tensor, np.ndarray)) and not are_two_items
    return (x, y) if are_examples and (are_maps or _are_labels(y)) else None


def _may_be_labels(y: Any, x: Tensor | NDArray[Any], inputs: Inputs | None) -> bool:
    """Whether y may be the labels of a batch x, and not another batch or example."""
    if isinstance(y, (Tensor, np.ndarray)):
        return y.ndim < x.ndim if inputs is None or isinstance(inputs, Pixels) else y.ndim <= x.ndim
    return y is None or isinstance(y, (list, tuple, range))


def has_batch_ndim(x: Any, inputs: Inputs | None) -> bool:
    """Whether x is a tensor or an array with as many axes as a batch of inputs."""
    if not isinstance(x, (Tensor, np.ndarray)):
        return False
    if not isinstance(inputs, Pixels):
        return x.ndim > 1
    if inputs.n_axes != 2 and tuple(x.shape[1:]) in (inputs.own_shape, inputs.model_shape):  # signals, volumes
        return True
    return x.ndim == 4 or (isinstance(x, np.ndarray) and x.ndim == 3 and x.shape[1:] == inputs.shape[1:])


def _are_labels(y: Any) -> bool:
    """Whether these are labels: None, class numbers or names."""
    if y is None or isinstance(y, (Tensor, np.ndarray)):
        return y is None or y.ndim in (1, 2)
    if not isinstance(y, (list, tuple, range)):
        return False
    return all(isinstance(v, str) for v in y) or all(isinstance(v, Integral) or _is_scalar_tensor(v) for v in y)


def _is_scalar_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0


def is_nested_list(x: Any) -> bool:
    """Whether x is a list of lists of numbers, such as `tensor.tolist()`."""
    return isinstance(x, Real) or (isinstance(x, list) and bool(x) and is_nested_list(x[0]))


def may_be_multi_input(x: Any) -> bool:
    """Whether x is a dict, or a tuple of tensors: several inputs, if perhaps not those wanted."""
    is_tuple = isinstance(x, (tuple, list)) and all(isinstance(v, (Tensor, np.ndarray)) for v in x)
    return isinstance(x, Mapping) or is_tuple
