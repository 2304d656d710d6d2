"""The layers of a model: a survey of one forward pass, their table, and how an address is resolved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from ..errors import LayerError
from ..validation import suggestion_text
from .hooks import Address, hookable_modules, hooking_functional_ops, main_tensor
from .identity import TransientHook
from .layer_suggestions import suggested_layers_text
from .op_mode import DispatchMode
from .state import SharedDropoutMaskMode

MAX_LAYERS_IN_REPR = 5


@dataclass(frozen=True)
class Layer:
    """A module that runs in the forward pass: one row of `box.layers`."""

    path: str
    type: str
    shape: tuple[int, ...]  # of its output, without N
    n_parameters: int
    flops_share: float  # of the FLOPs of a forward pass, children included
    n_calls: int = 1
    is_leaf: bool = True
    has_input: bool = True  # it receives a tensor
    has_batch_axis: bool = True  # the first axis of its output is the batch

    @property
    def runs_per_example(self) -> bool:
        """Whether it turns a tensor into one row per example: a module of position biases does not."""
        return self.has_input and self.has_batch_axis

    @property
    def addresses(self) -> tuple[str, ...]:
        """One per call: the path alone where it is called once."""
        return (self.path,) if self.n_calls == 1 else tuple(f"{self.path}#{k}" for k in range(self.n_calls))


def input_address(address: str) -> str:
    """The address of a module's input, from that of its output."""
    return str(replace(Address.parse(address), op="input"))


