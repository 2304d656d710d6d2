"""Image files with their classes, decoded on access; what cannot be read is listed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ..atomic_write import to_printable
from ..box import Box
from ..engine.read.class_labels import class_names_for_matching
from ..errors import BrokenImageError, DataError, UnboxedWarning
from ..inputs import image_files
from ..inputs.base import Inputs
from ..inputs.class_files import resolve_class_names
from ..inputs.labels import ClassByLabel, are_default_class_names, match_labels_to_classes
from ..inputs.pixels import Pixels
from .sets import Images, LabeledImage

SkippedFileReasons = list[tuple[Path, str]]


class LabeledFiles(Images):
    """Image files with their classes.

    A file with a valid header but a broken image is detected when it is first decoded: passes over the data (iterating,
    `.first(n)`, a DataLoader, every method) leave it out and add it to `.skipped`; `dataset[i]` raises
    BrokenImageError, and so does a batch of a DataLoader without any other image. `len` counts it. Each worker process
    of a DataLoader has its own list.
    """

    labels_are_names = True
    names_source = "labels"

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[Path, int]],
        classes: tuple[str, ...],
        like: Pixels,
        skipped: SkippedFileReasons,
        label_names: Mapping[int, str] | None = None,
    ) -> None:
        self.root, self.name, self.classes, self.inputs = root, to_printable(root.name or str(root)), classes, like
        self.paths = tuple(path for path, _ in files)
        self.skipped = skipped
        self.label_names = dict(enumerate(classes)) if label_names is None else label_names
        self.broken_files: dict[Path, str] = {}
        self._labels = [label for _, label in files]

    def relabeled_by_classes(self, classes: Sequence[str]) -> Self:
        """The same files, labeled by these classes, matched by name. Raises DataError."""
        source = f"{self.names_source} of {to_printable(str(self.root))}"
        names = self.label_names or {}
        class_by_label = (
            match_labels_to_classes(names, classes, made_from_names=True, names_source=source)
            if names
            else ClassByLabel[int]()
        )
        relabeled = copy.copy(self)
        relabeled.label_assumption = class_by_label.assumption
        relabeled._labels = [class_by_label.get(label, label) for label in self._labels]
        relabeled.label_names = {k: names[label] for label, k in class_by_label.items()}
        if len(self.classes) != len(classes) or not are_default_class_names(classes):  # numbers are not names
            relabeled.classes, relabeled.label_names = tuple(classes), dict(enumerate(classes))
        return relabeled

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> LabeledImage:
        example = self._read_example(index)
        if example is None:
            raise BrokenImageError(
                f"{self._broken_file_reason(index)}; take examples by .first(n) or in a loop, or remove the file"
            )
        return example

    def __getitems__(self, indices: Sequence[int]) -> list[LabeledImage]:
        """The examples of a batch that can be read, as torch's DataLoader calls it."""
        examples = [example for i in indices if (example := self._read_example(i)) is not None]
        if not examples:
            message = (
                f"none of the {len(indices)} images of a batch can be read ({self._broken_file_reason(indices[0])})"
            )
            raise BrokenImageError(
                f"{message}; remove such files (see .skipped of {self.name!r}), or take larger batches"
            )
        return examples

    def _broken_file_reason(self, index: int) -> str:
        path = self.paths[index]
        return f"{to_printable(str(path))}: {self.broken_files[path]}"

    def _read_example(self, index: int) -> LabeledImage | None:
        path = self.paths[index]
        if path in self.broken_files:
            return None
        try:
            return image_files.read_image(path, self.inputs), self._labels[index]
        except UnboxedWarning:  # that the caller made an error
            raise
        except Exception as error:  # a hostile file can make a decoder raise anything
            self.broken_files[path] = image_files.unreadable_image_reason(error)
            self.skipped.append((path, self.broken_files[path]))
            return None


class Folder(LabeledFiles):
    """A folder of images, with a subfolder per class or without labels; see `LabeledFiles`."""

    names_source = "subfolders"


def resolve_classes_and_inputs(
    like: Inputs | Box, classes: Sequence[str] | None
) -> tuple[Sequence[str] | None, Inputs]:
    """The class names that labels are numbered by, None for those of the files, and what images become."""
    classes = resolve_class_names(classes)
    if not isinstance(like, Box):
        return classes, like
    return class_names_for_matching(like) if classes is None else classes, like.inputs


def require_files(files: Sequence[object], source: Path, skipped: SkippedFileReasons) -> None:
    """Raise DataError where a table has no image that can be read."""
    if not files:
        reasons = "; ".join(map(skipped_file_text, skipped[:3]))
        raise DataError(f"no image that {source} lists can be read ({reasons or 'it has no rows'})")


def readable_image_paths(paths: Iterable[Path], skipped: SkippedFileReasons) -> list[Path]:
    """The paths that may be images; the others are added to the skipped ones."""
    faults = {path: image_files.unreadable_file_reason(path) for path in paths}
    skipped += [(path, reason) for path, reason in faults.items() if reason]
    return [path for path, reason in faults.items() if not reason]


def skipped_file_text(skipped: tuple[Path, str]) -> str:
    """A file that is left out, with the reason."""
    path, reason = skipped
    return f"{to_printable(path.name)}: {reason}"
