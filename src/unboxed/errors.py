"""Every error that Unboxed raises on purpose: each says what came, what was wanted and what to do next."""


class UnboxedError(Exception):
    """The root of all; each error below is also the fitting builtin."""


class InputError(UnboxedError, ValueError):
    """An input, label or setting that can't be right: shape, range, NaN, a class that the net doesn't have."""


class LayerError(UnboxedError, LookupError):
    """A layer address that names nothing, or more than one thing."""


class OutputError(UnboxedError, TypeError):
    """The net's output can't be read as what the method needs."""


class NaNError(OutputError):
    """The model gives NaN for some `rows`, and NaN is no answer, though argmax takes it for a class."""

    def __init__(self, message: str, rows: list[int] | None = None, what: str = "") -> None:
        super().__init__(message)
        self.rows, self.what = rows or [], what


class RuleError(UnboxedError, RuntimeError):
    """A backward rule that would not reach every op it is meant for."""


class DataError(UnboxedError, ValueError):
    """A data set that is empty, broken or not what it claims to be."""


class ModelError(UnboxedError, ValueError):
    """A model or its weights can't be loaded."""


class MissingError(UnboxedError, ImportError):
    """An optional package is not installed."""


class WriteError(UnboxedError, OSError):
    """A result can't be written where it should go."""


class UnboxedWarning(UserWarning):
    """Something a reader of the picture must know; nothing was refused."""
