"""A data spec: `digits`, `mnist`, `fashion-mnist` (with `:train` or `:test`), a folder, or a factory of a Dataset."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from .. import data as sets
from ..box import Box
from ..data.folders import Folder, fitting
from ..errors import DataError, warn
from ..inputs import Inputs, Pixels
from .factories import build

KINDS = "data are digits, mnist or fashion-mnist (:train, :test), a folder of images, or module:factory of a Dataset"
NAMES = ("digits", "mnist", "fashion-mnist")
SPLITS: dict[str, Literal["all", "train", "test"]] = {"": "all", "train": "train", "test": "test"}


def data(
    spec: str,
    like: Inputs | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset[Any]:
    """The data set that `spec` names.

    `like` says what images of a folder become, `classes` what the labels are called (a folder's subfolders are matched
    to them); `root` is where the MNIST files lie. `mnist` is its test images, `digits` all of them. Raises DataError.
    """
    spec = str(spec)
    name, _, split = spec.partition(":")
    if name in NAMES and split in SPLITS:
        return _known(name, split, root)
    if Path(spec).is_dir():
        return _folder(spec, like, classes)
    if ":" in spec and name not in NAMES:
        return _wrapped(build(spec, DataError), spec, like, classes)
    raise DataError(_refusal(spec, name))


def data_for(spec: str, box: Box, root: str | Path | None = None, classes: Sequence[str] | None = None) -> Dataset[Any]:
    """The data set that `spec` names, with labels that mean the box's classes.

    Subfolders are matched to the classes by name. Where none fits and the classes have no names but numbers, as many
    subfolders as classes are taken in the order of their names, with a warning. Raises DataError for any others.
    """
    images = data(spec, like=box.inputs, root=root, classes=None if Path(spec).is_dir() else classes)
    if not isinstance(images, Folder) or not images.classes or box.outputs == "regression":
        return images
    found, known = images.classes, box.classes
    fit = fitting(found, known)
    if len(fit) == len(found):
        return data(spec, like=box.inputs, classes=known)
    if fit or len(found) != len(known) or known != tuple(map(str, range(len(known)))):
        raise DataError(_other_classes(spec, found, known, fit))
    said = f"the subfolders of {spec} are taken for the {len(known)} classes in the order of their names: "
    advice = "if the net has another order, give --classes (classes= in Python)"
    warn(f"{said}{_listed(found, numbered=True)}; {advice}")
    return images


def _other_classes(spec: str, found: Sequence[str], known: Sequence[str], fit: Sequence[str]) -> str:
    few = [name for name in found if name not in fit]
    which = f"the subfolders of {spec} ({_listed(found)}) are not"
    if fit:
        which = f"of the {len(found)} subfolders of {spec} {len(few)} ({_listed(few)}) are not among"
    todo = "say what the net's outputs are called, in their order: --classes (classes= in Python). Or rename the "
    todo += "subfolders, or put the images into one folder, without labels"
    return f"{which} the net's {len(known)} classes ({_listed(known)}); {todo}"


def _listed(names: Sequence[str], numbered: bool = False) -> str:
    said = [f"{i} is {name}" if numbered else name for i, name in enumerate(names[:5])]
    return ", ".join(said) + (f", and {len(names) - 5} more" if len(names) > 5 else "")


def _known(name: str, split: str, root: str | Path | None) -> Dataset[Any]:
    if name == "digits":
        return sets.digits(SPLITS[split])
    read = sets.mnist if name == "mnist" else sets.fashion_mnist
    return read(root, train=split == "train")


def _folder(spec: str, like: Inputs | None, classes: Sequence[str] | None) -> Dataset[Any]:
    if like is None:
        raise DataError(f"the images in {spec} need a size: pass like=box.inputs (on the command line: --shape)")
    return sets.folder(spec, like=like, classes=classes)


def _wrapped(made: Any, spec: str, like: Inputs | None, classes: Sequence[str] | None) -> Dataset[Any]:
    if not hasattr(made, "__getitem__") or not hasattr(made, "__len__"):
        raise DataError(f"{spec} made a {type(made).__name__}; wanted a torch Dataset of (image, label) with a length")
    if len(made) == 0:
        raise DataError(f"{spec} made an empty data set")
    if like is not None and not isinstance(like, Pixels):
        return made  # type: ignore[no-any-return]
    return sets.wrap(made, like=like, classes=classes, name=spec.rpartition(":")[2])


def _refusal(spec: str, name: str) -> str:
    path = Path(spec)
    if path.is_file():
        return f"{spec} is a file, not data; {KINDS}"
    if name in NAMES:
        return f"{spec!r}: {name} has the parts :train and :test"
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"there is no data set and no folder {spec!r}; {hint}{KINDS}"
