"""Read and rewrite activations while a model runs, and stop it when all is read. The only file that hooks modules.

Addresses: `path` is a module's output, `path#k` its k-th call (from 0); `path:input` is what the module receives;
`path:relu#k` is the k-th functional op of that name called directly in path's forward.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..errors import LayerError
from .batching import BatchPadding
from .identity import TransientHook
from .incremental import WindowedTensor
from .op_tables import canonical_op_name
from .state import NULL_CONTEXT

Edit = Callable[[Tensor], Tensor]


class Acts(dict[str, Tensor]):
    """Activations by address; `edges` are their autograd edges, from before any later in-place op."""

    def __init__(self, acts: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(acts or {})
        self.edges: dict[str, GradientEdge | None] = {}


class StopForward(BaseException):
    """Raised when all activations are read. Not an Exception: a model's own `except Exception` would catch it."""


@dataclass(frozen=True)
class Address:
    path: str
    op: str | None = None
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address. Raises LayerError where it is not one."""
        return _parse_cached(text) if isinstance(text, str) else cls._parse(text)

    @classmethod
    def _parse(cls, text: str) -> Address:
        body, mark, call = text.partition("#") if isinstance(text, str) else (None, "", "")
        if body is None or (mark and not call.isdecimal()) or body.endswith(":"):
            advice = f"; give the layer's path as text: '{text}'" if isinstance(text, int) else ""
            wanted = "a layer address is 'path', 'path#2', 'path:relu#0' or 'path:input'"
            raise LayerError(f"{wanted}; got {text!r}{advice}")
        path, _, op = body.partition(":")
        return cls(path, op or None, int(call) if mark else None)

    def __str__(self) -> str:
        op = f":{self.op}" if self.op else ""
        return f"{self.path}{op}" if self.call is None else f"{self.path}{op}#{self.call}"


_parse_cached = lru_cache(maxsize=4096)(Address._parse)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name that it has, without the wrappers of torch.compile."""
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parts = [p for p in name.split(".") if p != "_orig_mod"]
        modules[".".join(parts)] = module  # the wrapped module comes after its wrapper
    return modules


