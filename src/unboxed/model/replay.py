"""Replay: what modules gave before a model was stopped, given again, so that only what comes after runs again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .hooks import Address, once, tensors_in
from .layers import Layers
from .traffic import Body, Traffic

Forward = Callable[..., Any]
Intercept = Callable[[nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the largest number, on the CPU
COARSE = 2e-2  # in lower precision, and where an accelerator takes other kernels for other batch sizes


_Known = tuple[int | None, Tensor]
"""The version of a tensor, and what was recorded of it."""


@dataclass(eq=False)
class _Call:
    module: nn.Module
    others: object = None  # what it was given besides tensors
    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None  # (n, ...); None: it runs again, and the calls inside it may answer


class Replay:
    """The calls of a model's modules in one run of n rows, as far as it went, to answer from in later runs.

    A module answers only where it is given the recorded inputs; once a later run gives it others, or calls modules in
    another order, the rest of that run is for real. What can't be seen from a module's inputs `check` finds out:
    whether its rows are free, and whether it takes or hands on tensors by another way. A module that answers runs its
    own hooks, but not those of the modules inside it: what lies around an address in `tapped` does not answer, nor do
    the modules `without`.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Layers,
        tapped: Collection[str],
        n: int,
        without: Collection[nn.Module] = (),
    ) -> None:
        eager, never = once(modules), _around(modules, tapped) | set(without)
        self.modules = tuple(eager[row.path] for row in layers if row.rows and eager[row.path] not in never)
        self.n = n
        self.calls: list[_Call] = []
        self.known: MutableMapping[Tensor, _Known] = WeakTensorKeyDictionary()  # tensors of this run

    @contextmanager
    def recording(self, inner: bool = False) -> Iterator[None]:
        """While open, each call is noted, with a clone of its output where it may answer.

        `inner`: also the calls inside of such a module, for `check`.
        """
        with self._intercepted(partial(self._record, inner)):
            yield

    @contextmanager
    def answering(self, rows: Tensor) -> Iterator[None]:
        """While open, modules answer for inputs whose rows are these (R,) of the recorded ones."""
        with self._intercepted(partial(self._answer, iter(self.calls), rows)):
            yield

    @contextmanager
    def checking(self, rows: Tensor, share: float) -> Iterator[set[nn.Module]]:
        """While a whole run of other rows (R,) of the recorded ones is done, collect the modules that can't answer.

        `share` is the rounding error of an output, of its largest number.
        """
        with Traffic() as traffic, self._intercepted(partial(self._check, iter(self.calls), rows, share, traffic)):
            yield traffic.open_modules

    @contextmanager
    def _intercepted(self, intercept: Intercept) -> Iterator[None]:
        self.known.clear()
        with _intercepted(self.modules, intercept):
            yield
        self.known.clear()

    # -- what stands before a module's forward -----------------------------------------------------------------------

    def _record(
        self, inner: bool, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        start, call = len(self.calls), _Call(module, _others((args, kwargs)))
        self.calls.append(call)
        inputs = [(h, _version(h)) for h in tensors_in((args, kwargs))]
        out = forward(*args, **kwargs)
        if _may_answer(out, self.n, inputs):
            call.inputs = [self._copy(h) for h, _ in inputs]
            call.output = self._copy(out)
            if not inner:
                del self.calls[start + 1 :]
        return out

    def _answer(
        self,
        left: Iterator[_Call],
        rows: Tensor,
        module: nn.Module,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = _next(left, module)
        if call is None or call.output is None:
            return forward(*args, **kwargs)
        if not self._given(call, rows, (args, kwargs)):
            _skip(left)
            return forward(*args, **kwargs)
        out = call.output[rows]  # rows of their own, never a view
        self.known[out] = _version(out), call.output
        return out

    def _check(
        self,
        left: Iterator[_Call],
        rows: Tensor,
        share: float,
        traffic: Traffic,
        module: nn.Module,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = _next(left, module)
        if call is None:
            return forward(*args, **kwargs)
        inputs = [(h, _version(h)) for h in tensors_in((args, kwargs))]
        body = Body(module, inputs=[h for h, _ in inputs])
        with traffic.inside(body):
            out = forward(*args, **kwargs)
        if call.output is None or not _may_answer(out, len(rows), inputs):
            return out
        if not same(out, call.output[rows], share):
            traffic.open_modules.add(module)
        copy = out.clone()  # who reads the module's own tensor from here on got it by another way
        body.answers = True
        return copy

    def _copy(self, h: Tensor) -> Tensor:
        """A clone, for an op in place may write over h later; the one that was made before where there is one."""
        copy = self._recorded(h)
        if copy is None:
            copy = h.clone()
            self.known[h] = _version(h), copy
        return copy

    def _recorded(self, h: Tensor) -> Tensor | None:
        """What is known to be recorded of this tensor, if it was not written since."""
        version, recorded = self.known.get(h, (None, None))
        return recorded if version is not None and version == _version(h) else None

    def _given(self, call: _Call, rows: Tensor, given: object) -> bool:
        """Whether a module is given what it was in the recorded run, in these rows."""
        tensors = list(tensors_in(given))
        if _others(given) != call.others or len(tensors) != len(call.inputs):
            return False
        return all(self._is(h, was, rows) for h, was in zip(tensors, call.inputs, strict=True))

    def _is(self, h: Tensor, was: Tensor, rows: Tensor) -> bool:
        if self._recorded(h) is was:
            return True
        want = was[rows] if was.ndim and len(was) == self.n else was
        if not same(h, want, ROUNDING.get(h.dtype, COARSE)) and not (self.n == 1 and torch.equal(h, was)):
            return False
        self.known[h] = _version(h), was
        return True


def _may_answer(out: object, n: int, inputs: list[tuple[Tensor, int | None]]) -> bool:
    """Whether n rows came out that are no part of the inputs, which were left as they are."""
    if type(out) is not Tensor or not out.ndim or len(out) != n or out.requires_grad:
        return False
    return not any(_version(h) != version or _share(h, out) for h, version in inputs)


def _next(left: Iterator[_Call], module: nn.Module) -> _Call | None:
    """The recorded call, if it is of this module: else it is another way through, and no call after it is trusted."""
    call = next(left, None)
    if call is None or call.module is not module:
        _skip(left)
        return None
    return call


def _skip(left: Iterator[_Call]) -> None:
    for _ in left:
        pass


def _version(h: Tensor) -> int | None:
    """How often a tensor was written; None where that isn't counted."""
    return None if h.is_inference() else h._version


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _others(value: object) -> object:
    """What is not a tensor in arguments, to compare: numbers and texts by value, objects by identity."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, (tuple, list)):
        return type(value), *map(_others, value)
    if isinstance(value, Mapping):
        return type(value), *((_others(name), _others(v)) for name, v in value.items())
    return (type(value), value) if isinstance(value, (bool, int, float, str, torch.dtype)) else id(value)


def same(a: Tensor, b: Tensor, share: float) -> bool:
    """Whether two tensors are the same up to a share of the largest number."""
    if a.shape != b.shape or a.dtype != b.dtype or torch.equal(a, b):
        return a.shape == b.shape and a.dtype == b.dtype
    if not (a.is_floating_point() or a.is_complex()):
        return False
    largest = float(b.abs().nan_to_num(0, 0, 0).amax())
    return torch.allclose(a, b, rtol=0, atol=share * largest, equal_nan=True)


def _around(modules: Mapping[str, nn.Module], tapped: Collection[str]) -> set[nn.Module]:
    """The modules whose inside is tapped, by any of their names."""
    found: set[nn.Module] = set()
    for address in map(Address.parse, tapped):
        module = modules[address.path]
        found |= {module} if address.op not in (None, "input") else set()
        for path in (p for p, m in modules.items() if m is module):
            parts = path.split(".")
            found |= {m for i in range(len(parts)) if (m := modules.get(".".join(parts[:i]))) not in (None, module)}
    return found


@contextmanager
def _intercepted(modules: Collection[nn.Module], intercept: Intercept) -> Iterator[None]:
    """While open, `intercept` stands before each module's own forward, in this thread; hooks run around it as ever."""
    before = [(m, m.__dict__.get("forward")) for m in modules]
    try:
        for m in modules:
            m.__dict__["forward"] = _standing_before(m, m.forward, intercept, get_ident())
        yield
    finally:
        for m, own in before:
            if own is None:
                m.__dict__.pop("forward", None)
            else:
                m.__dict__["forward"] = own


def _standing_before(module: nn.Module, own: Forward, intercept: Intercept, thread: int) -> Forward:
    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return intercept(module, own, args, kwargs) if get_ident() == thread else own(*args, **kwargs)

    return forward
