"""Any torch Dataset of (image, label): converting images and labels of all forms."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ..engine.read.class_labels import dataset_class_names
from ..engine.read.items import item_or_data_error
from ..errors import DataError
from ..inputs.base import RANGE_TOLERANCE
from ..inputs.images import require_pixels, silence_decoder_warnings, to_tensor
from ..inputs.pixels import Pixels
from .sets import Batch, Example, Images, check_count, stack_examples

DecodeFn = Callable[[Tensor], Tensor]

WHITE_VALUE_BY_DTYPE = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.bool: 1.0}  # the white of integer images
ITEM_FORMAT_TEXT = (
    "wanted (image, label), with an image that is a tensor (C, H, W) or (H, W), a NumPy array or a Pillow image"
)


def first(dataset: Any, n: int) -> Batch:
    """The first n examples of any torch Dataset of (image, label), also of an iterable one.

    Args:
        dataset: A Dataset whose items are images, or (image, label). An image is a tensor (C, H, W) or (H, W), uint8 or
            float in [0, 1], a NumPy array or a Pillow image; a label is an int, a tensor of one, or absent.
        n: Number of examples; all are taken where there are fewer.

    Returns:
        (x, y): images (N, C, H, W) in [0, 1], and labels (N,) or None.

    Raises:
        DataError: for items of another form, images out of range, and an empty data set.

    Example:
        >>> import torch, unboxed as ub
        >>> x, y = ub.data.first([(torch.rand(3, 8, 8), 1)] * 5, 2)
        >>> x.shape, y.tolist()
        (torch.Size([2, 3, 8, 8]), [1, 1])
    """
    n = check_count(n)
    if not isinstance(dataset, IterableDataset):
        return wrap(dataset).first(n)
    name = type(dataset).__name__
    return stack_examples(
        (_read_example(item_value, index, _ItemFormat(name)) for index, item_value in enumerate(islice(dataset, n))),
        name,
    )


def wrap(
    dataset: Any,
    *,
    like: Pixels | None = None,
    classes: Sequence[str] | None = None,
    decode: DecodeFn | None = None,
    name: str | None = None,
) -> Images:
    """Any torch Dataset of (image, label), or a pair of tensors (x, y), as one of the data sets here.

    Args:
        dataset: The Dataset (with a length), a list, or tensors (x, y).
        like: What Pillow images are resized and cropped to, and what all others must be already. None keeps sizes.
        classes: Class names. None takes those of the data set, if it has any.
        decode: What brings an image back to [0, 1] where the data set normalizes: `decode=box.inputs.decode`.
        name: What errors and reports call it. None takes the type's name.

    Returns:
        Images with `.first(n)`, `.tensors()`, `.classes`, `.name` and `.inputs`.

    Raises:
        DataError: for what is no Dataset, and for images that are neither in [0, 1] nor 8-bit.

    Example:
        >>> import torch, unboxed as ub
        >>> data = ub.data.wrap((torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0])), classes=["cat", "dog"])
        >>> len(data), data.classes
        (5, ('cat', 'dog'))
    """
    if isinstance(dataset, Images) and all(option is None for option in (like, classes, decode, name)):
        return dataset
    return WrappedDataset(_as_indexed(dataset), _ItemFormat(name or type(dataset).__name__, like, decode), classes)


class _ItemFormat:
    """The form of a data set's items."""

    def __init__(self, name: str, like: Pixels | None = None, decode: DecodeFn | None = None) -> None:
        self.name, self.decode = name, decode
        self.like = like if like is None else require_pixels(like)


class WrappedDataset(Images):
    """A user's Dataset, whose items are converted and checked on access."""

    def __init__(self, dataset: Any, item_format: _ItemFormat, classes: Sequence[str] | None) -> None:
        self._dataset, self._item_format = dataset, item_format
        names, made_from_names = dataset_class_names(dataset)
        self.name, self.classes = item_format.name, names if classes is None else tuple(map(str, classes))
        self.labels_are_names = made_from_names and classes is None
        inferred_inputs = Pixels(_image_shape(self.first(1).x[0]))
        self.inputs = item_format.like or inferred_inputs

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        image, label = _read_example(item_or_data_error(self._dataset, index), index, self._item_format)
        if self.classes and label >= len(self.classes):
            names = f"the {len(self.classes)} classes have the labels 0 to {len(self.classes) - 1}"
            raise DataError(f"example {index} of {self.name!r} has the label {label}, but {names}")
        return image, label