def hookable_modules(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Each module that can be hooked (scripted ones can't), by the first of its names."""
    first_paths: dict[nn.Module, str] = {}
    for path, module in modules.items():
        if not isinstance(module, torch.jit.ScriptModule):
            first_paths.setdefault(module, path)
    return {path: module for module, path in first_paths.items()}


NO_BATCH_PADDING = BatchPadding(1, 1)


class _ActivationRecorder:
    """Clones wanted activations (a later in-place op may overwrite them), keeps their autograd edges, stops the model.

    The model goes on with its own tensor: a clone would separate it from its aliases, which in-place ops change, too.
    """

    def __init__(
        self, addresses: Collection[str], edits: Mapping[str, Edit], stop: bool, padding: BatchPadding,
        for_backward: bool,
    ) -> None:  # fmt: skip
        self.acts = Acts()
        self.padding, self.for_backward = padding, for_backward
        self.addresses, self.edits, self.stop = frozenset(addresses), edits, stop
        parsed = [(Address.parse(text), text) for text in {*addresses, *edits}]
        self.by_address = {(a.path, a.op, a.call): text for a, text in parsed}
        self.missing = set(self.by_address.values())
        self.calls = defaultdict[tuple[str, str | None], int](int)
        self.thread = get_ident()  # forward passes of other threads are ignored

    def is_wanted(self, path: str, op: str | None) -> bool:
        return any(place[:2] == (path, op) for place in self.by_address)

    def on_op(self, path: str, op: str | None, h: Tensor) -> Tensor | None:
        """Record the output h of the k-th call of (path, op). Gives the tensor that replaces it, or None."""
        if self.for_backward and _is_in_backward_pass():
            return self._edit_on_checkpoint_rerun(path, op, h)
        call = self.calls[path, op]
        self.calls[path, op] += 1
        candidates = [(path, op, call), (path, op, None)][: 1 if call else 2]
        matches = [self.by_address[place] for place in candidates if place in self.by_address]
        if not matches:
            return None
        edits = [self.edits[name] for name in matches if name in self.edits]
        new, real = self._edited(h, edits)
        for name in matches:
            if name in self.addresses:  # an activation that is only edited needs no copy
                self.acts[name] = real.clone()
                self.acts.edges[name] = get_gradient_edge(new if edits else h) if h.requires_grad else None
            self.missing.discard(name)
        if self.stop and not self.missing:
            raise StopForward
        return new if edits else None

    def _edited(self, h: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """What replaces h, and its part without padding."""
        real, rest = self.padding.split(h)
        for edit in edits:
            real = edit(real)
        return (real if rest is None else torch.cat([real, rest])), real

    def _edit_on_checkpoint_rerun(self, path: str, op: str | None, h: Tensor) -> Tensor | None:
        """A checkpointed part runs again in the backward pass: so do its edits, and nothing is recorded."""
        names = [name for place, name in self.by_address.items() if place[:2] == (path, op) and name in self.edits]
        if names and self.calls[path, op] > 1:
            raise LayerError(
                f"{names[0]!r} runs {self.calls[path, op]} times in a model with checkpoints, and which of them runs "
                "again in the backward pass cannot be determined; choose a layer that runs once"
            )
        return self._edited(h, [self.edits[name] for name in names])[0] if names else None


def _is_in_backward_pass() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)  # as torch.utils.checkpoint asks it


@contextmanager
def capturing_activations(
    modules: Mapping[str, nn.Module],
    addresses: Collection[str],
    *,
    edits: Mapping[str, Edit] | None = None,
    stop: bool = True,
    padding: BatchPadding = NO_BATCH_PADDING,
    for_backward: bool = False,
) -> Iterator[Acts]:
    """While open, a forward pass fills {address: activation}; `edits` replace activations; `stop` ends it early.

    `for_backward`: it stays open for a backward pass, in which checkpointed parts are edited again.
    """
    recorder = _ActivationRecorder(addresses, edits or {}, stop, padding, for_backward)
    ops = any(op not in (None, "input") for _, op, _ in recorder.by_address)
    handles = list[RemovableHandle]()
    try:
        for path, op in {place[:2] for place in recorder.by_address}:
            if op is None:
                handles.append(modules[path].register_forward_hook(TransientHook(_record_output_hook, recorder, path)))
            elif op == "input":
                hook = TransientHook(_record_input_hook, recorder, path)
                handles.append(modules[path].register_forward_pre_hook(hook, with_kwargs=True))
        with (
            hooking_functional_ops(modules, recorder.is_wanted, recorder.on_op, for_backward=for_backward)
            if ops
            else NULL_CONTEXT
        ):
            yield recorder.acts
    finally:
        for handle in reversed(handles):
            handle.remove()


def _record_output_hook(recorder: _ActivationRecorder, path: str, module: nn.Module, args: Any, out: Any) -> Any:
    h = main_tensor(out) if get_ident() == recorder.thread else None
    new = None if h is None else recorder.on_op(path, None, h)
    if new is None or h is None:
        return None
    if any(h is x for x in tensors_in(args)):  # in place: the result must be in the tensor that it wrote to
        new = h.copy_(new)
    return _replace_tensor(out, h, new)


def _record_input_hook(
    recorder: _ActivationRecorder, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    h = main_tensor((args, kwargs)) if get_ident() == recorder.thread else None
    new = None if h is None else recorder.on_op(path, "input", h)
    return None if new is None else _replace_tensor((args, kwargs), h, new)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of a structure, in order, inside tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, WindowedTensor):
        yield value.dense_copy()
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(value):
        yield from tensors_in([getattr(value, f.name) for f in dataclasses.fields(value)])


def main_tensor(value: Any) -> Tensor | None:
    """The tensor that is taken as a module's output: the first one."""
    return value if isinstance(value, Tensor) else next(tensors_in(value), None)


def _replace_tensor(value: Any, old: Tensor | None, new: Tensor) -> Any:
    """The same structure with one tensor replaced."""
    if value is old:
        return new
    replace = partial(_replace_tensor, old=old, new=new)
    if isinstance(value, MutableMapping):  # a ModelOutput, too
        value = copy(value)
        for key in list(value):
            value[key] = replace(value[key])
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(replace, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(replace, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = copy(value)
        for f in dataclasses.fields(value):
            object.__setattr__(value, f.name, replace(getattr(value, f.name)))
    return value


@contextmanager
def hooking_functional_ops(
    modules: Mapping[str, nn.Module],
    is_wanted: Callable[[str, str | None], bool],
    on_op: Callable[[str, str | None, Tensor], Tensor | None],
    on_output: Callable[[str, Tensor], None] | None = None,
    *,
    for_backward: bool = False,
) -> Iterator[None]:
    """Track whose forward runs, and call `on_op` for the functional ops called directly in it.

    `on_output` is called with each module's output, after its ops. `for_backward`: also where modules run again in the
    backward pass, in which torch leaves function modes out.
    """
    running: list[str] = []
    mode = _OpHookMode(running, is_wanted, on_op)
    with tracking_running_modules(modules, on_output, running, mode if for_backward else None), mode:
        yield


@contextmanager
def tracking_running_modules(
    modules: Mapping[str, nn.Module],
    on_output: Callable[[str, Tensor], None] | None = None,
    running: list[str] | None = None,
    mode_in_backward: AbstractContextManager[Any] | None = None,
) -> Iterator[list[str]]:
    """While open, keep the paths of the modules whose forward runs, the innermost last."""
    running = [] if running is None else running
    thread = get_ident()

    def outermost_in_backward() -> AbstractContextManager[Any] | None:
        return mode_in_backward if not running and _is_in_backward_pass() else None

    def push_running_module(path: str, module: nn.Module, args: Any) -> None:
        if get_ident() == thread:
            if mode := outermost_in_backward():
                mode.__enter__()
            running.append(path)

    def pop_running_module(path: str, module: nn.Module, args: Any, out: Any) -> None:
        if get_ident() != thread:
            return
        if running and running[-1] == path:  # else another pre-hook raised before it was entered
            running.pop()
            if mode := outermost_in_backward():
                mode.__exit__(None, None, None)
        if on_output is not None and (h := main_tensor(out)) is not None:
            on_output(path, h)

    with ExitStack() as stack:
        for path, module in hookable_modules(modules).items():
            stack.callback(module.register_forward_pre_hook(TransientHook(push_running_module, path)).remove)
            stack.callback(
                module.register_forward_hook(TransientHook(pop_running_module, path), always_call=True).remove
            )
        yield running


class _OpHookMode(TorchFunctionMode):
    def __init__(self, running: list[str], is_wanted: Callable[..., bool], on_op: Callable[..., Tensor | None]) -> None:
        super().__init__()
        self.running, self.is_wanted, self.on_op = running, is_wanted, on_op

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        path, op = self.running[-1] if self.running else "", canonical_op_name(func)
        if not isinstance(out, (Tensor, WindowedTensor)) or not self.is_wanted(path, op):
            return out
        if isinstance(out, WindowedTensor):  # read, never edited
            self.on_op(path, op, out.dense_copy())
            return out
        in_place = bool(args) and out is args[0]
        new = self.on_op(path, op, out)
        if new is None:
            return out
        return out.copy_(new) if in_place else new  # callers may ignore the return value of an in-place op
