"""A few inputs of a model from a path: image files, NumPy arrays, rows of a table, a folder of these."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..atomic_write import to_printable
from ..box import Box
from ..data.folders import folder
from ..data.labeled_files import LabeledFiles
from ..data.rows import select_feature_columns
from ..data.single import image
from ..data.table_files import read_columns
from ..data.tables import TABLE_SUFFIXES
from ..errors import DataError, InputError
from ..inputs.examples import to_batch
from ..inputs.features import Features
from ..inputs.frames import label_column_or_empty
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels

ARRAY_SUFFIXES = (".npy", ".npz")


class NamedInputs(NamedTuple):
    """Inputs that were read, and what each is called."""

    x: Tensor  # (N, ...)
    names: tuple[str, ...]
    label_name: str = ""  # of the column of labels of a table, where it is known


def read_inputs(path: str | os.PathLike[str], box: Box, max_examples: int, *, label: str | None = None) -> NamedInputs:
    """The first inputs in a file or a folder, as the box takes them.

    A model of images takes an image file; one of tables a CSV, TSV or Parquet file with its columns; both, and models
    of signals and volumes, a .npy or .npz file of one input or a batch; each a folder of such files.

    Args:
        path: The file or the folder.
        box: The opened model.
        max_examples: Use only the first of the examples.
        label: The column of labels of a table; None takes one called so.

    Returns:
        The inputs (N, ...), their names (that of the file, with the row where it has several), and the name of the
        column of labels.

    Raises:
        DataError: for a file that cannot be read, or holds something else than the model takes.
        InputError: for inputs of another shape or range, and for models of several inputs.

    Example:
        >>> import numpy as np, tempfile, unboxed as ub
        >>> from unboxed.loading.input_files import read_inputs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/digits.npy", np.zeros((3, 1, 28, 28), np.float32))
        ...     read_inputs(f"{folder}/digits.npy", ub.load("zoo:digits-cnn"), 2).names
        ('digits-0', 'digits-1')
    """
    path = Path(path)
    if isinstance(box.inputs, MultiInput):
        raise InputError("this model takes several inputs, which no one file holds: call its methods in Python")
    if path.is_dir():
        return _read_folder(path, box, max_examples)
    if isinstance(box.inputs, Features) and path.suffix.lower() in TABLE_SUFFIXES:
        return _read_rows(path, box, box.inputs.names, max_examples, label)
    if label is not None:
        raise DataError(f"label={label!r} names a column of a table ({', '.join(TABLE_SUFFIXES)}); got {path}")
    x = _read_file(path, box, max_examples)
    return NamedInputs(x, _names_of_rows(path, len(x)))


def _read_rows(path: Path, box: Box, names: Sequence[str], max_examples: int, label: str | None) -> NamedInputs:
    columns = read_columns(path, max_examples)
    rows = select_feature_columns(columns, names, path)
    x = _validate_inputs_of_file(rows, path, box, max_examples)
    return NamedInputs(x, _names_of_rows(path, len(x)), label_column_or_empty(path, columns, names, label))


def _names_of_rows(path: Path, n: int) -> tuple[str, ...]:
    stem = to_printable(path.stem)
    return (stem,) if n == 1 else tuple(f"{stem}-{i}" for i in range(n))


def _read_file(path: Path, box: Box, max_examples: int) -> Tensor:
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return read_array(path, box)[:max_examples]
    if isinstance(box.inputs, Pixels) and box.inputs.n_axes == 2:
        return image(path, box)
    raise DataError(f"{to_printable(str(path))}: {_accepted_files_text(box)}")


def _accepted_files_text(box: Box) -> str:
    """The files that a model takes."""
    if isinstance(box.inputs, Features):
        return "this model takes the rows of a table: a CSV, TSV or Parquet file, or a .npy or .npz array"
    if isinstance(box.inputs, Pixels) and box.inputs.n_axes == 2:
        return "this model takes images: image files, or .npy or .npz arrays"
    return f"this model takes arrays of the shape {_shape_of_one_input(box)}: a .npy or .npz file"


def read_array(path: Path, box: Box) -> Tensor:
    """The inputs (N, ...) in a .npy or .npz file of one input or a batch. Raises DataError and InputError."""
    return _validate_inputs_of_file(_array_to_batch(_load_array(path), box), path, box)


def _validate_inputs_of_file(x: Tensor, path: Path, box: Box, max_examples: int | None = None) -> Tensor:
    try:
        return box.validate_inputs(x[:max_examples])
    except InputError as error:
        raise InputError(f"{to_printable(str(path))}: {error}") from error


# -- a folder ----------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, box: Box, max_examples: int) -> NamedInputs:
    """Images of a folder as `data.folder` finds them; else the arrays or tables in it, by name."""
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _accepted_suffixes(box) and p.is_file())
    if not files and isinstance(box.inputs, Pixels) and box.inputs.n_axes == 2:
        return _first_images(folder(path, box.inputs), max_examples)
    parts = list[tuple[Tensor, tuple[str, ...]]]()
    while files and sum(len(x) for x, _ in parts) < max_examples:
        read = read_inputs(files.pop(0), box, max_examples - sum(len(x) for x, _ in parts))
        parts.append((read.x, read.names))
    if not parts:
        raise DataError(f"the folder {to_printable(str(path))} holds no such files: {_accepted_files_text(box)}")
    return NamedInputs(
        torch.cat([x for x, _ in parts]), _make_names_unique([name for _, names in parts for name in names])
    )


def _accepted_suffixes(box: Box) -> tuple[str, ...]:
    return (*ARRAY_SUFFIXES, *(TABLE_SUFFIXES if isinstance(box.inputs, Features) else ()))


def _first_images(images: LabeledFiles, max_examples: int) -> NamedInputs:
    """The first images that can be read, each called by its file; by class folder and file where there are several."""
    examples = list(islice(images, max_examples))
    broken = {path for path, _ in images.skipped}
    paths = [p for p in images.paths if p not in broken][: len(examples)]
    stems = [to_printable(p.stem) for p in paths]
    if len(set(stems)) < len(stems):
        stems = [to_printable("-".join(p.relative_to(images.root).with_suffix("").parts)) for p in paths]
    return NamedInputs(torch.stack([x for x, _ in examples]), _make_names_unique(stems))


def _make_names_unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where files differ by their suffix alone."""
    return tuple(names) if len(set(names)) == len(names) else tuple(f"{name}-{i}" for i, name in enumerate(names))