class Layers:
    """The layers of a model in the order in which they first run; prints as a table.

    Iterate over it for `Layer`s, or index it by address. `by_path` is {path: Layer}.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        op_counts: Mapping[tuple[str, str], int],
        unused: tuple[str, ...],
        unbatched: frozenset[tuple[str, str]] = frozenset(),
        path_by_module: Mapping[nn.Module, str] | None = None,
    ) -> None:
        self.by_path = {row.path: row for row in layers}
        self._path_by_module = path_by_module or {}
        self._op_counts, self._unused, self._unbatched = op_counts, unused, unbatched
        self._resolved: dict[str, str] = {}  # a cache: a table of layers never changes

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.by_path.values())

    def __len__(self) -> int:
        return len(self.by_path)

    def __getitem__(self, path: str | nn.Module) -> Layer:
        return self.by_path[Address.parse(self.resolve(path)).path]

    def with_unbatched_ops_marked(self, unbatched: Collection[tuple[str, str]], n: int) -> Layers:
        """These layers, corrected after a run of n rows showed some (path, op) without a batch axis."""
        layers = tuple(
            replace(row, has_batch_axis=False, shape=(n, *row.shape))
            if row.has_batch_axis and (row.path, "") in unbatched
            else row
            for row in self
        )
        return Layers(
            layers, self._op_counts, self._unused, self._unbatched | frozenset(unbatched), self._path_by_module
        )

    def of_copy(self, modules: Mapping[str, nn.Module]) -> Layers:
        """The same layers of a copy of the model, which has these modules, by path."""
        paths = {module: path for path, module in hookable_modules(modules).items()}
        return Layers(tuple(self), self._op_counts, self._unused, self._unbatched, paths)

    @property
    def leaves(self) -> tuple[Layer, ...]:
        """The layers without child modules."""
        return tuple(row for row in self if row.is_leaf)

    def has_batch_axis(self, name: str | nn.Module) -> bool:
        """Whether the first axis of an activation is the batch. Raises LayerError."""
        address = Address.parse(self.resolve(name))
        if address.op is None:
            return self.by_path[address.path].has_batch_axis
        return (address.path, address.op) not in self._unbatched

    def path_of_module(self, module: nn.Module) -> str | None:
        """The path of a module of the model; None for other modules."""
        return self._path_by_module.get(module)

    def resolve(self, name: str | nn.Module) -> str:
        """The full address of a name, or of a module. Raises LayerError with the nearest names, or with the choices."""
        if isinstance(name, nn.Module):
            name = self._require_path_of_module(name)
        if isinstance(name, str) and name in self._resolved:
            return self._resolved[name]
        address = Address.parse(name)
        n_calls = self._count_calls(address)
        if n_calls == 0:
            raise LayerError(self._unknown_layer_message(address))
        if address.call is None and n_calls > 1:
            choices = ", ".join(f"{address}#{k}" for k in range(n_calls))
            raise LayerError(f"{str(address)!r} runs {n_calls} times in one forward pass; say which: {choices}")
        if address.call is not None and address.call >= n_calls:
            raise LayerError(f"{str(address)!r}: it runs {n_calls} times in one forward pass, counted from #0")
        return self._resolved.setdefault(name, str(address))

    def _require_path_of_module(self, module: nn.Module) -> str:
        path = self.path_of_module(module)
        if path is None:
            names = suggestion_text("", self.by_path)
            raise LayerError(f"this {type(module).__name__} is no module of the model (of a copy of it?); {names}")
        if not path:
            raise LayerError('this module is the whole model; "output" and "logits" name what it gives')
        return path

    def _count_calls(self, address: Address) -> int:
        if address.op in (None, "input"):
            row = self.by_path.get(address.path)
            return row.n_calls if row else 0
        return self._op_counts.get((address.path, address.op or ""), 0)

    def _unknown_layer_message(self, address: Address) -> str:
        if address.path in self._unused:
            return f"{address.path!r} did not run as a module: it is unused, a container, or inside scripted code"
        suggested = suggested_layers_text(str(address), self.by_path, self._op_counts)
        return f"there is no layer {str(address)!r} in this model; {suggested}"

    def cells(self) -> list[tuple[str, ...]]:
        """The table in text, its head first."""
        rows: list[tuple[str, ...]] = [("layer", "type", "output", "parameters", "FLOPs")]
        for row in self:
            name = row.path + (f" (runs {row.n_calls}x)" if row.n_calls > 1 else "")
            rows.append(
                (name, row.type, "x".join(map(str, row.shape)), f"{row.n_parameters:,}", f"{row.flops_share:.1%}")
            )
        return rows

    def __repr__(self) -> str:
        names = [*self.by_path][:MAX_LAYERS_IN_REPR] + ["..."] * (len(self) > MAX_LAYERS_IN_REPR)
        return f"Layers({len(self)}: {', '.join(names)})"

    def __str__(self) -> str:
        rows = self.cells()
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        return "\n".join(
            "  ".join(_align_cell(c, w, i) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip()
            for r in rows
        )


def _align_cell(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column >= 3 else text.ljust(width)


@dataclass(frozen=True)
class ModelProfile:
    """What one forward pass on noise shows of a model."""

    layers: Layers
    output: Any  # what the model gave for noise
    bytes_per_example: int  # of the activations of one example, kept for a backward pass
    peak_bytes_per_example: int  # at one time, in a forward pass without gradients
    flops_per_example: float  # of a forward pass

    def of_copy(self, output: Any, modules: Mapping[str, nn.Module]) -> ModelProfile:
        """That of a copy of the model, which gave this output for noise."""
        return replace(self, layers=self.layers.of_copy(modules), output=output)


class FlopCounter(DispatchMode):
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
class _LayerRecord:
    shape: tuple[int, ...] = ()
    n_calls: int = 0
    flops: int = 0
    n_bytes: int = 0
    has_input: bool = False
    has_batch_axis: bool = True


def profile_model(
    run: Callable[[Tensor], Any], x: Tensor, modules: Mapping[str, nn.Module], min_rows: int = 1
) -> ModelProfile:
    """Run the model once on noise x (N, ...); an exported model pads its batches to `min_rows`."""
    records: dict[str, _LayerRecord] = {}
    op_counts: Counter[tuple[str, str]] = Counter()
    unbatched: set[tuple[str, str]] = set()  # ops and inputs of modules whose first axis is not the batch
    counter, n_rows = FlopCounter(), max(min_rows, len(x))
    with (
        SharedDropoutMaskMode(),
        counter,
        _recording_layers(modules, records, op_counts, unbatched, lambda: counter.total, n_rows),
    ):
        output = run(x)
    table = _build_layers(hookable_modules(modules), records, op_counts, unbatched, counter.total)
    # a compiled module can't be asked for its truth: it passes `len` on to what it holds
    leaf_bytes = [note.n_bytes for path, note in records.items() if next(modules[path].children(), None) is None]
    return ModelProfile(
        table,
        output,
        2 * sum(leaf_bytes),
        4 * max(leaf_bytes, default=0),
        counter.total / n_rows,
    )


@contextmanager
def collecting_unbatched_ops(modules: Mapping[str, nn.Module], n: int) -> Iterator[set[tuple[str, str]]]:
    """While open, collect each (path, op) whose first axis does not have n rows; a module's output has the op ""."""
    records: dict[str, _LayerRecord] = {}
    unbatched: set[tuple[str, str]] = set()
    with _recording_layers(modules, records, Counter(), unbatched, lambda: 0, n):
        yield unbatched
    unbatched |= {(path, "") for path, note in records.items() if not note.has_batch_axis}


