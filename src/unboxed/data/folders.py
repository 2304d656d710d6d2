"""A folder of images: one subfolder a class, or all in one place without labels."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..atomic_write import printable
from ..box import Box
from ..engine.read.class_labels import is_numbered, label_map, named_classes
from ..errors import BrokenImageError, DataError
from ..inputs import images
from ..inputs.base import Inputs
from ..inputs.pixels import Pixels
from .sets import Example, Images

Skipped = list[tuple[Path, str]]
LITTER = {"__pycache__", "thumbs.db", "desktop.ini", "__macosx"}  # what systems leave behind, never the user's


def folder(path: str | os.PathLike[str], like: Inputs | Box, classes: Sequence[str] | None = None) -> Folder:
    """The images in a folder, decoded when they are taken out, each made like `like`: a box, or its `inputs`.

    Subfolders are classes, in the order of their names (numbers by value: 2 before 10), without subfolders there are no
    labels. Given a box, or `classes`, labels are the numbers of those classes, matched by name (case, spaces, `-` and
    `_` don't matter); robustness, calibration and the report match them to their box's by themselves. Images are turned
    upright (EXIF), resized by the short side with antialiasing, cut around the center; transparency shows white. What
    is no sound image is skipped and listed in `.skipped`. Raises DataError for a wrong path, classes that don't match
    and where no image is left.
    """
    if isinstance(like, Box):
        classes = named_classes(like) if classes is None else classes
        like = like.inputs
    like, root = images.wanted(like), _root(path)
    skipped: Skipped = []
    groups = _groups(root, skipped)
    names = tuple(printable(g) for g in groups if g)
    found = [(_images(files, skipped), i if name else -1) for i, (name, files) in enumerate(groups.items())]
    order = _spread(found)
    if not order:
        raise DataError(_nothing(root, skipped))
    made = Folder(root, order, names, like, skipped)
    return made if classes is None else made.labeled_as(classes)


class Folder(Images):
    """Image files with their classes.

    A file whose header reads but whose image turns out to be broken is found when it is first decoded: passes over the
    data (iterating, `.first(n)`, a DataLoader, every method) leave it out, and it joins `.skipped`; `folder[i]` raises
    BrokenImageError, and so does a DataLoader's batch that holds nothing else. `len` counts it. Each worker process of
    a DataLoader keeps its own list.
    """

    labels_are_names = True

    def __init__(
        self, root: Path, files: list[tuple[Path, int]], classes: tuple[str, ...], like: Pixels, skipped: Skipped
    ) -> None:
        self.root, self.name, self.classes, self.inputs = root, printable(root.name or str(root)), classes, like
        self.paths = tuple(path for path, _ in files)
        self.skipped = skipped
        self._labels = [label for _, label in files]
        self._broken: dict[Path, str] = {}

    def labeled_as(self, classes: Sequence[str]) -> Folder:
        """The same files, with the numbers of these classes as labels, matched by name. Raises DataError."""
        numbers = label_map(self.classes, classes, made_from_names=True, where=f"subfolders of {self.root}")
        made = copy.copy(self)
        made._labels = [numbers.get(label, label) for label in self._labels]
        if len(self.classes) != len(classes) or not is_numbered(classes):  # numbers name nothing
            made.classes = tuple(classes)
        return made

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        example = self._read(index)
        if example is None:
            raise BrokenImageError(f"{self._why(index)}; take examples by .first(n) or in a loop, or remove the file")
        return example

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """What torch's DataLoader asks for: the examples of a batch that can be read."""
        examples = [example for i in indices if (example := self._read(i)) is not None]
        if not examples:
            said = f"none of the {len(indices)} images of a batch can be read ({self._why(indices[0])})"
            raise BrokenImageError(f"{said}; remove such files (see .skipped of {self.name!r}), or take larger batches")
        return examples

    def _why(self, index: int) -> str:
        path = self.paths[index]
        return f"{printable(str(path))}: {self._broken[path]}"

    def _read(self, index: int) -> Example | None:
        path = self.paths[index]
        if path in self._broken:
            return None
        try:
            return images.read(path, self.inputs), self._labels[index]
        except Exception as error:  # a hostile file can make a decoder raise nearly anything
            self._broken[path] = images.reason(error)
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
    raise DataError(f"there is no folder {root}" + (f"; did you mean {', '.join(map(repr, near))}?" if near else ""))


def _groups(root: Path, skipped: Skipped) -> dict[str, list[Path]]:
    """Files by the name of their class folder; those of a flat folder by the empty name."""
    inside = _visible(root, skipped)
    inner = [p for p in inside if os.path.isdir(p) and not _same(p, root)]
    if all(p.name.isdecimal() for p in inner):
        inner.sort(key=lambda p: int(p.name))
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
    faults = [images.fault(p) for p in files]
    skipped += [(p, why) for p, why in zip(files, faults, strict=True) if why]
    return [p for p, why in zip(files, faults, strict=True) if not why]


def _spread(found: list[tuple[list[Path], int]]) -> list[tuple[Path, int]]:
    """Files with their labels, every class evenly from front to end, so that the first n are of all classes."""
    placed = [((i + 0.5) / len(files), y, p) for files, y in found for i, p in enumerate(files)]
    return [(path, label) for _, label, path in sorted(placed)]


def _nothing(root: Path, skipped: Skipped) -> str:
    if not skipped:
        return f"the folder {root} is empty; wanted images, or one subfolder of images a class"
    said = "; ".join(f"{printable(path.name)}: {why}" for path, why in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"the folder {root} holds no image that can be read ({said}{more})"
