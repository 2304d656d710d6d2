"""The base class of the data sets: images in [0, 1] with a class number each, or -1 without a label."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import BrokenImageError, DataError, InputError
from ..inputs.labels import is_missing_label
from ..inputs.pixels import Pixels

LabeledImage = tuple[Tensor, int]  # image (C, H, W) and class, -1 without a label


class _BatchFields(NamedTuple):
    x: Tensor  # (N, C, H, W), float32 in [0, 1]
    y: Tensor | None  # (N,), int64


class Batch(_BatchFields):
    """Images and their classes; `y` is None where there are no labels. Has the names of the labels."""

    classes: tuple[str, ...] = ()
    label_names: Mapping[int, str] | None = None
    labels_are_names = False
    name, label_name, label_assumption = "", "", ""

    def copy_label_names_from(self, dataset: Images) -> Batch:
        """Write the label names of a data set into this batch, and return it."""
        self.classes, self.labels_are_names, self.name = dataset.classes, dataset.labels_are_names, dataset.name
        self.label_names, self.label_name = dataset.label_names, dataset.label_name
        self.label_assumption = dataset.label_assumption
        return self


class Images(Dataset[LabeledImage], ABC):
    """The interface of all data sets; subclasses define their length and how an example is read.

    `classes` are the names of the labels (empty if unknown), `labels_are_names` whether the labels were made from them,
    as for class folders; `inputs` are the inputs of a box for them.
    """

    name: str
    classes: tuple[str, ...]
    inputs: Pixels
    labels_are_names = False
    labels_are_values = False  # numbers of a regression, no classes
    label_name = ""  # of the column that holds these numbers
    label_names: Mapping[int, str] | None = None  # where not every label has a name; None: `classes`
    label_assumption = ""  # what was guessed when labels were matched to the classes of a model

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> LabeledImage: ...

    def __iter__(self) -> Iterator[LabeledImage]:
        """Every example that can be read."""
        for i in range(len(self)):
            try:
                example = self[i]
            except BrokenImageError:
                continue
            yield example

    def first(self, n: int) -> Batch:
        """The first n examples, or all where there are fewer. Raises InputError for n < 1, DataError for no example."""
        return stack_examples(islice(self, check_n_examples(n)), self.name).copy_label_names_from(self)

    def tensors(self) -> Batch:
        """All examples, in memory."""
        return self.first(len(self))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.inputs.shape))
        return f"{type(self).__name__}({self.name!r}, {len(self)} images {shape}, {self._labels_text()})"

    def _labels_text(self) -> str:
        return "labels are numbers" if self.labels_are_values else f"{len(self.classes)} classes"


class InMemory(Images):
    """Images stored as bytes, so that 60,000 of 28x28 take 47 MB; they become float32 on access."""

    def __init__(self, name: str, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], inputs: Pixels) -> None:
        self.name, self.classes, self.inputs = name, classes, inputs
        self._pixels, self._labels = pixels, labels.long()  # (N, C, H, W) uint8, (N,)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> LabeledImage:
        return self._pixels[index].float() / 255, int(self._labels[index])

    def first(self, n: int) -> Batch:
        n = check_n_examples(n)
        return Batch(self._pixels[:n].float() / 255, self._labels[:n].clone()).copy_label_names_from(self)


Split = Literal["all", "train", "test"]


def check_split(name: str, split: object) -> Split:
    """The split, if it is one. Raises InputError."""
    if split not in get_args(Split):
        root = "; name a folder as root=" if isinstance(split, (str, os.PathLike)) and os.path.isdir(split) else ""
        raise InputError(f"{name} come as 'all', 'train' or 'test'; got {str(split)!r}{root}")
    return cast(Split, split)


def check_n_examples(n: int) -> int:
    """n, if it is a number of examples. Raises InputError."""
    try:
        number = operator.index(n)
    except TypeError:
        raise InputError(f"n must be a whole number of examples; got {type(n).__name__}") from None
    if number < 1:
        raise InputError(f"n must be at least 1, the number of examples wanted; got {number}")
    return number


def stack_examples(examples: Iterable[LabeledImage], name: str) -> Batch:
    """One batch of examples of one shape; if all labels are -1 they become None."""
    images: list[Tensor] = []
    labels: list[int] = []
    for image, label in examples:
        if images and image.shape != images[0].shape:
            raise DataError(_mixed_image_shapes_text(name, images[0], image, len(images)))
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"the data set {name!r} holds no image that can be read")
    return Batch(torch.stack(images), _stack_labels(labels, name))


def _stack_labels(labels: Sequence[int | float | Tensor], name: str) -> Tensor | None:
    n_missing = sum(is_missing_label(label, is_value=not isinstance(label, int)) for label in labels)
    if n_missing == len(labels):
        return None
    if n_missing:
        raise DataError(
            f"{n_missing} of {len(labels)} examples of {name!r} have no label; give all of them one, or none"
        )
    return torch.stack([torch.as_tensor(label) for label in labels])


def _mixed_image_shapes_text(name: str, first: Tensor, image: Tensor, index: int) -> str:
    message = f"{name!r} mixes image shapes: {tuple(first.shape)} and, at number {index}, {tuple(image.shape)}"
    return f"{message}. Resize them in the data set, or for Pillow images pass data.wrap(dataset, like=box.inputs)"
