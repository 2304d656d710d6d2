"""Folders of images: one subfolder per class, or all in one folder without labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..atomic_write import to_printable
from ..box import Box
from ..errors import DataError, UnboxedWarning, warn
from ..inputs import image_files
from ..inputs.base import Inputs
from ..inputs.images import require_pixels
from ..inputs.labels import classes_from_label_names, match_label_names_to_classes, sort_names_naturally
from ..validation import expand_home, missing_path_text
from .labeled_files import Folder, SkippedFileReasons, resolve_classes_and_inputs

SPLIT_FOLDER_NAMES = (
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "dev",
    "train",
    "training",
)  # the first is suggested
MAX_LISTED_SPLITS = 5  # in a message
SYSTEM_FILE_NAMES = {"__pycache__", "thumbs.db", "desktop.ini", "__macosx"}  # of operating systems


def folder(path: str | os.PathLike[str], like: Inputs | Box, classes: Sequence[str] | None = None) -> Folder:
    """The images in a folder, decoded on access.

    Images are turned upright (EXIF), resized by the short side with antialiasing and cropped around the center;
    transparency becomes white. Files that are no sound image are skipped and listed in `.skipped`.

    Args:
        path: The folder. Its subfolders are classes, in the order of their names (numbers by value: 2 before 10);
            without subfolders there are no labels. Names that are numbers are the labels themselves.
        like: What images become: a box, or its `inputs`.
        classes: Class names that labels are numbered by. None takes the box's, where `like` is one, else the
            subfolders'. Names are matched without regard to case, spaces, `-` and `_`.

    Returns:
        Images (C, H, W) in [0, 1] with class numbers, -1 without labels.

    Raises:
        DataError: for a wrong path, subfolders that are not the classes, or that are the splits of a data set (train
            and val), and where no image is left.

    Example:
        >>> import unboxed as ub
        >>> photos = ub.data.folder("path/to/photos", ub.Pixels((3, 224, 224)))  # doctest: +SKIP
        >>> x, y = photos.first(8)  # doctest: +SKIP
    """
    classes, like = resolve_classes_and_inputs(like, classes)
    pixels, root = require_pixels(like), _resolve_folder(path)
    skipped: SkippedFileReasons = []
    files_by_class = _list_files_by_class(root, skipped, classes)
    names = [to_printable(name) for name in files_by_class if name]
    numbered = classes_from_label_names(names)
    labeled_files = [
        (
            _readable_image_files(files, skipped),
            numbered.index(_name_without_leading_zeros(to_printable(name), numbered)) if name else -1,
        )
        for name, files in files_by_class.items()
    ]
    interleaved = _interleave_classes(labeled_files)
    if not interleaved:
        raise DataError(_no_readable_images_text(root, skipped))
    label_names = {numbered.index(_name_without_leading_zeros(name, numbered)): name for name in names}
    dataset = Folder(root, interleaved, tuple(numbered), pixels, skipped, label_names)
    return dataset if classes is None else dataset.relabeled_by_classes(classes)


def folder_with_warning(path: str | os.PathLike[str], like: Inputs | Box) -> Folder:
    """As `folder`, for callers that know the path alone: what is left out is warned of. Raises DataError."""
    images = folder(path, like)
    if n := len(images.skipped):
        files, (first, reason) = "a file is" if n == 1 else f"{n} files are", images.skipped[0]
        warn(f"{files} left out of {images.name}: {to_printable(first.name)}: {reason}{', ...' * (n > 1)}; "
             "see ub.data.folder(path, box).skipped")  # fmt: skip
    return images


def single_image(path: str | os.PathLike[str], like: Inputs | Box, classes: Sequence[str] | None = None) -> Folder:
    """One image file as data without labels. Raises DataError."""
    file, inputs = Path(path), resolve_classes_and_inputs(like, classes)[1]
    if reason := image_files.unreadable_file_reason(file):
        raise DataError(f"can't read {to_printable(str(file))}: {reason}")
    return Folder(file, [(file, -1)], (), require_pixels(inputs), [])


def _name_without_leading_zeros(name: str, numbered: Sequence[str]) -> str:
    """The name as it is numbered: 7 of 007 among numbers."""
    return name if name in numbered else str(int(name))


def _resolve_folder(path: str | os.PathLike[str]) -> Path:
    root = expand_home(path)
    if os.path.isdir(root):
        return root
    if os.path.exists(root):
        raise DataError(f"{root} is a file; wanted the folder that holds the images, such as {root.parent}")
    raise DataError(missing_path_text(root, "folder"))


def _list_files_by_class(
    root: Path, skipped: SkippedFileReasons, classes: Sequence[str] | None
) -> dict[str, list[Path]]:
    """Files by the name of their class folder; of a flat folder by the empty name. Raises DataError for splits."""
    entries = _list_visible_entries(root, skipped)
    subfolders = [p for p in entries if os.path.isdir(p) and not _is_same_folder(p, root)]
    _refuse_split_folders(root, subfolders, classes)
    order = sort_names_naturally([p.name for p in subfolders])
    subfolders.sort(key=lambda p: order.index(p.name))
    files_by_class = {p.name: list(_walk_files(p, skipped, {os.path.realpath(root)})) for p in subfolders}
    loose_files = [p for p in entries if not os.path.isdir(p)]
    if not any(files_by_class.values()):
        return {"": loose_files}
    skipped += [(p, "outside the class folders, so without a class") for p in loose_files]
    skipped += [(p, "a class folder without files") for p in subfolders if not files_by_class[p.name]]
    return files_by_class


def _refuse_split_folders(root: Path, subfolders: list[Path], classes: Sequence[str] | None) -> None:
    """Raise DataError where the subfolders are splits, such as train and val, with the classes inside them."""
    if not subfolders or _are_all_class_names([p.name for p in subfolders], classes):
        return
    inner = [frozenset(p.name for p in _list_visible_entries(folder, []) if os.path.isdir(p)) for folder in subfolders]
    has_own_images = any(is_image_name(p) for folder in subfolders for p in _list_visible_entries(folder, []))
    same_classes = len(inner) > 1 and bool(inner[0]) and len(set(inner)) == 1 and not has_own_images
    named_as_splits = all(p.name.casefold() in SPLIT_FOLDER_NAMES for p in subfolders) and any(inner)
    if not (same_classes or named_as_splits):
        return
    with_classes = [folder for folder, names in zip(subfolders, inner, strict=True) if names]
    rank = {name: i for i, name in enumerate(SPLIT_FOLDER_NAMES)}
    suggested = min(with_classes, key=lambda p: rank.get(p.name.casefold(), len(rank)))
    names = ", ".join(to_printable(p.name) for p in subfolders[:MAX_LISTED_SPLITS])
    inside = ", ".join(sorted(map(to_printable, inner[subfolders.index(suggested)]))[:MAX_LISTED_SPLITS])
    what = f"the subfolders of {to_printable(str(root))} ({names}) hold the same subfolders ({inside})"
    if not same_classes:
        what = f"the subfolders of {to_printable(str(root))} ({names}) are named as the splits of a data set"
    advice = f"give the folder of one split, {to_printable(str(suggested))}"
    raise DataError(f"{what}, so they are not classes: {advice}. If they are classes, name them: --classes (classes=)")


def is_image_name(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions()


def _are_all_class_names(names: list[str], classes: Sequence[str] | None) -> bool:
    """Whether all are names of the given classes."""
    if classes is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnboxedWarning)  # a guess is no match
            match_label_names_to_classes(names, classes)
    except (DataError, UnboxedWarning):
        return False
    return True


def _is_same_folder(path: Path, root: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(root)


def _list_visible_entries(path: Path, skipped: SkippedFileReasons) -> list[Path]:
    """The content of a folder, by name, without hidden and system files."""
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        skipped.append((path, f"may not be read: {error.strerror}"))
        return []
    return [p for p in entries if not p.name.startswith(".") and p.name.lower() not in SYSTEM_FILE_NAMES]


def _walk_files(path: Path, skipped: SkippedFileReasons, visited: set[str]) -> Iterator[Path]:
    """All files below a folder. Links are followed, but into no folder twice: they may be circular."""
    real_path = os.path.realpath(path)
    if real_path in visited:
        skipped.append((path, "leads to a folder that was read already"))
        return
    visited.add(real_path)
    for p in _list_visible_entries(path, skipped):
        if os.path.isdir(p):
            yield from _walk_files(p, skipped, visited)
        else:
            yield p


def _readable_image_files(files: list[Path], skipped: SkippedFileReasons) -> list[Path]:
    """The files that may be images; the others are added to the skipped ones."""
    faults = [image_files.unreadable_file_reason(p) for p in files]
    skipped += [(p, reason) for p, reason in zip(files, faults, strict=True) if reason]
    return [p for p, why in zip(files, faults, strict=True) if not why]


def _interleave_classes(labeled_files: list[tuple[list[Path], int]]) -> list[tuple[Path, int]]:
    """Files with their labels, the classes interleaved, so that the first n examples are of all classes."""
    sort_keys = [
        ((i + 0.5) / len(files), class_index, p) for files, class_index in labeled_files for i, p in enumerate(files)
    ]
    return [(path, label) for _, label, path in sorted(sort_keys)]


def _no_readable_images_text(root: Path, skipped: SkippedFileReasons) -> str:
    if not skipped:
        return f"the folder {root} is empty; wanted images, or one subfolder of images a class"
    message = "; ".join(f"{to_printable(path.name)}: {reason}" for path, reason in skipped[:3])
    rest_note = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"the folder {root} holds no image that can be read ({message}{rest_note})"
