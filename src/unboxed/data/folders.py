"""A folder of images: one subfolder a class, or all in one place without labels."""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from ..inputs import Inputs, Pixels
from . import pillow
from .sets import Example, Images

Skipped = list[tuple[Path, str]]
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # what systems leave behind; never the user's, like hidden files


def folder(path: str | os.PathLike[str], like: Inputs, classes: Sequence[str] | None = None) -> Folder:
    """The images in a folder, decoded when they are taken out, each made like `like` (box.inputs).

    Subfolders are classes, in the order of their names, or matched by name to `classes` (box.classes; case, spaces, `-`
    and `_` are one); without subfolders there are no labels. Images are turned upright (EXIF), resized by the short
    side with antialiasing, cut around the center; transparency shows white. What is no sound image is skipped and
    listed in `.skipped`. Raises DataError for a wrong path, an unknown class and where no image is left.
    """
    like, root = pillow.wanted(like), _root(path)
    skipped: Skipped = []
    groups = _groups(root, skipped)
    labels, names = _labels(root, [g for g in groups if g], classes)
    found: defaultdict[int, list[Path]] = defaultdict(list)
    for name, files in groups.items():
        found[labels.get(name, -1)] += _images(files, skipped)
    order = _spread(found)
    if not order:
        raise DataError(_nothing(root, skipped))
    return Folder(root, order, names, like, skipped)


class Folder(Images):
    """Image files with their classes.

    A file whose header reads but whose image turns out to be broken is found when it is first decoded: iterating,
    `.first(n)` and a DataLoader pass over it, and it joins `.skipped`; `folder[i]` raises DataError. `len` counts it.
    Each worker process of a DataLoader keeps its own list.
    """

    def __init__(
        self, root: Path, files: list[tuple[Path, int]], classes: tuple[str, ...], like: Pixels, skipped: Skipped
    ) -> None:
        self.root, self.name, self.classes, self.inputs = root, root.name or str(root), classes, like
        self.paths = tuple(path for path, _ in files)
        self.skipped = skipped
        self._labels = [label for _, label in files]
        self._broken: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        example = self._read(index)
        if example is None:
            path = self.paths[index]
            hint = "take examples by .first(n) or in a loop, which pass over such files, or remove it"
            raise DataError(f"{path}: {self._broken[path]}; {hint}")
        return example

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """What torch's DataLoader asks for: the examples of a batch that can be read."""
        examples = [example for i in indices if (example := self._read(i)) is not None]
        if not examples:
            raise DataError(f"none of the {len(indices)} images of a batch can be read; see .skipped of {self.name!r}")
        return examples

    def __iter__(self) -> Iterator[Example]:
        return (example for i in range(len(self)) if (example := self._read(i)) is not None)

    def _read(self, index: int) -> Example | None:
        path = self.paths[index]
        if path in self._broken:
            return None
        try:
            return pillow.read(path, self.inputs), self._labels[index]
        except Exception as error:  # a hostile file can make a decoder raise nearly anything
            self._broken[path] = pillow.reason(error)
            self.skipped.append((path, self._broken[path]))
            return None


def _root(path: str | os.PathLike[str]) -> Path:
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{root} is a file; wanted the folder that holds the images, such as {root.parent}")
    beside = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
    near = difflib.get_close_matches(root.name, beside, n=3)
    raise DataError(f"there is no folder {root}" + (f"; did you mean {_quoted(near)}?" if near else ""))


def _groups(root: Path, skipped: Skipped) -> dict[str, list[Path]]:
    """Files by the name of their class folder; those of a flat folder by the empty name."""
    inside = _visible(root, skipped)
    inner = [p for p in inside if os.path.isdir(p) and not _same(p, root)]
    groups = {p.name: list(_files(p, skipped, {os.path.realpath(root)})) for p in inner}
    loose = [p for p in inside if not os.path.isdir(p)]
    if not any(groups.values()):
        return {"": loose}
    skipped += [(p, "beside the class folders, so without a class") for p in loose]
    skipped += [(p, "a class folder without files") for p in inner if not groups[p.name]]
    return groups


def _same(path: Path, root: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(root)


def _visible(path: Path, skipped: Skipped) -> list[Path]:
    """What is in a folder, by name, without hidden files and systems' litter."""
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        skipped.append((path, f"may not be read: {error.strerror}"))
        return []
    return [p for p in inside if not p.name.startswith(".") and p.name.lower() not in LITTER]


def _files(path: Path, skipped: Skipped, seen: set[str]) -> Iterator[Path]:
    """All files below a folder. Links are followed, but into no folder twice: they may run in circles."""
    real = os.path.realpath(path)
    if real in seen:
        skipped.append((path, "leads to a folder that was read already"))
        return
    seen.add(real)
    for p in _visible(path, skipped):
        if os.path.isdir(p):
            yield from _files(p, skipped, seen)
        else:
            yield p


def _images(files: list[Path], skipped: Skipped) -> list[Path]:
    """Those that may be images; the others are listed."""
    faults = [pillow.fault(p) for p in files]
    skipped += [(p, why) for p, why in zip(files, faults, strict=True) if why]
    return [p for p, why in zip(files, faults, strict=True) if not why]


def _spread(found: dict[int, list[Path]]) -> list[tuple[Path, int]]:
    """Files with their labels, every class evenly from front to end, so that the first n are of all classes."""
    placed = [((i + 0.5) / len(files), y, p) for y, files in found.items() for i, p in enumerate(files)]
    return [(path, label) for _, label, path in sorted(placed)]


def _labels(root: Path, found: list[str], classes: Sequence[str] | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class folder, and the names of all classes."""
    if classes is None:
        return {name: i for i, name in enumerate(found)}, tuple(found)
    numbers = defaultdict(list)
    for i, name in enumerate(classes):
        numbers[_plain(name)].append(i)
    labels = {name: _number(name, numbers[_plain(name)], classes) for name in found if _plain(name) in numbers}
    if unknown := [name for name in found if name not in labels]:
        raise DataError(_unknown(root, unknown, classes))
    return labels, tuple(classes)


def fitting(found: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Those of the class folders that are called like a class."""
    known = {_plain(name) for name in classes}
    return [name for name in found if _plain(name) in known]


def _number(name: str, numbers: list[int], classes: Sequence[str]) -> int:
    exact = [i for i in numbers if classes[i] == name]
    if len(exact or numbers) > 1:
        raise DataError(f"the folder {name!r} fits {len(exact or numbers)} classes: the numbers {exact or numbers}")
    return (exact or numbers)[0]


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _unknown(root: Path, unknown: list[str], classes: Sequence[str]) -> str:
    said = ", ".join(f"{name!r} ({_nearest(name, classes)})" for name in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    many = f"{len(unknown)} of the subfolders of {root} fit none of the {len(classes)} classes"
    advice = "Rename them, or name the classes as the folders are: --classes (classes= in Python)"
    return f"{many}: {said}{more}. {advice}"


def _nearest(name: str, classes: Sequence[str]) -> str:
    plain = {_plain(c): c for c in classes}
    near = [plain[c] for c in difflib.get_close_matches(_plain(name), plain, n=3)]
    return f"nearest: {_quoted(near)}" if near else f"the classes begin {_quoted(list(classes[:3]))}"


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _nothing(root: Path, skipped: Skipped) -> str:
    if not skipped:
        return f"the folder {root} is empty; wanted images, or one subfolder of images a class"
    said = "; ".join(f"{path.name}: {why}" for path, why in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"the folder {root} holds no image that can be read ({said}{more})"
