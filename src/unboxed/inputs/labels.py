"""Labels as classes of a model: by their number, or by the names of the classes."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..atomic_write import to_printable
from ..errors import DataError, InputError, warn
from ..validation import suggestion_text
from .frames import series_to_array
from .label_messages import (
    MAX_NAMES_IN_MESSAGE,
    SUBFOLDERS,
    WORDNET_SYNSET_PATTERN,
    assumed_name_order_text,
    numeric_names_text,
    text_sorted_folders_text,
    unmatched_labels_message,
)

Label = TypeVar("Label", bound=Hashable)
ClassLabels = int | str | Sequence[int | str] | Tensor | NDArray[Any]  # of examples: numbers, or names of classes

WHOLE_NUMBER_PATTERN = re.compile(r"(-?\d+)(?:\.0*)?")  # also as spreadsheets and pandas write them
MAX_CLASS_NUMBER = 99_999  # names with larger numbers, such as dates, are no class numbers
SEVERAL_LABELS_HINT = (
    "; of a yes or no per label open the model with outputs='multilabel', of one-hot labels give label.argmax()"
)


def whole_number(label: Any) -> Any:
    """One label as it is, but a number without a fraction, such as 1.0 beside NaN in a column, as an int."""
    if isinstance(label, (Tensor, np.ndarray, np.generic)) and math.prod(label.shape) == 1:
        label = label.item()
    return int(label) if isinstance(label, float) and label.is_integer() else label


def whole_numbers(labels: Any) -> Any:
    """As `whole_number`, of an array or a tensor: integers where none has a fraction."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "f" and (labels == labels.round()).all():
        return labels.astype(np.int64)
    is_float = isinstance(labels, Tensor) and labels.is_floating_point()
    return labels.long() if is_float and bool((labels == labels.round()).all()) else labels


def label_to_text(label: Any, *, is_value: bool = False) -> str:
    """A label as text, 1.0 as 1; empty where there is none, as `is_missing_label` says."""
    text = "" if is_missing_label(label, is_value=is_value) else str(whole_number(label)).strip()
    number = WHOLE_NUMBER_PATTERN.fullmatch(text)
    text = number[1] if number else text
    return "" if text.lower() == "nan" or (text == "-1" and not is_value) else text


def label_to_value(label: Any, where: str = "an example") -> int | str | None:
    """The label of one example: a class number or a class name; None where there is none. Raises DataError."""
    if isinstance(label, (list, tuple)) and len(label) == 1:
        return label_to_value(label[0], where)
    label = whole_number(label)
    if is_missing_label(label):
        return None
    if isinstance(label, str):
        return label.strip()
    try:
        number = operator.index(label)
    except TypeError:
        shape = f" of shape {tuple(label.shape)}" if isinstance(label, (Tensor, np.ndarray)) else ""
        got = f"is a {type(label).__name__}{shape}"
        hint = SEVERAL_LABELS_HINT if isinstance(label, (Tensor, np.ndarray, list, tuple)) else ""
        raise DataError(f"the label of {where} {got}; wanted a class number, a class name, or none{hint}") from None
    if number < 0:
        raise DataError(f"the label of {where} is {number}; wanted a class number from 0, or -1 for none")
    return number


def is_missing_label(label: Any, *, is_value: bool = False) -> bool:
    """Whether an example has no label: None, "" or NaN, and -1 where labels are classes."""
    if label is None or isinstance(label, str):
        return not (label or "").strip()
    try:
        numbers = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(numbers.isnan().any()) or (not is_value and numbers.numel() == 1 and numbers.item() == -1)


def missing_labels_text(n_missing: int, n_examples: int) -> str:
    """That examples without a label are left out."""
    verbs = "has no label (-1, NaN or none) and is" if n_missing == 1 else "have no label (-1, NaN or none) and are"
    return f"{n_missing} of {n_examples} examples {verbs} left out"


def class_numbers(y: Any, classes: Sequence[str]) -> Any:
    """Labels of which names are replaced by the numbers of these classes, and columns (N, 1) by rows (N,).

    Raises InputError for unknown names.
    """
    if isinstance(y, Tensor) and y.ndim < 2 and not y.is_floating_point():  # as most are
        return y
    if isinstance(y, str):
        return _class_number_of(y, classes)
    y = whole_numbers(series_to_array(y))
    if isinstance(y, np.ndarray) and y.dtype.kind in "OU":
        y = y.reshape(-1).tolist() if y.ndim == 2 and y.shape[1] == 1 else y.tolist()
    if isinstance(y, (list, tuple)):
        y = [label if isinstance(label, str) else whole_number(label) for label in y]
    if isinstance(y, (list, tuple)) and any(isinstance(label, str) for label in y):
        return [_class_number_of(label, classes) if isinstance(label, str) else label for label in y]
    if isinstance(y, (Tensor, np.ndarray)) and y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    return y


