"""What a value is, in words that are the same in another process: to tell whether a saved work is of this very call.

A function of an installed package is its name, and one of the caller's own its code with all that it refers to: what
it was made with, its defaults, the globals that it names. Any other object is what a pickle of it would hold.
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
from ..checkpointing import tensor_digest, cast_for_comparison, weights_digest
from ..errors import InputError

OURS = __name__.partition(".")[0]
INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
LONGEST = 400  # characters, of which all beyond are a digest
DIGITS = 16  # of a digest
PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes)


def stable_repr(value: object) -> str:
    """The words. Raises InputError for what can't be compared with another: a lock, a file, a running generator."""
    try:
        words = _StableRepr().of(value)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:  # too deep; a tensor or a closure that holds nothing
        raise InputError(f"a {type(value).__qualname__} can't be compared with that of another run") from error
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}... {_sum(words)}"


def checkpoint_repr(what: str, value: object, remedy: str) -> str:
    """As `stable_repr`, of a setting of a work with a checkpoint. Raises InputError, which names it and the remedy."""
    try:
        return stable_repr(value)
    except InputError as error:
        raise InputError(f"{what} can't go on from a checkpoint: {error}; {remedy}") from None


def box_settings(box: Box) -> dict[str, Any]:
    """What a checkpoint says of the model it is of, beside what it answers: see `in_precision`."""
    return {
        "weights": weights_digest(box.model), "inputs": stable_repr(box.inputs), "outputs": box.outputs,
        "mode": box.mode, "autocast": str(box.autocast),
    }  # fmt: skip


def box_answers(box: Box, values: Tensor) -> Tensor:
    """Logits or scores of a box, to be compared with those of another run by `alike`."""
    return cast_for_comparison(values, box.autocast or box.model_dtype)


class _StableRepr:
    """One value's. A function or a class that comes again, and an object inside itself, is a number."""

    def __init__(self) -> None:
        self.seen = dict[int, tuple[int, object]]()  # {id: number, and the object, that its id may not be used again}

    def of(self, value: Any) -> str:
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return f"tensor {tuple(value.shape)} {value.dtype} {tensor_digest(value)[:DIGITS]}"
        if isinstance(value, ModuleType):
            return value.__name__
        if id(value) in self.seen:
            return f"#{self.seen[id(value)][0]}"
        self.seen[id(value)] = len(self.seen), value
        words = self._of_several(value) if isinstance(value, (Mapping, tuple, list, Set)) else self._of_one(value)
        if not isinstance(value, (FunctionType, type)):  # of which each is there once
            del self.seen[id(value)]
        return words

    def _of_several(self, value: Any) -> str:
        kind = type(value)
        if kind.__module__ not in ("builtins", "collections"):
            return self._object(value)
        if isinstance(value, Mapping):
            return f"{{{self._pairs(value, ': ')}}}"
        inside = [self.of(v) for v in value]
        return f"{kind.__name__}({', '.join(sorted(inside) if isinstance(value, Set) else inside)})"

    def _of_one(self, value: Any) -> str:
        if isinstance(value, partial):
            given = [*map(self.of, value.args), *([self._pairs(value.keywords)] if value.keywords else [])]
            return f"partial({', '.join([self.of(value.func), *given])})"
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type(None))):
            return _named(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, CodeType):
            return _sum(self.of((value.co_code, value.co_consts, value.co_names)))
        if isinstance(value, type):
            return self._class(value)
        return self._object(value)

    def _pairs(self, values: Mapping[Any, Any], sign: str = "=") -> str:
        named = {k if isinstance(k, str) else self.of(k): v for k, v in values.items()}
        return ", ".join(f"{k}{sign}{self.of(v)}" for k, v in sorted(named.items()))

    def _function(self, f: FunctionType) -> str:
        held = {k: c.cell_contents for k, c in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)}
        if _installed(f):
            return _named(f) if not held or hasattr(f, "__wrapped__") else f"{_named(f)}({self._pairs(held)})"
        held |= {k: f.__globals__[k] for k in _names(f.__code__) if k in f.__globals__}
        given = {"defaults": f.__defaults__, "keyword defaults": f.__kwdefaults__, **held}
        return f"{_named(f)} {self.of(f.__code__)}({self._pairs({k: v for k, v in given.items() if v is not None})})"

    def _class(self, kind: type) -> str:
        """Its name; with the code of what the caller's own one does."""
        if _installed(kind):
            return _named(kind)
        own = {k: getattr(v, "__func__", v) for k, v in vars(kind).items()}
        code = {k: v for k, v in own.items() if isinstance(v, FunctionType)}
        return f"{_named(kind)} {_sum(self.of([*map(self.of, kind.__bases__), self._pairs(code)]))}"

    def _object(self, value: object) -> str:
        """By how it is pickled: what makes it, of what, and the state that is then put into it."""
        try:
            made = value.__reduce_ex__(4)
        except Exception as error:  # an object may raise anything
            raise InputError(f"a {type(value).__qualname__} can't be compared with that of another run") from error
        if isinstance(made, str):
            return f"{_named(type(value))} {made}"
        make, args, *state = made
        kind, *args = (*args,) if make is __newobj__ else (make, *args)
        inside = [*args, *(s for s in state if s is not None)]
        return f"{self.of(kind)}({', '.join(self._pairs(s) if type(s) is dict else self.of(s) for s in inside)})"


def _installed(value: FunctionType | type) -> bool:
    """Whether it is this library's, Python's or an installed package's, known by its name."""
    if value.__module__.partition(".")[0] in (OURS, "builtins"):
        return True
    code = getattr(value, "__code__", None)
    file = code.co_filename if code else getattr(_module(value), "__file__", None)
    return file is not None and any(folder in Path(file).parents for folder in INSTALLED)


def _module(value: object) -> ModuleType | None:
    return sys.modules.get(getattr(value, "__module__", ""))


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _names(code: CodeType) -> Iterator[str]:
    """What a function's code names, with that of the functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _sum(words: str) -> str:
    return hashlib.sha256(encode_utf8(words)).hexdigest()[:DIGITS]
