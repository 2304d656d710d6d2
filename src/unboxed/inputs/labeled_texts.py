"""Texts with labels, in the forms that people have them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .frames import frames_to_arrays, is_data_frame
from .items import iter_loader_batches
from .tokens import Tokens


def open_texts(data: Any, inputs: Tokens) -> Tensor | tuple[Tensor, Any]:
    """Texts as packed tensors (N, T, ...), with their labels where they have some. Raises DataError, InputError."""
    texts, labels = read_texts_and_labels(data)
    x = inputs.pack(inputs.check(texts))
    return x if labels is None else (x, labels)


def read_texts_and_labels(data: Any) -> tuple[Any, Any]:
    """Texts in any form and their labels; None where none has one. Raises DataError."""
    if isinstance(data, DataLoader):
        data = [example for batch in iter_loader_batches(data) for example in _examples_of_text_batch(batch)]
    data = data if is_data_frame(data) else frames_to_arrays(data, None)
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS":
        data = data.tolist()
    is_stream = isinstance(data, Iterable) and not isinstance(data, (str, Tensor, Mapping, Sequence, Dataset))
    texts, labels = split_texts_and_labels(list(data) if is_stream else data)
    texts = texts.tolist() if isinstance(texts, np.ndarray) else texts
    n = len(next(iter(texts.values()))) if isinstance(texts, Mapping) else len(texts)
    if labels is not None and len(labels) != n:
        raise DataError(f"there are {n} texts and {len(labels)} labels; wanted one label per text")
    return texts, labels


def _examples_of_text_batch(batch: Any) -> list[Any]:
    """(text, label) of a DataLoader's batch of texts and labels; texts, of one of texts alone."""
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and not isinstance(batch[0], str)
    return list(zip(*batch, strict=True)) if is_pair else list(batch)


def drop_text_labels(x: Any) -> Any:
    """Texts, of (texts, labels) or of a list of (text, label)."""
    return split_texts_and_labels(x)[0]


def split_texts_and_labels(x: Any) -> tuple[Any, Any]:
    """Texts and their labels, of (texts, labels) or of a list of (text, label); None where none has one."""
    if isinstance(x, tuple) and len(x) == 2 and not isinstance(x[0], str):
        return x
    if not isinstance(x, (Sequence, Dataset)) or isinstance(x, str):
        return x, None
    items = list(cast("Sequence[Any]", x))
    labels = [item[1] if _is_labeled_text(item) else None for item in items]
    texts = [item[0] if _is_labeled_text(item) else item for item in items]
    return texts, labels if any(label is not None for label in labels) else None


def _is_labeled_text(item: Any) -> bool:
    """Whether it is (text, label), no pair of texts."""
    return isinstance(item, tuple) and len(item) == 2 and not isinstance(item[1], str)
