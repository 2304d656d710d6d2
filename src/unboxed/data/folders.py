"""Folders of images: one subfolder per class, or all in one folder without labels."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..atomic_write import to_printable
from ..box import Box
from ..engine.read.class_labels import is_numbers_only, match_labels, matchable_classes
from ..errors import BrokenImageError, DataError
from ..inputs import images
from ..inputs.base import Inputs
from ..inputs.pixels import Pixels
from ..validation import nearest_names, suggest
from .sets import Example, Images

SkippedFiles = list[tuple[Path, str]]
SYSTEM_FILES = {"__pycache__", "thumbs.db", "desktop.ini", "__macosx"}  # of operating systems


def folder(path: str | os.PathLike[str], like: Inputs | Box, classes: Sequence[str] | None = None) -> Folder:
    """The images in a folder, decoded on access.

    Images are turned upright (EXIF), resized by the short side with antialiasing and cropped around the center;
    transparency becomes white. Files that are no sound image are skipped and listed in `.skipped`.

    Args:
        path: The folder. Its subfolders are classes, in the order of their names (numbers by value: 2 before 10);
            without subfolders there are no labels.
        like: What images become: a box, or its `inputs`.
        classes: Class names that labels are numbered by. None takes the box's, where `like` is one, else the
            subfolders'. Names are matched without regard to case, spaces, `-` and `_`.

    Returns:
        Images (C, H, W) in [0, 1] with class numbers, -1 without labels.

    Raises:
        DataError: for a wrong path, subfolders that are not the classes, and where no image is left.

    Example:
        >>> import unboxed as ub
        >>> photos = ub.data.folder("path/to/photos", ub.Pixels((3, 224, 224)))  # doctest: +SKIP
        >>> x, y = photos.first(8)  # doctest: +SKIP
    """
    if isinstance(like, Box):
        classes = matchable_classes(like) if classes is None else classes
        like = like.inputs
    like, root = images.require_pixels(like), _resolve_folder(path)
    skipped: SkippedFiles = []
    files_by_class = _files_by_class(root, skipped)
    class_names = tuple(to_printable(class_name) for class_name in files_by_class if class_name)
    labeled_files = [
        (_image_files(files, skipped), i if name else -1) for i, (name, files) in enumerate(files_by_class.items())
    ]
    interleaved = _interleave_classes(labeled_files)
    if not interleaved:
        raise DataError(_no_images_text(root, skipped))
    dataset = Folder(root, interleaved, class_names, like, skipped)
    return dataset if classes is None else dataset.labeled_as(classes)


class Folder(Images):
    """Image files with their classes.

    A file with a valid header but a broken image is detected when it is first decoded: passes over the data (iterating,
    `.first(n)`, a DataLoader, every method) leave it out and add it to `.skipped`; `folder[i]` raises BrokenImageError,
    and so does a batch of a DataLoader without any other image. `len` counts it. Each worker process of a DataLoader
    has its own list.
    """

    labels_are_names = True

    def __init__(
        self, root: Path, files: list[tuple[Path, int]], classes: tuple[str, ...], like: Pixels, skipped: SkippedFiles
    ) -> None:
        self.root, self.name, self.classes, self.inputs = root, to_printable(root.name or str(root)), classes, like
        self.paths = tuple(path for path, _ in files)
        self.skipped = skipped
        self._labels = [label for _, label in files]
        self._broken: dict[Path, str] = {}

    def labeled_as(self, classes: Sequence[str]) -> Folder:
        """The same files, labeled by these classes, matched by name. Raises DataError."""
        label_by_class = match_labels(
            self.classes, classes, made_from_names=True, names_source=f"subfolders of {self.root}"
        )
        relabeled = copy.copy(self)
        relabeled._labels = [label_by_class.get(label, label) for label in self._labels]
        if len(self.classes) != len(classes) or not is_numbers_only(classes):  # numbers are not names
            relabeled.classes = tuple(classes)
        return relabeled

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        example = self._read_example(index)
        if example is None:
            raise BrokenImageError(
                f"{self._broken_reason(index)}; take examples by .first(n) or in a loop, or remove the file"
            )
        return example

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """The examples of a batch that can be read, as torch's DataLoader calls it."""
        examples = [example for i in indices if (example := self._read_example(i)) is not None]
        if not examples:
            message = f"none of the {len(indices)} images of a batch can be read ({self._broken_reason(indices[0])})"
            raise BrokenImageError(
                f"{message}; remove such files (see .skipped of {self.name!r}), or take larger batches"
            )
        return examples

    def _broken_reason(self, index: int) -> str:
        path = self.paths[index]
        return f"{to_printable(str(path))}: {self._broken[path]}"

    def _read_example(self, index: int) -> Example | None:
        path = self.paths[index]
        if path in self._broken:
            return None
        try:
            return images.read_image(path, self.inputs), self._labels[index]
        except Exception as error:  # a hostile file can make a decoder raise anything
            self._broken[path] = images.error_reason(error)
            self.skipped.append((path, self._broken[path]))
            return None