@contextmanager
def _recording_layers(
    modules: Mapping[str, nn.Module],
    records: dict[str, _LayerRecord],
    op_counts: Counter[tuple[str, str]],
    unbatched: set[tuple[str, str]],
    count_flops: Callable[[], int],
    n: int,
) -> Iterator[None]:
    """While open, record every module's calls, output shape and FLOPs, and count every functional op."""
    flops_at_start: list[int] = []

    def record_missing_batch_axis(path: str, op: str, h: Tensor | None) -> None:
        if h is not None and _shape(h)[:1] != (n,):
            unbatched.add((path, op))

    def record_call_start(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        record = records.setdefault(path, _LayerRecord())
        record.n_calls += 1
        h = main_tensor((args, kwargs))
        record.has_input |= h is not None
        record_missing_batch_axis(path, "input", h)
        flops_at_start.append(count_flops())

    def record_call_end(path: str, module: nn.Module, args: Any, out: Any) -> None:
        record, h = records[path], main_tensor(out)
        record.flops += count_flops() - flops_at_start.pop()
        if h is not None and (shape := _shape(h)):
            record.has_batch_axis &= shape[0] == n
            record.shape = shape[1:] if record.has_batch_axis else shape
            record.n_bytes += math.prod(shape) // max(1, shape[0]) * h.element_size()

    def record_op(path: str, op: str | None, h: Tensor) -> None:
        op_counts[path, op or ""] += 1
        record_missing_batch_axis(path, op or "", h)

    with ExitStack() as stack:
        for path, module in hookable_modules(modules).items():
            stack.callback(
                module.register_forward_pre_hook(TransientHook(record_call_start, path), with_kwargs=True).remove
            )
            stack.callback(module.register_forward_hook(TransientHook(record_call_end, path)).remove)
        stack.enter_context(hooking_functional_ops(modules, lambda path, op: True, record_op))
        yield


def _shape(h: Tensor) -> tuple[int, ...]:
    """The shape, read past the function modes, which would take each reading for an op."""
    with torch._C.DisableTorchFunction():
        return tuple(h.shape)


def _build_layers(
    modules: Mapping[str, nn.Module],
    records: Mapping[str, _LayerRecord],
    op_counts: Mapping[tuple[str, str], int],
    unbatched: set[tuple[str, str]],
    total_flops: int,
) -> Layers:
    def make_layer(path: str, record: _LayerRecord) -> Layer:
        module = modules[path]
        parameters = sum(p.numel() for p in module.parameters())
        flops = record.flops / total_flops if total_flops else math.nan
        children = {name for name, _ in module.named_children()} - {"parametrizations"}
        name = type(module).__name__.removeprefix("Parametrized")
        return Layer(
            path,
            name,
            record.shape,
            parameters,
            flops,
            record.n_calls,
            not children,
            record.has_input,
            record.has_batch_axis,
        )

    listed = {p: n for p, n in records.items() if p and "parametrizations" not in p.split(".")}  # those compute weights
    unused = tuple(p for p in modules if p not in records)
    path_by_module = {module: path for path, module in modules.items()}
    rows = tuple(make_layer(p, n) for p, n in listed.items())
    return Layers(rows, op_counts, unused, frozenset(unbatched), path_by_module)
