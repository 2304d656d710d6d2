"""Matching the labels of data to the classes of a model, by the names of the classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...atomic_write import to_printable
from ...box import Box
from ...errors import DataError, InputError, warn
from ...objectives import as_classes
from ...validation import nearest_names

MAX_NAMES_SHOWN = 5  # in a message
CLASS_NAMES_ADVICE = (
    "Say what the model's outputs are called, in their order: --classes (classes= in Python). Or rename the "
    "subfolders, or put the images into one folder, without labels"
)


def requested_classes(box: Box, target: int | Sequence[int] | Tensor | None) -> Tensor:
    """The classes (K,) that `target` names; None is all of them. Raises InputError for none, or unknown ones."""
    if target is None:
        return torch.arange(box.n_outputs, device=box.device)
    requested = as_classes(target)
    classes = box.class_labels(requested, requested.numel() if requested.ndim else 1)
    if len(classes) == 0:
        raise InputError("target has no class: give at least one, or None for all")
    return classes


def is_numbers_only(classes: Sequence[str]) -> bool:
    """Whether the classes are 0, 1, 2, ...: they were not named."""
    return tuple(classes) == tuple(map(str, range(len(classes))))


def unique_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes as unique keys: a name of several classes is followed by the number of each."""
    repeated = {name for name, n in Counter(classes).items() if n > 1}
    return tuple(f"{name} ({k})" if name in repeated else name for k, name in enumerate(classes))


def matchable_classes(box: Box) -> tuple[str, ...] | None:
    """The names that labels can be matched to: of mutually exclusive classes; None for other outputs."""
    return box.classes if box.outputs != "regression" and len(box.classes) > 1 else None


def dataset_class_names(data: Any) -> tuple[tuple[str, ...], bool]:
    """The names of the labels of data, and whether labels were made from names (as for class folders).

    Looks inside a DataLoader, a Subset and a ConcatDataset; no names where none are known. Raises DataError for
    joined datasets with different classes.
    """
    names = getattr(data, "classes", None)
    if isinstance(names, (list, tuple)):
        return tuple(map(str, names)), bool(getattr(data, "labels_are_names", False))
    parts = getattr(data, "datasets", None)
    if isinstance(parts, (list, tuple)):
        names_of_parts = {dataset_class_names(part) for part in parts}
        if len(names_of_parts) > 1:
            raise DataError("the joined data sets have different classes, so one label means several; open them alike")
        return names_of_parts.pop() if names_of_parts else ((), False)
    inner = getattr(data, "dataset", None)
    return ((), False) if inner is None else dataset_class_names(inner)


def match_labels(
    names: Sequence[str], classes: Sequence[str], *, made_from_names: bool, names_source: str
) -> dict[int, int]:
    """{label: class of the model}, from the names of the labels and the classes of the model.

    They are matched by name; case, spaces, `-`, `_` and leading zeros of a number don't matter. Without a match, labels
    keep their numbers where nothing contradicts that: of class folders (`made_from_names`) only if there are as many as
    classes and the classes were not named, with a warning. `names_source` names the source in errors.
    Raises DataError.
    """
    if tuple(names) == tuple(classes):
        return {i: i for i in range(len(names))}
    matched = _match_names(names, classes)
    if len(matched) == len(names):
        _warn_text_order(names, classes)
        return matched
    same_count, classes_are_numbers = len(names) == len(classes), is_numbers_only(classes)
    if made_from_names and classes_are_numbers and same_count and not matched:
        _warn_name_order(names, names_source)
    elif made_from_names or not (classes_are_numbers or (same_count and all(i == k for i, k in matched.items()))):
        raise DataError(_mismatch_message(names, classes, matched, names_source))
    return {i: i for i in range(len(names))}


def _match_names(names: Sequence[str], classes: Sequence[str]) -> dict[int, int]:
    """The names that a class has. Raises DataError for a name of several classes."""
    indices_by_name = defaultdict(list)
    for k, name in enumerate(classes):
        indices_by_name[_normalize_name(name)].append(k)
    return {
        i: _class_index(n, indices_by_name[_normalize_name(n)], classes)
        for i, n in enumerate(names)
        if _normalize_name(n) in indices_by_name
    }


def _class_index(name: str, candidates: list[int], classes: Sequence[str]) -> int:
    exact = [k for k in candidates if classes[k] == name]
    if len(exact or candidates) > 1:
        raise DataError(
            f"the folder {name!r} fits {len(exact or candidates)} classes: the numbers {exact or candidates}"
        )
    return (exact or candidates)[0]


def _normalize_name(name: str) -> str:
    normalized = " ".join(to_printable(name).casefold().replace("_", " ").replace("-", " ").split())
    return str(int(normalized)) if normalized.isdecimal() else normalized


def _warn_text_order(names: Sequence[str], classes: Sequence[str]) -> None:
    """Warn that a model trained on folders sorted as text (10 before 2) has another order of classes."""
    if is_numbers_only(classes) and sorted(names) != sorted(names, key=lambda name: int(_normalize_name(name))):
        assumption = (
            f"{sorted(names, key=lambda name: int(_normalize_name(name)))[-1]!r} is matched to that output of the model"
        )
        advice = "if it was trained on folders sorted as text (10 before 2, as torchvision's ImageFolder does), give "
        warn(f"class names that are numbers mean outputs: {assumption}; {advice}its classes in that order: "
                      "--classes (classes= in Python)")  # fmt: skip


def _warn_name_order(names: Sequence[str], names_source: str) -> None:
    assumption = f"the {names_source} are matched to the {len(names)} classes in the order of their names: "
    advice = "if the model has another order, give --classes (classes= in Python)"
    warn(f"{assumption}{_format_names(names, numbered=True)}; {advice}")


def _mismatch_message(names: Sequence[str], classes: Sequence[str], matched: dict[int, int], names_source: str) -> str:
    unmatched = [name for i, name in enumerate(names) if i not in matched]
    if not matched:
        subject = f"the {names_source} ({_format_names(names)}) are not"
    else:
        subject = f"{len(unmatched)} of the {len(names)} {names_source} ({_format_names(unmatched)}) are not among"
    suggestions = [
        f"{name!r} is nearest to {_quote_names(closest)}"
        for name in unmatched[:MAX_NAMES_SHOWN]
        if (closest := nearest_names(name, classes))
    ]
    hint = f"; {', '.join(suggestions)}" if suggestions else ""
    return f"{subject} the model's {len(classes)} classes ({_format_names(classes)}){hint}. {CLASS_NAMES_ADVICE}"


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _format_names(names: Sequence[str], numbered: bool = False) -> str:
    shown = [f"{i} is {name}" if numbered else name for i, name in enumerate(names[:MAX_NAMES_SHOWN])]
    return ", ".join(shown) + (f", and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else "")