def _resolve_folder(path: str | os.PathLike[str]) -> Path:
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{root} is a file; wanted the folder that holds the images, such as {root.parent}")
    neighbors = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
    hint = f"; {suggest(root.name, neighbors)}" if nearest_names(root.name, neighbors) else ""
    raise DataError(f"there is no folder {root}{hint}")


def _files_by_class(root: Path, skipped: SkippedFiles) -> dict[str, list[Path]]:
    """Files by the name of their class folder; of a flat folder by the empty name."""
    entries = _list_visible(root, skipped)
    subfolders = [p for p in entries if os.path.isdir(p) and not _is_same_folder(p, root)]
    if all(p.name.isdecimal() for p in subfolders):
        subfolders.sort(key=lambda p: int(p.name))
    files_by_class = {p.name: list(_walk_files(p, skipped, {os.path.realpath(root)})) for p in subfolders}
    loose_files = [p for p in entries if not os.path.isdir(p)]
    if not any(files_by_class.values()):
        return {"": loose_files}
    skipped += [(p, "outside the class folders, so without a class") for p in loose_files]
    skipped += [(p, "a class folder without files") for p in subfolders if not files_by_class[p.name]]
    return files_by_class


def _is_same_folder(path: Path, root: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(root)


def _list_visible(path: Path, skipped: SkippedFiles) -> list[Path]:
    """The content of a folder, by name, without hidden and system files."""
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        skipped.append((path, f"may not be read: {error.strerror}"))
        return []
    return [p for p in entries if not p.name.startswith(".") and p.name.lower() not in SYSTEM_FILES]


def _walk_files(path: Path, skipped: SkippedFiles, visited: set[str]) -> Iterator[Path]:
    """All files below a folder. Links are followed, but into no folder twice: they may be circular."""
    real_path = os.path.realpath(path)
    if real_path in visited:
        skipped.append((path, "leads to a folder that was read already"))
        return
    visited.add(real_path)
    for p in _list_visible(path, skipped):
        if os.path.isdir(p):
            yield from _walk_files(p, skipped, visited)
        else:
            yield p


def _image_files(files: list[Path], skipped: SkippedFiles) -> list[Path]:
    """The files that may be images; the others are added to the skipped ones."""
    faults = [images.file_fault(p) for p in files]
    skipped += [(p, reason) for p, reason in zip(files, faults, strict=True) if reason]
    return [p for p, why in zip(files, faults, strict=True) if not why]


def _interleave_classes(labeled_files: list[tuple[list[Path], int]]) -> list[tuple[Path, int]]:
    """Files with their labels, the classes interleaved, so that the first n examples are of all classes."""
    sort_keys = [
        ((i + 0.5) / len(files), class_index, p) for files, class_index in labeled_files for i, p in enumerate(files)
    ]
    return [(path, label) for _, label, path in sorted(sort_keys)]


def _no_images_text(root: Path, skipped: SkippedFiles) -> str:
    if not skipped:
        return f"the folder {root} is empty; wanted images, or one subfolder of images a class"
    message = "; ".join(f"{to_printable(path.name)}: {reason}" for path, reason in skipped[:3])
    rest_note = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"the folder {root} holds no image that can be read ({message}{rest_note})"
