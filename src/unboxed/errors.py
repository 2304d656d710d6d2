"""The errors of Unboxed: each says what came, what was wanted and what to do next."""

from __future__ import annotations

import sys
import warnings


class UnboxedError(Exception):
    """The base class of all errors here; each is also the fitting builtin."""


class InputError(UnboxedError, ValueError):
    """An input, label or setting is invalid: shape, range, NaN, a class that the model does not have."""


class ArgumentError(InputError, TypeError):
    """A call does not fit the function: a name that it does not take, or an argument that it needs and did not get."""


class LayerError(UnboxedError, LookupError):
    """A layer address names no layer, or more than one; or the layer does not suit the method."""


class HeadOrderUnknownError(LayerError):
    """Attention maps of several examples and heads are in axes of which either may be the examples'."""


class OutputError(UnboxedError, TypeError):
    """The model's output is not what the method needs."""


class NaNError(OutputError):
    """The model gives NaN for some examples, or a score to be attributed is NaN or infinite."""

    def __init__(self, message: str, rows: list[int] | None = None, what: str = "") -> None:
        super().__init__(message)
        self.rows, self.what = rows or [], what


class RuleError(UnboxedError, RuntimeError):
    """A backward rule cannot be applied to every op that it is for."""


class DataError(UnboxedError, ValueError):
    """A data set is empty, broken or of another format than expected."""


class UnclearLabelsError(DataError):
    """No column of a table, or one of several, has the labels."""


class BrokenImageError(DataError):
    """An image file cannot be decoded. Methods that read a data set skip such an example, and list it."""


class ModelError(UnboxedError, ValueError):
    """A model or its weights cannot be loaded."""


class MissingPackageError(UnboxedError, ImportError):
    """An optional package is not installed."""


class WriteError(UnboxedError, OSError):
    """A result cannot be written to its path."""


class UnboxedWarning(UserWarning):
    """Something that matters for reading a result."""


PACKAGES_SKIPPED_IN_WARNING_LOCATION = frozenset({"unboxed", "torch", "contextlib", "functools"})
"""Top-level packages whose frames a warning is never attributed to: ours, and those between our own frames."""


def warn(message: str) -> None:
    """Issue an UnboxedWarning that names the line that called into Unboxed, in the caller's own code.

    As `warnings.warn(skip_file_prefixes=...)` of Python 3.12.
    """
    frame = sys._getframe(1)
    while (
        frame.f_back is not None
        and _module_name_of_frame(frame.f_globals).partition(".")[0] in PACKAGES_SKIPPED_IN_WARNING_LOCATION
    ):
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    location = frame.f_code.co_filename, frame.f_lineno, _module_name_of_frame(frame.f_globals)
    warnings.warn_explicit(message, UnboxedWarning, *location, registry)


def _module_name_of_frame(frame_globals: dict[str, object]) -> str:
    """The dotted name of a frame's module, also of one run by `python -m`."""
    spec = frame_globals.get("__spec__")
    return str(getattr(spec, "name", None) or frame_globals.get("__name__", ""))