def _as_indexed(dataset: Any) -> Any:
    """A dataset with a length and an index."""
    if isinstance(dataset, tuple) and dataset and all(isinstance(part, Tensor) for part in dataset):
        if len({len(part) for part in dataset}) > 1:
            raise DataError(f"tensors of one data set must be equally long; got {[len(part) for part in dataset]}")
        dataset = TensorDataset(*dataset)
    is_indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not is_indexed or isinstance(dataset, (IterableDataset, Mapping, str)):
        raise DataError(
            f"wanted a torch Dataset with a length; got {type(dataset).__name__}{_alternative_text(dataset)}"
        )
    if len(dataset) == 0:
        raise DataError(f"the data set {type(dataset).__name__} is empty")
    return dataset


def _alternative_text(dataset: Any) -> str:
    if isinstance(dataset, DataLoader):
        return "; pass its .dataset"
    return "; take some of it with data.first(dataset, n)" if isinstance(dataset, IterableDataset) else ""


def _image_shape(image: Tensor) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _read_example(item_value: Any, index: int, item_format: _ItemFormat) -> Example:
    where = f"example {index} of {item_format.name!r}"
    image, label = _split_item(item_value, where)
    return _to_image(image, where, item_format), _to_label(label, where)


def _split_item(item_value: Any, where: str) -> tuple[Any, Any]:
    if isinstance(item_value, (Tensor, np.ndarray, Image.Image)):
        return item_value, None
    if isinstance(item_value, (tuple, list)) and item_value:
        return item_value[0], item_value[1] if len(item_value) > 1 else None
    raise DataError(f"{where} is a {type(item_value).__name__}; {ITEM_FORMAT_TEXT}")


def _to_image(image: Any, where: str, item_format: _ItemFormat) -> Tensor:
    if isinstance(image, Image.Image):
        with silence_decoder_warnings():
            return to_tensor(image, item_format.like)
    if isinstance(image, np.ndarray):
        image = _from_numpy(image, where)
    if not isinstance(image, Tensor):
        raise DataError(f"the image in {where} is a {type(image).__name__}; {ITEM_FORMAT_TEXT}")
    x = _to_unit_range(image.detach(), where, item_format.decode)
    x = x[None] if x.ndim == 2 else x
    _check_shape(x, where, item_format.like)
    return x


def _from_numpy(array: NDArray[Any], where: str) -> Tensor:
    """NumPy images are (H, W), (H, W, C) or (C, H, W)."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"the image in {where} is an array of {array.dtype}; {ITEM_FORMAT_TEXT}")
    if array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.shape[0] not in (1, 3, 4):
        array = array.transpose(2, 0, 1)
    native = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return torch.from_numpy(array.astype(native, order="C"))


def _to_unit_range(image: Tensor, where: str, decode: DecodeFn | None) -> Tensor:
    """As float32 in [0, 1]; ambiguous values are refused."""
    if image.dtype in WHITE_VALUE_BY_DTYPE:
        return image.float() / WHITE_VALUE_BY_DTYPE[image.dtype]
    if not image.is_floating_point():
        raise DataError(f"the image in {where} is {image.dtype}, which leaves its white unknown; pass uint8 or float")
    x = image.float() if decode is None else decode(image.float())
    _check_range(x, where, decode)
    return x.clamp(0, 1)


def _check_range(x: Tensor, where: str, decode: DecodeFn | None) -> None:
    if x.numel() == 0:
        raise DataError(f"the image in {where} is empty: its shape is {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise DataError(f"the image in {where} holds NaN or infinite values")
    lower, upper = x.min().item(), x.max().item()
    if lower >= -RANGE_TOLERANCE and upper <= 1 + RANGE_TOLERANCE:
        return
    message = f"images must lie in [0, 1]; the one in {where} runs from {lower:.3g} to {upper:.3g}"
    if decode is not None:
        raise DataError(f"{message} after decode: is it the inverse of how the data set normalizes?")
    if lower >= 0:
        raise DataError(f"{message}: it looks like 8-bit values, divide them by 255 or keep them as uint8")
    raise DataError(
        f"{message}: it looks normalized. Leave the normalization out, or wrap(..., decode=box.inputs.decode)"
    )


def _check_shape(x: Tensor, where: str, like: Pixels | None) -> None:
    if x.ndim != 3:
        raise DataError(f"the image in {where} has the shape {tuple(x.shape)}; {ITEM_FORMAT_TEXT}")
    if like is not None and tuple(x.shape) != like.shape:
        raise DataError(f"the image in {where} has the shape {tuple(x.shape)}; like wants {like.shape}")


def _to_label(label: Any, where: str) -> int:
    if label is None:
        return -1
    try:
        number = operator.index(label)
    except TypeError:
        raise DataError(f"the label of {where} is a {type(label).__name__}; wanted a class number, or none") from None
    if number < -1:
        raise DataError(f"the label of {where} is {number}; wanted a class number from 0, or -1 for none")
    return number
