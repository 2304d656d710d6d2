"""Descriptions of values that are the same in another process, to tell whether a checkpoint is of the same call.

A function of an installed package is described by its name, a user's function by its code with all that it refers to:
defaults, closures, the globals that it names. Other objects are described by what a pickle of them would contain.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Set
from copyreg import __newobj__  # type: ignore[attr-defined]
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

from ..atomic_write import encode_utf8
from ..box import Box
from ..checkpointing import cast_for_comparison, tensor_digest, weights_digest
from ..errors import InputError

OWN_PACKAGE_NAME = __name__.partition(".")[0]
PYTHON_INSTALL_FOLDERS = tuple(
    Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
MAX_UNHASHED_REPR_CHARS = 400  # characters; the rest becomes a digest
N_DIGEST_CHARS = 16  # of a digest
ATOMIC_TYPES = (type(None), type(...), bool, int, float, complex, str, bytes)


def stable_repr(value: object) -> str:
    """The description. Raises InputError for what cannot be compared: a lock, a file, a running generator."""
    try:
        text = _StableReprBuilder().repr_of_value(value)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:  # too deep; an empty closure cell
        raise InputError(f"a {type(value).__qualname__} can't be compared with that of another run") from error
    return (
        text if len(text) <= MAX_UNHASHED_REPR_CHARS else f"{text[:MAX_UNHASHED_REPR_CHARS]}... {_short_digest(text)}"
    )


def checkpoint_repr(method_name: str, value: object, remedy: str) -> str:
    """As `stable_repr`, for a setting of a task with a checkpoint. Raises InputError that names it and the remedy."""
    try:
        return stable_repr(value)
    except InputError as error:
        raise InputError(f"{method_name} can't go on from a checkpoint: {error}; {remedy}") from None


def box_checkpoint_settings(box: Box) -> dict[str, Any]:
    """The settings of a box that a checkpoint stores, besides the outputs: see `cast_outputs_for_comparison`."""
    return {
        "weights": weights_digest(box.model), "inputs": stable_repr(box.inputs), "outputs": box.outputs,
        "mode": box.mode, "autocast": str(box.autocast),
    }  # fmt: skip


def cast_outputs_for_comparison(box: Box, values: Tensor) -> Tensor:
    """Logits or scores of a box, to be compared with those of another run by `is_equal_up_to_rounding`."""
    return cast_for_comparison(values, box.autocast or box.model_dtype)


class _StableReprBuilder:
    """The description of one value. A repeated function or class, and an object inside itself, is a number."""

    def __init__(self) -> None:
        self.number_by_id = dict[
            int, tuple[int, object]
        ]()  # {id: number, and the object, that its id may not be used again}

    def repr_of_value(self, value: Any) -> str:
        if isinstance(value, ATOMIC_TYPES):
            return repr(value)
        if isinstance(value, Tensor):
            return f"tensor {tuple(value.shape)} {value.dtype} {tensor_digest(value)[:N_DIGEST_CHARS]}"
        if isinstance(value, ModuleType):
            return value.__name__
        if id(value) in self.number_by_id:
            return f"#{self.number_by_id[id(value)][0]}"
        self.number_by_id[id(value)] = len(self.number_by_id), value
        text = (
            self._repr_collection(value)
            if isinstance(value, (Mapping, tuple, list, Set))
            else self._repr_callable_or_object(value)
        )
        if not isinstance(value, (FunctionType, type)):  # of which each is there once
            del self.number_by_id[id(value)]
        return text

    def _repr_collection(self, value: Any) -> str:
        collection_type = type(value)
        if collection_type.__module__ not in ("builtins", "collections"):
            return self._repr_object(value)
        if isinstance(value, Mapping):
            return f"{{{self._repr_named_values(value, ': ')}}}"
        element_reprs = [self.repr_of_value(v) for v in value]
        ordered = sorted(element_reprs) if isinstance(value, Set) else element_reprs
        return f"{collection_type.__name__}({', '.join(ordered)})"

    def _repr_callable_or_object(self, value: Any) -> str:
        if isinstance(value, partial):
            arguments = [
                *map(self.repr_of_value, value.args),
                *([self._repr_named_values(value.keywords)] if value.keywords else []),
            ]
            return f"partial({', '.join([self.repr_of_value(value.func), *arguments])})"
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type(None))):
            return _qualified_name(value)
        if isinstance(value, FunctionType):
            return self._repr_function(value)
        if isinstance(value, CodeType):
            return _short_digest(self.repr_of_value((value.co_code, value.co_consts, value.co_names)))
        if isinstance(value, type):
            return self._repr_class(value)
        return self._repr_object(value)

    def _repr_named_values(self, values: Mapping[Any, Any], separator: str = "=") -> str:
        value_by_name = {k if isinstance(k, str) else self.repr_of_value(k): v for k, v in values.items()}
        return ", ".join(f"{k}{separator}{self.repr_of_value(v)}" for k, v in sorted(value_by_name.items()))

    def _repr_function(self, function: FunctionType) -> str:
        closure = {
            k: c.cell_contents for k, c in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        }
        if _is_installed(function):
            wrapped = getattr(function, "__wrapped__", None)
            if isinstance(wrapped, FunctionType):  # a decorator of a package around a function that may be a user's
                return self._repr_function(wrapped)
            return _qualified_name(function) + (f"({self._repr_named_values(closure)})" if closure else "")
        closure |= {
            k: function.__globals__[k] for k in _referenced_names(function.__code__) if k in function.__globals__
        }
        state = {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__, **closure}
        return (
            f"{_qualified_name(function)} "
            f"{self.repr_of_value(function.__code__)}"
            f"({self._repr_named_values({k: v for k, v in state.items() if v is not None})})"
        )

    def _repr_class(self, cls: type) -> str:
        """The name of a class; with the code of its methods if it is a user's."""
        if _is_installed(cls):
            return _qualified_name(cls)
        members = {k: getattr(v, "__func__", v) for k, v in vars(cls).items()}
        functions = {k: v for k, v in members.items() if isinstance(v, FunctionType)}
        return f"{_qualified_name(cls)} " + _short_digest(
            self.repr_of_value([*map(self.repr_of_value, cls.__bases__), self._repr_named_values(functions)])
        )

    def _repr_object(self, value: object) -> str:
        """By its pickle: its constructor with arguments, and its state."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # an object may raise anything
            raise InputError(f"a {type(value).__qualname__} can't be compared with that of another run") from error
        if isinstance(reduced, str):
            return f"{_qualified_name(type(value))} {reduced}"
        constructor, args, *state = reduced
        callee, *args = (*args,) if constructor is __newobj__ else (constructor, *args)
        contents = [*args, *(s for s in state if s is not None)]
        parts = [self._repr_named_values(s) if type(s) is dict else self.repr_of_value(s) for s in contents]
        return f"{self.repr_of_value(callee)}({', '.join(parts)})"


def _is_installed(value: FunctionType | type) -> bool:
    """Whether it is from this library, Python or an installed package, identified by its name."""
    if value.__module__.partition(".")[0] in (OWN_PACKAGE_NAME, "builtins"):
        return True
    code = getattr(value, "__code__", None)
    file = code.co_filename if code else getattr(_module_of(value), "__file__", None)
    return file is not None and any(folder in Path(file).parents for folder in PYTHON_INSTALL_FOLDERS)


def _module_of(value: object) -> ModuleType | None:
    return sys.modules.get(getattr(value, "__module__", ""))


def _qualified_name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _referenced_names(code: CodeType) -> Iterator[str]:
    """The names in a function's code, including nested functions."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _referenced_names(inner)


def _short_digest(text: str) -> str:
    return hashlib.sha256(encode_utf8(text)).hexdigest()[:N_DIGEST_CHARS]
