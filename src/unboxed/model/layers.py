"""The layers of a model: what a first look finds, the table of them, and how an address is resolved."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import LayerError
from .hooks import Address, following, main_tensor, once
from .identity import TransientHook
from .state import SharedNoise


@dataclass(frozen=True)
class Layer:
    """A module that runs. `shape` is its output's without N; `flops` its share of the forward's, children included."""

    path: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    flops: float
    calls: int = 1
    leaf: bool = True
    takes: bool = True  # a tensor goes in
    rows: bool = True  # the first axis of what comes out is the batch

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of each of its calls: the path alone where it is called once."""
        return (self.path,) if self.calls == 1 else tuple(f"{self.path}#{k}" for k in range(self.calls))


def received(address: str) -> str:
    """The address of what a module is given where `address` is what it gives."""
    return str(replace(Address.parse(address), op="input"))


class Layers:
    """The layers in the order in which they first run; prints as a table."""

    def __init__(
        self,
        rows: tuple[Layer, ...],
        ops: Mapping[tuple[str, str], int],
        idle: tuple[str, ...],
        mixed: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self.by_path = {row.path: row for row in rows}
        self._ops, self._idle, self._mixed = ops, idle, mixed

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.by_path.values())

    def __len__(self) -> int:
        return len(self.by_path)

    def __getitem__(self, path: str) -> Layer:
        return self.by_path[Address.parse(self.resolve(path)).path]

    def without_rows(self, mixed: Collection[tuple[str, str]], n: int) -> Layers:
        """These layers of a run of n rows, where the first axis of some (path, op) is not the batch after all."""
        rows = tuple(
            replace(row, rows=False, shape=(n, *row.shape)) if row.rows and (row.path, "") in mixed else row
            for row in self
        )
        return Layers(rows, self._ops, self._idle, self._mixed | frozenset(mixed))

    @property
    def leaves(self) -> tuple[Layer, ...]:
        return tuple(row for row in self if row.leaf)

    def has_rows(self, text: str) -> bool:
        """Whether the first axis of what is found at an address is the batch. Raises LayerError."""
        address = Address.parse(self.resolve(text))
        if address.op is None:
            return self.by_path[address.path].rows
        return (address.path, address.op) not in self._mixed

    def resolve(self, text: str) -> str:
        """The full address of what `text` names. Raises LayerError with the nearest names, or with the choices."""
        address = Address.parse(text)
        calls = self._calls(address)
        if calls == 0:
            raise LayerError(self._unknown(address))
        if address.call is None and calls > 1:
            choices = ", ".join(f"{address}#{k}" for k in range(calls))
            raise LayerError(f"{str(address)!r} runs {calls} times in one forward; say which: {choices}")
        if address.call is not None and address.call >= calls:
            raise LayerError(f"{str(address)!r}: it runs {calls} times in one forward, counted from #0")
        return str(address)

    def _calls(self, address: Address) -> int:
        if address.op in (None, "input"):
            row = self.by_path.get(address.path)
            return row.calls if row else 0
        return self._ops.get((address.path, address.op or ""), 0)

    def _unknown(self, address: Address) -> str:
        if address.path in self._idle:
            return f"{address.path!r} did not run as a module: it is unused, a container, or inside scripted code"
        names = [*self.by_path, *(f"{path}:{op}" for path, op in self._ops)]
        near = difflib.get_close_matches(str(address), names, n=3, cutoff=0.4) or list(self.by_path)[:3]
        return f"no layer {str(address)!r} in this model; the nearest names are {', '.join(map(repr, near))}"

    def __str__(self) -> str:
        rows = [("layer", "type", "output", "parameters", "FLOPs")]
        for row in self:
            name = row.path + (f" (runs {row.calls}x)" if row.calls > 1 else "")
            rows.append((name, row.type, "x".join(map(str, row.shape)), f"{row.parameters:,}", f"{row.flops:.1%}"))
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        return "\n".join(
            "  ".join(_cell(c, w, i) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in rows
        )


def _cell(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column >= 3 else text.ljust(width)


@dataclass(frozen=True)
class Survey:
    layers: Layers
    output: Any  # what the model gave for noise
    bytes_each: int  # held by the activations of one example, for a backward pass
    bytes_peak: int  # held at a time by a forward pass alone
    noisy: bool  # asks for dropout or noise although in eval
    flops_each: float  # of one example's way through the model


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs by torch's own table of formulas (torch's FlopCounterMode hooks every module of the process)."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=out)
        return out


@dataclass
class _Met:
    shape: tuple[int, ...] = ()
    calls: int = 0
    flops: int = 0
    bytes: int = 0
    takes: bool = False
    rows: bool = True


def survey(run: Callable[[Tensor], Any], x: Tensor, modules: Mapping[str, nn.Module], least: int = 1) -> Survey:
    """Run the model once on noise x (N, ...). Raises InputError where it can't take it.

    `least` is how many rows an exported model pads its batches to.
    """
    met: dict[str, _Met] = {}
    ops: Counter[tuple[str, str]] = Counter()
    mixed: set[tuple[str, str]] = set()  # ops and inputs of modules whose first axis is not the batch
    noise, counter, rows = SharedNoise(), Flops(), max(least, len(x))  # type: ignore[no-untyped-call]
    with noise, counter, _watched(modules, met, ops, mixed, lambda: counter.total, rows):
        output = run(x)
    table = _table(once(modules), met, ops, mixed, counter.total)
    held = [note.bytes for path, note in met.items() if not any(modules[path].children())]
    return Survey(table, output, 2 * sum(held), 4 * max(held, default=0), noise.met, counter.total / rows)


@contextmanager
def mixing(modules: Mapping[str, nn.Module], n: int) -> Iterator[set[tuple[str, str]]]:
    """While open, collect each (path, op) whose first axis is not these n rows; a module's output has the op ""."""
    met: dict[str, _Met] = {}
    mixed: set[tuple[str, str]] = set()
    with _watched(modules, met, Counter(), mixed, lambda: 0, n):
        yield mixed
    mixed |= {(path, "") for path, note in met.items() if not note.rows}


@contextmanager
def _watched(
    modules: Mapping[str, nn.Module],
    met: dict[str, _Met],
    ops: Counter[tuple[str, str]],
    mixed: set[tuple[str, str]],
    flops: Callable[[], int],
    n: int,
) -> Iterator[None]:
    """Note every module's calls, output shape and FLOPs, and every functional op."""
    started: list[int] = []

    def look(path: str, op: str, h: Tensor | None) -> None:
        if h is not None and (h.ndim == 0 or len(h) != n):
            mixed.add((path, op))

    def enter(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        note = met.setdefault(path, _Met())
        note.calls += 1
        h = main_tensor((args, kwargs))
        note.takes |= h is not None
        look(path, "input", h)
        started.append(flops())

    def leave(path: str, module: nn.Module, args: Any, out: Any) -> None:
        note, h = met[path], main_tensor(out)
        note.flops += flops() - started.pop()
        if h is not None and h.ndim:
            note.rows &= len(h) == n
            note.shape = tuple(h.shape[1:] if note.rows else h.shape)
            note.bytes += h.numel() // max(1, len(h)) * h.element_size()

    def count(path: str, op: str | None, h: Tensor) -> None:
        ops[path, op or ""] += 1
        look(path, op or "", h)

    with ExitStack() as stack:
        for path, module in once(modules).items():
            stack.callback(module.register_forward_pre_hook(TransientHook(enter, path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(TransientHook(leave, path)).remove)
        stack.enter_context(following(modules, lambda path, op: True, count))
        yield


def _table(
    modules: Mapping[str, nn.Module],
    met: Mapping[str, _Met],
    ops: Mapping[tuple[str, str], int],
    mixed: set[tuple[str, str]],
    total: int,
) -> Layers:
    def row(path: str, note: _Met) -> Layer:
        module = modules[path]
        parameters = sum(p.numel() for p in module.parameters())
        flops = note.flops / total if total else math.nan
        children = {name for name, _ in module.named_children()} - {"parametrizations"}
        name = type(module).__name__.removeprefix("Parametrized")
        return Layer(path, name, note.shape, parameters, flops, note.calls, not children, note.takes, note.rows)

    shown = {p: n for p, n in met.items() if p and "parametrizations" not in p.split(".")}  # those work on weights
    idle = tuple(p for p in modules if p not in met)
    return Layers(tuple(row(p, n) for p, n in shown.items()), ops, idle, frozenset(mixed))
