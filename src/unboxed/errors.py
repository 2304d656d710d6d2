"""Every error that Unboxed raises on purpose: each says what came, what was wanted and what to do next."""

from __future__ import annotations

import sys
import warnings


class UnboxedError(Exception):
    """The root of all; each error below is also the fitting builtin."""


class InputError(UnboxedError, ValueError):
    """An input, label or setting that can't be right: shape, range, NaN, a class that the model doesn't have."""


class LayerError(UnboxedError, LookupError):
    """A layer address that names nothing, or more than one thing."""


class OutputError(UnboxedError, TypeError):
    """The model's output can't be read as what the method needs."""


class NaNError(OutputError):
    """The model gives NaN for some `rows`: no class, though argmax takes it for one. Or a score to be attributed is NaN
    or infinite.
    """

    def __init__(self, message: str, rows: list[int] | None = None, what: str = "") -> None:
        super().__init__(message)
        self.rows, self.what = rows or [], what


class RuleError(UnboxedError, RuntimeError):
    """A backward rule that would not reach every op it is meant for."""


class DataError(UnboxedError, ValueError):
    """A data set that is empty, broken or not what it claims to be."""


class BrokenImageError(DataError):
    """An image file that can't be decoded. Passes over data leave such an example out, and list it."""


class ModelError(UnboxedError, ValueError):
    """A model or its weights can't be loaded."""


class MissingError(UnboxedError, ImportError):
    """An optional package is not installed."""


class WriteError(UnboxedError, OSError):
    """A result can't be written where it should go."""


class UnboxedWarning(UserWarning):
    """Something a reader of the picture must know; nothing was refused."""


INTERNAL_PACKAGES = frozenset({"unboxed", "torch", "contextlib", "functools"})
"""Top-level packages whose frames are never what a warning is about: ours, and those that we call ourselves through."""


def warn(message: str) -> None:
    """Issue an UnboxedWarning at the line that called into Unboxed: the innermost frame of the caller's own code.

    As `warnings.warn(skip_file_prefixes=...)` of Python 3.12, which 3.11 does not have.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _module_name(frame.f_globals).partition(".")[0] in INTERNAL_PACKAGES:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    location = frame.f_code.co_filename, frame.f_lineno, _module_name(frame.f_globals)
    warnings.warn_explicit(message, UnboxedWarning, *location, registry)


def _module_name(frame_globals: dict[str, object]) -> str:
    """The dotted name of a frame's module; of one that runs as a script by `python -m`, too."""
    spec = frame_globals.get("__spec__")
    return str(getattr(spec, "name", None) or frame_globals.get("__name__", ""))
