"""Labels by the names of their classes: which class of a model each label of some data means. Decided here, once."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ...atomic_write import to_printable
from ...box import Box
from ...errors import DataError, warn

LISTED = 5  # names in a sentence
ADVICE = (
    "Say what the model's outputs are called, in their order: --classes (classes= in Python). Or rename the "
    "subfolders, or put the images into one folder, without labels"
)


def is_numbered(classes: Sequence[str]) -> bool:
    """Whether the classes are 0, 1, 2, ...: nobody named them."""
    return tuple(classes) == tuple(map(str, range(len(classes))))


def unique(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes as keys: what several classes are called is followed by the number of each."""
    shared = {name for name, n in Counter(classes).items() if n > 1}
    return tuple(f"{name} ({k})" if name in shared else name for k, name in enumerate(classes))


def named_classes(box: Box) -> tuple[str, ...] | None:
    """What labels can be matched to: the names of classes that exclude one another; None where outputs are others."""
    return box.classes if box.outputs != "regression" and len(box.classes) > 1 else None


def class_names(data: Any) -> tuple[tuple[str, ...], bool]:
    """What data call their labels, and whether the labels were made from those names (as those of class folders are).

    Looks inside a DataLoader, a Subset and a ConcatDataset; no names where none are known. Raises DataError where data
    sets with different classes were joined.
    """
    names = getattr(data, "classes", None)
    if isinstance(names, (list, tuple)):
        return tuple(map(str, names)), bool(getattr(data, "labels_are_names", False))
    parts = getattr(data, "datasets", None)
    if isinstance(parts, (list, tuple)):
        found = {class_names(part) for part in parts}
        if len(found) > 1:
            raise DataError("the joined data sets have different classes, so one label means several; open them alike")
        return found.pop() if found else ((), False)
    inner = getattr(data, "dataset", None)
    return ((), False) if inner is None else class_names(inner)


def label_map(names: Sequence[str], classes: Sequence[str], *, made_from_names: bool, where: str) -> dict[int, int]:
    """{label: class of the model}, where data call their labels `names` and the model its outputs `classes`.

    They are matched by name; case, spaces, `-`, `_` and leading zeros of a number don't matter. Without a match, labels
    keep their numbers where nothing contradicts that: of class folders (`made_from_names`) only if there are as many as
    classes and nobody named the classes, with a warning. `where` says what the names are names of, in errors.
    Raises DataError.
    """
    if tuple(names) == tuple(classes):
        return {i: i for i in range(len(names))}
    matched = _matched(names, classes)
    if len(matched) == len(names):
        _warn_of_text_order(names, classes)
        return matched
    alike, unnamed = len(names) == len(classes), is_numbered(classes)
    if made_from_names and unnamed and alike and not matched:
        _warn_of_order(names, where)
    elif made_from_names or not (unnamed or (alike and all(i == k for i, k in matched.items()))):
        raise DataError(_refusal(names, classes, matched, where))
    return {i: i for i in range(len(names))}


def _matched(names: Sequence[str], classes: Sequence[str]) -> dict[int, int]:
    """Those of the names that a class has. Raises DataError for a name that several have."""
    numbers = defaultdict(list)
    for k, name in enumerate(classes):
        numbers[_plain(name)].append(k)
    return {i: _number(n, numbers[_plain(n)], classes) for i, n in enumerate(names) if _plain(n) in numbers}


def _number(name: str, numbers: list[int], classes: Sequence[str]) -> int:
    exact = [k for k in numbers if classes[k] == name]
    if len(exact or numbers) > 1:
        raise DataError(f"the folder {name!r} fits {len(exact or numbers)} classes: the numbers {exact or numbers}")
    return (exact or numbers)[0]


def _plain(name: str) -> str:
    plain = " ".join(to_printable(name).casefold().replace("_", " ").replace("-", " ").split())
    return str(int(plain)) if plain.isdecimal() else plain


def _warn_of_text_order(names: Sequence[str], classes: Sequence[str]) -> None:
    """Numbers are matched to numbers; but who trained with folders sorted as text has another order."""
    if is_numbered(classes) and sorted(names) != sorted(names, key=lambda name: int(_plain(name))):
        said = f"{sorted(names, key=lambda name: int(_plain(name)))[-1]!r} is taken for that output of the model"
        advice = "if it was trained on folders sorted as text (10 before 2, as torchvision's ImageFolder does), give "
        warn(f"class names that are numbers mean outputs: {said}; {advice}its classes in that order: "
                      "--classes (classes= in Python)")  # fmt: skip


def _warn_of_order(names: Sequence[str], where: str) -> None:
    said = f"the {where} are taken for the {len(names)} classes in the order of their names: "
    advice = "if the model has another order, give --classes (classes= in Python)"
    warn(f"{said}{_listed(names, numbered=True)}; {advice}")


def _refusal(names: Sequence[str], classes: Sequence[str], matched: dict[int, int], where: str) -> str:
    off = [name for i, name in enumerate(names) if i not in matched]
    if not matched:
        which = f"the {where} ({_listed(names)}) are not"
    else:
        which = f"{len(off)} of the {len(names)} {where} ({_listed(off)}) are not among"
    near = [f"{name!r} is nearest to {_quoted(found)}" for name in off[:LISTED] if (found := _nearest(name, classes))]
    hint = f"; {', '.join(near)}" if near else ""
    return f"{which} the model's {len(classes)} classes ({_listed(classes)}){hint}. {ADVICE}"


def _nearest(name: str, classes: Sequence[str]) -> list[str]:
    plain = {_plain(c): c for c in classes}
    return [plain[c] for c in difflib.get_close_matches(_plain(name), plain, n=3)]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _listed(names: Sequence[str], numbered: bool = False) -> str:
    said = [f"{i} is {name}" if numbered else name for i, name in enumerate(names[:LISTED])]
    return ", ".join(said) + (f", and {len(names) - LISTED} more" if len(names) > LISTED else "")
