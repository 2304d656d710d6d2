"""Any torch Dataset of (image, label): converting images and labels of all forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ..engine.read.class_labels import dataset_class_names
from ..errors import BrokenImageError, DataError, InputError
from ..inputs.class_files import resolve_class_names
from ..inputs.examples import iter_examples, open_data
from ..inputs.forms import split_item
from ..inputs.images import require_pixels
from ..inputs.items import SkippedExamples, item_or_data_error
from ..inputs.labels import class_numbers, classes_from_label_names, label_to_value
from ..inputs.pixel_arrays import ITEM_FORMS_TEXT, DecodeFn, image_to_tensor, is_single_image_source
from ..inputs.pixels import Pixels
from .sets import Batch, Images, LabeledImage, check_n_examples, stack_examples


def first(dataset: Any, n: int) -> Batch:
    """The first n examples of any torch Dataset of (image, label), also of an iterable one or a DataLoader.

    Args:
        dataset: A Dataset whose items are images, or (image, label), or rows of a Hugging Face data set with the
            columns image and label. An image is a tensor (C, H, W) or (H, W), uint8 or float in [0, 1], a NumPy array,
            a Pillow image or the path of one; a label is an int, an array of one, a class name, or absent.
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
    n = check_n_examples(n)
    if not isinstance(dataset, (IterableDataset, DataLoader, Iterator)):
        return wrap(dataset).first(n)
    items = list(islice(iter_examples(open_data(dataset), SkippedExamples()), n))
    return stack_examples(WrappedDataset(items, _ItemFormat(type(dataset).__name__), None), type(dataset).__name__)


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
    wrapped = WrappedDataset(
        _as_map_style_dataset(dataset), _ItemFormat(name or type(dataset).__name__, like, decode), classes
    )
    wrapped.first(1)  # raises for what no image can be
    return wrapped


class _ItemFormat:
    """The form of a data set's items."""

    def __init__(self, name: str, like: Pixels | None = None, decode: DecodeFn | None = None) -> None:
        self.name, self.decode = name, decode
        self.like = like if like is None else require_pixels(like)


class WrappedDataset(Images):
    """A user's Dataset, whose items are converted and checked on access.

    Labels that are names are numbered by `classes`, or else in the order of the names (numbers by value).
    """

    def __init__(self, dataset: Any, item_format: _ItemFormat, classes: Sequence[str] | None) -> None:
        self._dataset, self._item_format = dataset, item_format
        self.skipped: list[tuple[str, str]] = []  # examples whose image could not be read, and why
        known = dataset_class_names(dataset)
        self.name = item_format.name
        self.classes = (
            known.names_in_label_order() if classes is None else tuple(map(str, resolve_class_names(classes)))
        )
        self.labels_are_names = known.made_from_names and classes is None
        if not self.classes and (names := self._class_names_from_labels()):
            self.classes, self.labels_are_names = tuple(names), True
        elif known.names and classes is None:
            self.label_names = known.names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> LabeledImage:
        try:
            image, label = _read_example(item_or_data_error(self._dataset, index), index, self._item_format)
        except BrokenImageError as error:
            self._record_skipped_example(index, str(error))
            raise
        if isinstance(label, str):
            label = self._class_number_of_name(label, index)
        if self.classes and label is not None and label >= len(self.classes):
            names = f"the {len(self.classes)} classes have the labels 0 to {len(self.classes) - 1}"
            raise DataError(f"example {index} of {self.name!r} has the label {label}, but {names}")
        return image, -1 if label is None else label

    def _record_skipped_example(self, index: int, reason: str) -> None:
        if all(source != f"example {index}" for source, _ in self.skipped):
            self.skipped.append((f"example {index}", reason))

    def _class_number_of_name(self, name: str, index: int) -> int:
        try:
            return int(class_numbers(name, self.classes))
        except InputError as error:
            raise DataError(f"the label of example {index} of {self.name!r}: {error}") from error

    @cached_property
    def inputs(self) -> Pixels:  # type: ignore[override]
        """What an image is: that of `like`, or else the shape of the first."""
        return self._item_format.like or Pixels(_image_shape(self.first(1).x[0]))

    def _class_names_from_labels(self) -> list[str]:
        """The names of classes by number, where labels are names; they are looked for only if the first is one."""
        if not isinstance(next(self._iter_labels(), None), str):
            return []
        return classes_from_label_names([label for label in self._iter_labels() if isinstance(label, str)])

    def _iter_labels(self) -> Iterator[int | str | None]:
        for i in range(len(self)):
            try:
                _, label = split_item(item_or_data_error(self._dataset, i))
            except BrokenImageError:
                continue
            yield label_to_value(label, f"example {i} of {self.name!r}")


def _as_map_style_dataset(dataset: Any) -> Any:
    """A dataset with a length and an index."""
    if isinstance(dataset, tuple) and dataset and all(isinstance(part, Tensor) for part in dataset):
        if len({len(part) for part in dataset}) > 1:
            raise DataError(f"tensors of one data set must be equally long; got {[len(part) for part in dataset]}")
        dataset = TensorDataset(*dataset)
    elif isinstance(dataset, tuple) and len(dataset) == 2 and all(isinstance(p, (Tensor, np.ndarray)) for p in dataset):
        dataset = list(zip(*dataset, strict=True))
    is_indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not is_indexed or isinstance(dataset, (IterableDataset, Mapping, str)):
        raise DataError(
            f"wanted a torch Dataset with a length; got {type(dataset).__name__}{_unsupported_dataset_hint(dataset)}"
        )
    if len(dataset) == 0:
        raise DataError(f"the data set {type(dataset).__name__} is empty")
    return dataset


def _unsupported_dataset_hint(dataset: Any) -> str:
    if isinstance(dataset, DataLoader):
        return "; pass its .dataset, or take some of it with data.first(loader, n)"
    return "; take some of it with data.first(dataset, n)" if isinstance(dataset, IterableDataset) else ""


def _image_shape(image: Tensor) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _read_example(item_value: Any, index: int, item_format: _ItemFormat) -> tuple[Tensor, int | str | None]:
    where = f"example {index} of {item_format.name!r}"
    image, label = split_item(item_value)
    if image is item_value and not isinstance(image, (Tensor, np.ndarray)) and not is_single_image_source(image):
        raise DataError(f"{where} is a {type(image).__name__}; {ITEM_FORMS_TEXT}")
    return image_to_tensor(image, where, item_format.like, item_format.decode), label_to_value(label, where)
