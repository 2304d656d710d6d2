"""Replay: what modules gave before a net was stopped, given again, so that only what comes after runs anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from .layers import Layers
from .taps import Address, once, tensors_in

Forward = Callable[..., Any]
Meet = Callable[[nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(eq=False)
class _Call:
    module: nn.Module
    output: Tensor | None = None  # (n, ...); None: it runs again, and the calls inside it may answer


class Replay:
    """The calls of a net's modules in one run of n rows, as far as it went, to answer from in later runs.

    Right where rows are free and the net neither draws nor writes. Once a later run calls its modules in another
    order, the rest of it runs in full. A module that is answered for runs its own hooks, but not those of the modules
    inside it: what lies around an address in `tapped` does not answer.
    """

    def __init__(self, modules: Mapping[str, nn.Module], layers: Layers, tapped: Collection[str], n: int) -> None:
        eager, around = once(modules), _around(modules, tapped)
        self.modules = tuple(eager[row.path] for row in layers if row.rows and eager[row.path] not in around)
        self.n = n
        self.calls: list[_Call] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While open, each call is noted, with a clone of its output where it may answer."""
        with _met(self.modules, self._record):
            yield

    @contextmanager
    def answering(self, rows: Tensor) -> Iterator[None]:
        """While open, modules answer for inputs whose rows are these (R,) of the recorded ones."""
        with _met(self.modules, partial(self._answer, iter(self.calls), rows)):
            yield

    def _record(self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        start, call = len(self.calls), _Call(module)
        self.calls.append(call)
        given = [(h, h._version) for h in tensors_in((args, kwargs)) if not h.is_inference()]
        out: Tensor = forward(*args, **kwargs)
        if self._may_answer(out) and not any(h._version != v or _share(h, out) for h, v in given):
            call.output = out.clone()  # an op in place may write over it later
            del self.calls[start + 1 :]
        return out

    def _may_answer(self, out: object) -> bool:
        return type(out) is Tensor and out.ndim > 0 and len(out) == self.n and not out.requires_grad

    def _answer(
        self,
        left: Iterator[_Call],
        rows: Tensor,
        module: nn.Module,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = next(left, None)
        if call is None or call.module is not module:
            for _ in left:  # another way through the net: nothing recorded is to be trusted
                pass
            return forward(*args, **kwargs)
        return forward(*args, **kwargs) if call.output is None else call.output[rows]  # rows of their own, never a view


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


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@contextmanager
def _met(modules: Collection[nn.Module], meet: Meet) -> Iterator[None]:
    """While open, `meet` stands before each module's own forward, in this thread; hooks run around it as ever."""
    before = [(m, m.__dict__.get("forward")) for m in modules]
    try:
        for m in modules:
            m.__dict__["forward"] = _standing_before(m, m.forward, meet, get_ident())
        yield
    finally:
        for m, own in before:
            if own is None:
                m.__dict__.pop("forward", None)
            else:
                m.__dict__["forward"] = own


def _standing_before(module: nn.Module, own: Forward, meet: Meet, thread: int) -> Forward:
    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return meet(module, own, args, kwargs) if get_ident() == thread else own(*args, **kwargs)

    return forward
