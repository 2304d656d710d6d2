"""Replay: modules return recorded outputs, so that only what comes after an edited layer runs again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from .hooks import Address, hookable_modules, tensors_in
from .layers import Layers
from .side_channels import ForwardCall, SideChannelDetectorMode

ForwardFn = Callable[..., Any]
InterceptFn = Callable[[nn.Module, ForwardFn, tuple[Any, ...], dict[str, Any]], Any]

ROUNDING_TOLERANCE_BY_DTYPE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value, on the CPU
LOW_PRECISION_TOLERANCE = 2e-2  # in lower precision, and on accelerators, whose kernels depend on the batch size


_VersionAndCopy = tuple[int | None, Tensor]
"""The version of a tensor, and what was recorded of it."""


@dataclass(eq=False)
class _RecordedCall:
    module: nn.Module
    non_tensors: object = None  # its arguments besides tensors
    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None  # (n, ...); None: it runs again, and calls inside it may be replayed


class Replay:
    """The recorded module calls of one run of n rows, replayed in later runs.

    A module is replayed only for the recorded inputs; once a later run gives it others, or calls modules in another
    order, the rest of that run is computed. `collecting_unreplayable_modules` checks what a module's inputs do not
    show: that its rows are independent, and that it passes tensors only as arguments and outputs. A replayed module
    runs its own hooks, but not those of the modules inside it: the modules around one of `addresses` are not
    replayed, nor are `excluded` ones.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Layers,
        addresses: Collection[str],
        n: int,
        excluded: Collection[nn.Module] = (),
    ) -> None:
        hookable, skipped = hookable_modules(modules), _enclosing_modules(modules, addresses) | set(excluded)
        self.modules = tuple(
            hookable[row.path] for row in layers if row.has_batch_axis and hookable[row.path] not in skipped
        )
        self.n = n
        self.calls: list[_RecordedCall] = []
        # tensors of this run
        self.recorded_tensors: MutableMapping[Tensor, _VersionAndCopy] = WeakTensorKeyDictionary()

    @contextmanager
    def recording_calls(self, record_nested: bool = False) -> Iterator[None]:
        """While open, record each call, with a clone of its output where it can be replayed.

        `record_nested`: also the calls inside such a module, for `collecting_unreplayable_modules`.
        """
        with self._intercepting_run(partial(self._record_call, record_nested)):
            yield

    @contextmanager
    def replaying_outputs(self, rows: Tensor) -> Iterator[None]:
        """While open, replay modules for inputs that are these rows (R,) of the recorded ones."""
        with self._intercepting_run(partial(self._replay_call, iter(self.calls), rows)):
            yield

    @contextmanager
    def collecting_unreplayable_modules(self, rows: Tensor, tolerance: float) -> Iterator[set[nn.Module]]:
        """While a full run of these rows (R,) of the recorded ones is done, collect modules that cannot be replayed.

        `tolerance` of an output is relative to its largest value.
        """
        with (
            SideChannelDetectorMode() as detector,
            self._intercepting_run(partial(self._verify_call, iter(self.calls), rows, tolerance, detector)),
        ):
            yield detector.side_channel_modules

    @contextmanager
    def _intercepting_run(self, intercept: InterceptFn) -> Iterator[None]:
        self.recorded_tensors.clear()
        with _intercepting_forwards(self.modules, intercept):
            yield
        self.recorded_tensors.clear()

    # -- what replaces a module's forward -----------------------------------------------------------------------------

    def _record_call(
        self, record_nested: bool, module: nn.Module, forward: ForwardFn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        start, call = len(self.calls), _RecordedCall(module, _non_tensor_parts((args, kwargs)))
        self.calls.append(call)
        inputs = [(h, _tensor_version(h)) for h in tensors_in((args, kwargs))]
        out = forward(*args, **kwargs)
        if _is_replayable(out, self.n, inputs):
            call.inputs = [self._recorded_copy(h) for h, _ in inputs]
            call.output = self._recorded_copy(out)
            if not record_nested:
                del self.calls[start + 1 :]
        return out

    def _replay_call(
        self,
        remaining: Iterator[_RecordedCall],
        rows: Tensor,
        module: nn.Module,
        forward: ForwardFn,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = _next_call_or_stop_replay(remaining, module)
        if call is None or call.output is None:
            return forward(*args, **kwargs)
        if not self._matches_inputs(call, rows, (args, kwargs)):
            _stop_replay(remaining)
            return forward(*args, **kwargs)
        out = call.output[rows]  # a copy, never a view
        self.recorded_tensors[out] = _tensor_version(out), call.output
        return out

    def _verify_call(
        self,
        remaining: Iterator[_RecordedCall],
        rows: Tensor,
        tolerance: float,
        detector: SideChannelDetectorMode,
        module: nn.Module,
        forward: ForwardFn,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = _next_call_or_stop_replay(remaining, module)
        if call is None:
            return forward(*args, **kwargs)
        inputs = [(h, _tensor_version(h)) for h in tensors_in((args, kwargs))]
        running_call = ForwardCall(module, inputs=[h for h, _ in inputs])
        with detector.tracking_call(running_call):
            out = forward(*args, **kwargs)
        if call.output is None or not _is_replayable(out, len(rows), inputs):
            return out
        if not is_close(out, call.output[rows], tolerance):
            detector.side_channel_modules.add(module)
        copy = out.clone()  # a later read of the module's own tensor shows a side channel
        running_call.is_replayable = True
        return copy

    def _recorded_copy(self, h: Tensor) -> Tensor:
        """A clone, as an in-place op may overwrite h later; an earlier clone where there is one."""
        copy = self._find_recorded_copy(h)
        if copy is None:
            copy = h.clone()
            self.recorded_tensors[h] = _tensor_version(h), copy
        return copy

    def _find_recorded_copy(self, h: Tensor) -> Tensor | None:
        """The recorded copy of this tensor, if it was not written to since."""
        version, recorded = self.recorded_tensors.get(h, (None, None))
        return recorded if version is not None and version == _tensor_version(h) else None

    def _matches_inputs(self, call: _RecordedCall, rows: Tensor, arguments: object) -> bool:
        """Whether a module is given its recorded inputs, in these rows."""
        tensors = list(tensors_in(arguments))
        if _non_tensor_parts(arguments) != call.non_tensors or len(tensors) != len(call.inputs):
            return False
        return all(self._matches_tensor(h, was, rows) for h, was in zip(tensors, call.inputs, strict=True))

    def _matches_tensor(self, h: Tensor, recorded: Tensor, rows: Tensor) -> bool:
        if self._find_recorded_copy(h) is recorded:
            return True
        expected = recorded[rows] if recorded.ndim and len(recorded) == self.n else recorded
        if not is_close(h, expected, ROUNDING_TOLERANCE_BY_DTYPE.get(h.dtype, LOW_PRECISION_TOLERANCE)) and not (
            self.n == 1 and torch.equal(h, recorded)
        ):
            return False
        self.recorded_tensors[h] = _tensor_version(h), recorded
        return True


def _is_replayable(out: object, n: int, inputs: list[tuple[Tensor, int | None]]) -> bool:
    """Whether the output has n rows and is not a view of an input, and no input was written to."""
    if type(out) is not Tensor or not out.ndim or len(out) != n or out.requires_grad:
        return False
    return not any(_tensor_version(h) != version or _shares_storage(h, out) for h, version in inputs)


def _next_call_or_stop_replay(remaining: Iterator[_RecordedCall], module: nn.Module) -> _RecordedCall | None:
    """The next recorded call, if it is of this module; else None, and no later call is replayed."""
    call = next(remaining, None)
    if call is None or call.module is not module:
        _stop_replay(remaining)
        return None
    return call


def _stop_replay(remaining: Iterator[_RecordedCall]) -> None:
    for _ in remaining:
        pass


def _tensor_version(h: Tensor) -> int | None:
    """How often a tensor was written to; None where that is not counted."""
    return None if h.is_inference() else h._version


def _shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _non_tensor_parts(value: object) -> object:
    """The arguments without tensors, to compare: numbers and strings by value, objects by identity."""
    leaves, structure = tree_flatten(value)
    return structure, [_equality_key(leaf) for leaf in leaves]


def _equality_key(value: object) -> object:
    if isinstance(value, Tensor):
        return Tensor
    return (type(value), value) if isinstance(value, (bool, int, float, str, torch.dtype)) else id(value)


def is_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal up to a tolerance relative to the largest value."""
    if a.shape != b.shape or a.dtype != b.dtype or torch.equal(a, b):
        return a.shape == b.shape and a.dtype == b.dtype
    if not (a.is_floating_point() or a.is_complex()):
        return False
    largest = float(b.abs().nan_to_num(0, 0, 0).amax())
    return torch.allclose(a, b, rtol=0, atol=tolerance * largest, equal_nan=True)


def _enclosing_modules(modules: Mapping[str, nn.Module], addresses: Collection[str]) -> set[nn.Module]:
    """The modules that contain one of the addresses, by any of their names."""
    enclosing: set[nn.Module] = set()
    for address in map(Address.parse, addresses):
        module = modules[address.path]
        enclosing |= {module} if address.op not in (None, "input") else set()
        for path in (p for p, m in modules.items() if m is module):
            parts = path.split(".")
            enclosing |= {m for i in range(len(parts)) if (m := modules.get(".".join(parts[:i]))) not in (None, module)}
    return enclosing


@contextmanager
def _intercepting_forwards(modules: Collection[nn.Module], intercept: InterceptFn) -> Iterator[None]:
    """While open, `intercept` is called in place of each module's forward, in this thread; hooks run as usual."""
    before = [(m, m.__dict__.get("forward")) for m in modules]
    try:
        for m in modules:
            m.__dict__["forward"] = _intercepted_forward(m, m.forward, intercept, get_ident())
        yield
    finally:
        for m, original in before:
            if original is None:
                m.__dict__.pop("forward", None)
            else:
                m.__dict__["forward"] = original


def _intercepted_forward(module: nn.Module, original: ForwardFn, intercept: InterceptFn, thread: int) -> ForwardFn:
    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return intercept(module, original, args, kwargs) if get_ident() == thread else original(*args, **kwargs)

    return forward