def _class_number_of(name: str, classes: Sequence[str]) -> int:
    """The class of this name, or else of this number. Raises InputError."""
    try:
        matched = _match_by_name({0: name.strip()}, classes)
    except DataError as error:
        raise InputError(str(error)) from error
    if matched:
        return matched[0]
    if (text := label_to_text(name)).isdecimal():
        return int(text)
    raise InputError(f"the model has no class {name!r}; {suggestion_text(name, classes)}")


@lru_cache(maxsize=64)
def warn_of_repeated_class_names(classes: tuple[str, ...]) -> None:
    """Warn of names that several classes have; once, as boxes of the same classes are opened inside of methods."""
    if repeated := [name for name, n in Counter(classes).items() if n > 1]:
        numbers = [
            f"{name!r} is the name of {_class_numbers_text_for_name(classes, name)}"
            for name in repeated[:MAX_NAMES_IN_MESSAGE]
        ]
        rest = f", and {len(repeated) - MAX_NAMES_IN_MESSAGE} more" if len(repeated) > MAX_NAMES_IN_MESSAGE else ""
        warn(f"several classes have one name: {'; '.join(numbers)}{rest}. Labels by these names are refused, and "
             "figures show them alike: give each its own")  # fmt: skip


def _class_numbers_text_for_name(classes: Sequence[str], name: str) -> str:
    return ", ".join(str(k) for k, other in enumerate(classes) if other == name)


def classes_named_by_labels(classes: Sequence[str], number_of: Mapping[str, int]) -> tuple[str, ...]:
    """The classes, by the names of their labels {name: number} where they were not named and all have one."""
    name_of = {number: name for name, number in number_of.items()}
    is_named = are_default_class_names(classes) and len(name_of) == len(classes)
    return tuple(name_of[k] for k in range(len(classes))) if is_named else tuple(classes)


def are_default_class_names(classes: Sequence[str]) -> bool:
    """Whether the classes are 0, 1, 2, ...: they were not named."""
    return tuple(classes) == tuple(map(str, range(len(classes))))


def unique_class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes as unique keys: a name of several classes is followed by the number of each."""
    repeated = {name for name, n in Counter(classes).items() if n > 1}
    return tuple(f"{name} ({k})" if name in repeated else name for k, name in enumerate(classes))


@lru_cache(maxsize=64)
def readable_class_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Unique names as a person reads them: of "n02099601 golden_retriever, retriever" the first name alone.

    >>> readable_class_names(("n02099601 golden_retriever", "n02012849 crane", "n03126707 crane"))
    ('golden retriever', 'crane (1)', 'crane (2)')
    """
    lines = [WORDNET_SYNSET_PATTERN.fullmatch(name) for name in classes]
    if not any(line and line[2] for line in lines):
        return classes
    names = [
        line[2].split(",")[0].replace("_", " ").strip() if line and line[2] else name
        for line, name in zip(lines, classes, strict=True)
    ]
    return unique_class_names(names)


class ClassByLabel(dict[Label, int]):
    """{label: class of the model}, and what of it is a guess, "" where nothing is."""

    assumption = ""


def match_label_names_to_classes(
    names: Sequence[str], classes: Sequence[str], names_source: str = "labels"
) -> ClassByLabel[str]:
    """{name: class of the model} of labels that are names, as of class folders. Raises DataError."""
    distinct = sort_names_naturally(dict.fromkeys(names))
    return match_labels_to_classes({n: n for n in distinct}, classes, made_from_names=True, names_source=names_source)


def sort_names_naturally(names: Any) -> list[str]:
    """Names in their order: numbers by value, 2 before 10."""
    return sorted(names, key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n))


def classes_from_label_names(names: Sequence[str]) -> list[str]:
    """The classes that labels which are names stand for, by number: the names in their order, or 0 to the largest."""
    distinct = sort_names_naturally(dict.fromkeys(names))
    if all(name.isdecimal() and int(name) <= MAX_CLASS_NUMBER for name in distinct):
        return list(map(str, range(int(distinct[-1]) + 1))) if distinct else []
    return distinct


