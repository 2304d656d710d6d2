"""A data spec: `digits`, `mnist`, `fashion-mnist` (with `:train` or `:test`), a folder, or a factory of a Dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset, TensorDataset

from .. import data as sets
from ..box import Box
from ..data.folders import is_image_name, single_image
from ..data.tables import TABLE_SUFFIXES, open_table
from ..data.texts import TEXT_SUFFIXES, open_texts
from ..engine.read.class_labels import class_names_for_matching, has_class_labels
from ..errors import DataError, UnclearLabelsError
from ..inputs.base import Inputs
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from ..validation import add_sentence, missing_path_text, nearest_names, suggestion_text
from .factories import build_from_spec
from .input_files import ARRAY_SUFFIXES, read_array

DATA_SPEC_ADVICE = (
    "data are digits, mnist or fashion-mnist (:train, :test), a folder of images, an image, a CSV, TSV or Parquet file "
    "of (file, label), a .npy or .npz array, or module:factory of a Dataset"
)
DATASET_NAMES = ("digits", "mnist", "fashion-mnist")
SPLIT_BY_SPEC_SUFFIX: dict[str, Literal["all", "train", "test"]] = {"": "all", "train": "train", "test": "test"}


def data(
    spec: str,
    like: Inputs | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    quiet: bool = False,
) -> Dataset[Any]:
    """The data set that a text names.

    Args:
        spec: "digits", "mnist", "fashion-mnist" (":train" or ":test" behind it), a folder of images (with a subfolder
            per class, or flat), an image file, a CSV, TSV or Parquet file of (file, label), or "module:factory" of a
            torch Dataset.
        like: What images of a folder are resized and cropped to.
        root: Folder of the MNIST files. None takes the user's cache folder.
        classes: Class names; a folder's subfolders are matched to them.
        quiet: No progress bar while downloading.

    Returns:
        A Dataset of (image, label).

    Raises:
        DataError: for what names no data, and for broken files.

    Example:
        >>> from unboxed import loading
        >>> len(loading.data("digits:test"))
        359
    """
    spec = str(spec)
    name, _, split = spec.partition(":")
    if name in DATASET_NAMES and split in SPLIT_BY_SPEC_SUFFIX:
        return _load_named_dataset(name, split, root, quiet)
    if Path(spec).is_dir():
        return _open_files_dataset(sets.folder, spec, like, classes)
    if _is_table_file(spec):
        return _open_files_dataset(open_table, spec, like, classes)
    if Path(spec).is_file() and is_image_name(Path(spec)):
        return _open_files_dataset(single_image, spec, like, classes)
    if _is_factory_spec(spec):
        return _wrap_factory_dataset(build_from_spec(spec, DataError), spec, like, classes)
    raise DataError(_unknown_data_text(spec, name))


def dataset_with_model_classes(
    spec: str,
    box: Box,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    quiet: bool = False,
    label: str | None = None,
    keep_unlabeled: bool = False,
) -> Dataset[Any]:
    """The data set that a text names, with labels that mean the model's classes.

    Args:
        spec: As in `data`, or a .npy or .npz array of inputs.
        box: The opened model: images are resized for it, and subfolders are matched to its class names.
        root: Folder of the MNIST files. None takes the user's cache folder.
        classes: Class names, where the model has none.
        quiet: No progress bar while downloading.
        label: The column of labels of a table, also of texts; None takes one called so.
        keep_unlabeled: Keep rows and texts without a label, which are left out with a warning where others have one.

    Returns:
        A Dataset of (image, label). That of a factory is as it is made where labels are no classes: for regression,
        yes/no labels and maps.

    Raises:
        DataError: also for subfolders that are not the model's classes.

    Example:
        >>> import unboxed as ub
        >>> from unboxed import loading
        >>> len(loading.dataset_with_model_classes("digits:test", ub.load("zoo:digits-cnn")))
        359
    """
    if isinstance(box.inputs, Tokens) and Path(spec).suffix.lower() in TEXT_SUFFIXES:
        return open_texts(spec, box, classes, label=label, keep_unlabeled=keep_unlabeled)
    if label is not None and not _is_table_file(spec):
        raise UnclearLabelsError(f"label={label!r} names a column of a table ({', '.join(TABLE_SUFFIXES)}); got {spec}")
    if Path(spec).suffix.lower() in ARRAY_SUFFIXES and Path(spec).is_file():
        return TensorDataset(box.restore_structure(read_array(Path(spec), box)))
    if _is_factory_spec(spec) and not has_class_labels(box):
        return _wrap_factory_dataset(build_from_spec(spec, DataError), spec, is_wrapped=False)
    names_files = Path(spec).is_dir() or _is_table_file(spec)
    known_classes = class_names_for_matching(box) if names_files else classes
    if _is_table_file(spec):
        return open_table(spec, box, known_classes, label, keep_unlabeled=keep_unlabeled)
    return data(spec, like=box.inputs, root=root, classes=known_classes, quiet=quiet)


def _load_named_dataset(name: str, split: str, root: str | Path | None, quiet: bool) -> Dataset[Any]:
    if name == "digits":
        return sets.digits(SPLIT_BY_SPEC_SUFFIX[split])
    load_split = sets.mnist if name == "mnist" else sets.fashion_mnist
    return load_split(SPLIT_BY_SPEC_SUFFIX[split], root, quiet=quiet)


def _is_factory_spec(spec: str) -> bool:
    """Whether it names none of the above but has a colon."""
    is_path = Path(spec).is_dir() or _is_table_file(spec)
    return ":" in spec and spec.partition(":")[0] not in DATASET_NAMES and not is_path


def _is_table_file(spec: str) -> bool:
    return spec.lower().endswith(TABLE_SUFFIXES) and Path(spec).is_file()


def _open_files_dataset(
    open_files: Callable[..., Dataset[Any]], spec: str, like: Inputs | None, classes: Sequence[str] | None
) -> Dataset[Any]:
    if like is None:
        raise DataError(f"the images in {spec} need a size: pass like=box.inputs (on the command line: --shape)")
    return open_files(spec, like=like, classes=classes)


def _wrap_factory_dataset(
    built: Any, spec: str, like: Inputs | None = None, classes: Sequence[str] | None = None, *, is_wrapped: bool = True
) -> Dataset[Any]:
    if not hasattr(built, "__getitem__") or not hasattr(built, "__len__"):
        raise DataError(f"{spec} made a {type(built).__name__}; wanted a torch Dataset of (image, label) with a length")
    if len(built) == 0:
        raise DataError(f"{spec} made an empty data set")
    name = spec.rpartition(":")[2]
    if not is_wrapped or (like is not None and not isinstance(like, Pixels)):
        with suppress(AttributeError, TypeError):  # a list takes none
            built.name = getattr(built, "name", None) or name
        return built  # type: ignore[no-any-return]
    return sets.wrap(built, like=like, classes=classes, name=name)


def _unknown_data_text(spec: str, name: str) -> str:
    path = Path(spec)
    if path.is_file():
        return f"{spec} is a file, not data; {DATA_SPEC_ADVICE}"
    if name in DATASET_NAMES:
        return f"{spec!r}: {name} has the parts :train and :test"
    hint = f"{suggestion_text(name, DATASET_NAMES)} " if nearest_names(name, DATASET_NAMES) else ""
    return add_sentence(missing_path_text(spec, "data set and no folder"), f"{hint}{DATA_SPEC_ADVICE}")