# -- a file ------------------------------------------------------------------------------------------------------------


def _load_array(path: Path) -> NDArray[Any]:
    """The one array of a .npy or .npz file. Nothing in it is unpickled. Raises DataError."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"": loaded}
    except Exception as error:  # a damaged file can make the reader raise anything
        raise DataError(f"{to_printable(str(path))} is no sound array of numbers: {error}") from error
    if len(arrays) != 1:
        names = ", ".join(map(repr, arrays)) or "none"
        raise DataError(f"{to_printable(str(path))} must hold one array of inputs; it holds {names}")
    (array,) = arrays.values()
    return np.asarray(array)


def _array_to_batch(array: NDArray[Any], box: Box) -> Tensor:
    """An array of one input or of a batch as (N, ...); a batch of one channel may leave out its axis."""
    shape = _shape_of_one_input(box)
    if isinstance(box.inputs, Pixels) and array.shape[1:] == shape[1:] and shape[0] == 1 < len(array):
        array = array[:, None]
    if isinstance(box.inputs, Pixels) and box.inputs.n_axes == 2:
        return image(array, box)
    is_one = array.shape in (shape, *[shape[1:]] * (shape[0] == 1 and len(shape) > 1))
    return torch.as_tensor(to_batch(array.reshape(1, *shape) if is_one else array, box.inputs))


def _shape_of_one_input(box: Box) -> tuple[int, ...]:
    """The shape of one input as it is given: of a signal (C, T)."""
    return box.inputs.own_shape if isinstance(box.inputs, Pixels) else box.inputs.shape