def match_labels_to_classes(
    names: Mapping[Label, str] | Sequence[str], classes: Sequence[str], *, made_from_names: bool, names_source: str
) -> ClassByLabel[Label]:
    """{label: class of the model}, from the names of the labels and the classes of the model.

    They are matched by name; case, spaces, `-`, `_` and leading zeros of a number don't matter, and a WordNet id or one
    of its names stands for a whole line `n02108089 boxer`. Names that are numbers, and no class is called so, are
    numbers of outputs. Without a match, labels keep their numbers where nothing contradicts that: of class folders
    (`made_from_names`) only if there are as many as classes and the classes were not named. What is a guess is warned
    of, and kept as `assumption`. `names_source` names the source in errors. Raises DataError.
    """
    name_of: dict[Any, str] = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    texts, numbers = list(name_of.values()), ClassByLabel((label, k) for k, label in enumerate(name_of))
    if texts == list(classes):
        return _warned(numbers, _text_sorted_folders_note(texts, classes, names_source))
    matched = _match_by_name(name_of, classes)
    if len(matched) == len(name_of):
        return _warned(matched, _text_sorted_folders_note(texts, classes, names_source))
    same_count, classes_are_numbers = len(texts) == len(classes), are_default_class_names(classes)
    if made_from_names and not matched and not classes_are_numbers and _are_output_numbers(texts, len(classes)):
        outputs = ClassByLabel((label, int(name)) for label, name in name_of.items())
        return _warned(outputs, numeric_names_text(texts, classes, names_source))
    if made_from_names and classes_are_numbers and same_count and not matched:
        return _warned(numbers, assumed_name_order_text(texts, names_source))
    agrees = same_count and all(label == k for label, k in matched.items())
    if made_from_names or not (classes_are_numbers or agrees):
        raise DataError(unmatched_labels_message(name_of, classes, matched, names_source))
    return ClassByLabel((label, label) for label in name_of)


def _warned(class_by_label: ClassByLabel[Label], assumption: str) -> ClassByLabel[Label]:
    class_by_label.assumption = assumption
    if assumption:
        warn(assumption)
    return class_by_label


def _are_output_numbers(names: Sequence[str], n_classes: int) -> bool:
    return all(name.isdecimal() and int(name) < n_classes for name in names)


def _match_by_name(name_of: Mapping[Any, str], classes: Sequence[str]) -> ClassByLabel[Any]:
    """The labels whose name a class has. Raises DataError for a name of several classes."""
    by_name, by_part = defaultdict(list), defaultdict(list)
    for k, name in enumerate(classes):
        by_name[_normalize_name(name)].append(k)
        for part in _synset_id_and_names(name):
            by_part[part].append(k)
    found = {label: _candidate_classes(name, by_name, by_part) for label, name in name_of.items()}
    return ClassByLabel(
        (label, _single_candidate_class(name_of[label], ks, classes)) for label, ks in found.items() if ks
    )


def _candidate_classes(name: str, by_name: Mapping[str, list[int]], by_part: Mapping[str, list[int]]) -> list[int]:
    """The classes that a name may mean: of this name; else of this part of a synset; else of one of its own parts."""
    normalized = _normalize_name(name)
    for lookup, keys in (
        (by_name, [normalized]),
        (by_part, [normalized, *_synset_id_and_names(name)]),
        (by_name, _synset_id_and_names(name)),
    ):
        for key in keys:
            if lookup.get(key):
                return lookup[key]
    return []


def _single_candidate_class(name: str, candidates: list[int], classes: Sequence[str]) -> int:
    exact = [k for k in candidates if classes[k] == name]
    if len(exact or candidates) > 1:
        raise DataError(f"the name {name!r} fits {len(exact or candidates)} classes: the numbers {exact or candidates}")
    return (exact or candidates)[0]


def _synset_id_and_names(name: str) -> list[str]:
    """The id and the names of a synset, `n02108089 boxer`; none of any other name."""
    match = WORDNET_SYNSET_PATTERN.fullmatch(name.strip())
    if match is None:
        return []
    names = match[2] or ""
    return list(dict.fromkeys(_normalize_name(n) for n in (match[1], names, *names.split(",")) if n.strip()))


def _normalize_name(name: str) -> str:
    name = label_to_text(name, is_value=True)
    normalized = " ".join(to_printable(name).casefold().replace("_", " ").replace("-", " ").split())
    return str(int(normalized)) if normalized.isdecimal() else normalized


# -- what is said ------------------------------------------------------------------------------------------------------


def _text_sorted_folders_note(names: Sequence[str], classes: Sequence[str], names_source: str) -> str:
    """That a model trained on folders sorted as text (10 before 2) has another order of classes; "" of others."""
    if not (names_source.startswith(SUBFOLDERS) and are_default_class_names(classes)):
        return ""
    by_number = sorted(names, key=lambda name: int(_normalize_name(name)))
    return "" if sorted(names) == by_number else text_sorted_folders_text(by_number[-1])
