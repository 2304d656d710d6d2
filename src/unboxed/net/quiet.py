"""Leave no trace: a net is run in its mode, on seeded RNGs, and is afterwards what it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .ops import DROPOUTS, NOISES, name_of

Modules = tuple[nn.Module, ...]


def written_by(net: nn.Module, run: Callable[[], object]) -> tuple[nn.Parameter, ...]:
    """The parameters that the net itself writes while it runs (max_norm, weights it normalizes), put back."""
    values = [(p, p.detach().clone()) for p in net.parameters()]
    try:
        run()
    finally:
        written = tuple(p for p, before in values if not torch.equal(p.detach(), before))
        for p, before in values:
            if any(p is w for w in written):
                with torch.inference_mode(p.is_inference()):
                    p.data.copy_(before)
    return written


@contextmanager
def buffers_restored(modules: Modules, written: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Every buffer is put back, the tensor itself and what it held; so are parameters that the net writes.

    By value and through `.data`: batch norm writes its statistics without raising their version, and a raised version
    would break a graph in which the caller has saved them.
    """
    held = [(m, dict(m._buffers.items())) for m in modules]
    tensors = [*written, *(b for _, buffers in held for b in buffers.values() if b is not None)]
    values = [(t, t.detach().clone()) for t in tensors]
    try:
        yield
    finally:
        for module, before in held:
            now = dict(module._buffers.items())
            if now.keys() != before.keys() or any(now[name] is not b for name, b in before.items()):
                _put_buffers(module, before)
        for buffer, value in values:
            with torch.inference_mode(buffer.is_inference()):
                buffer.data.copy_(value)


def _put_buffers(module: nn.Module, before: dict[str, Tensor | None]) -> None:
    """The same tensors under the same names: some were put in their place, or registered anew."""
    if isinstance(module, torch.jit.ScriptModule):  # gives out a new tensor at each look; its values are put back
        return
    module._non_persistent_buffers_set -= module._buffers.keys() - before.keys()
    module._buffers.clear()
    module._buffers.update(before)


@contextmanager
def flags(modules: Modules, mode: str) -> Iterator[None]:
    """Every submodule in eval (`mode="as-is"`: as it stands), and its own flag back afterwards."""
    before = [m.training for m in modules]
    try:
        if mode == "eval":
            for m, training in zip(modules, before, strict=True):
                if training:
                    m.training = False  # not .eval(): users override it, and exported nets refuse it
        yield
    finally:
        for m, training in zip(modules, before, strict=True):
            if m.training != training:
                m.training = training


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A fork of every RNG that a net may draw from, started at `seed`."""
    before = rng_states(device)
    _start(seed, device)
    try:
        yield
    finally:
        put_rng_states(before, device)


def slow_to_ask(device: torch.device) -> bool:
    """Whether looking at a value waits for work that was handed to the device."""
    return device.type != "cpu"


def _backend(device: torch.device) -> Any:
    return None if device.type in ("cpu", "meta") else getattr(torch, device.type)


def rng_states(device: torch.device) -> tuple[Any, ...]:
    backend = _backend(device)
    own = None if backend is None else _rng(backend.get_rng_state, device)
    return torch.default_generator.get_state(), own, np.random.get_state(), random.getstate()


def _start(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if (backend := _backend(device)) is not None:
        with torch.device(device):
            backend.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def put_rng_states(states: tuple[Any, ...], device: torch.device) -> None:
    torch.default_generator.set_state(states[0])
    if (backend := _backend(device)) is not None:
        _rng(backend.set_rng_state, device, states[1])
    np.random.set_state(states[2])
    random.setstate(states[3])


def _rng(call: Callable[..., Any], device: torch.device, *state: Any) -> Any:
    return call(*state) if device.type == "mps" else call(*state, device)


class SharedNoise(TorchFunctionMode):
    """Dropout that a net leaves always on draws one mask for all rows, so that splitting a batch changes nothing."""

    met = False  # whether the net ever asked for noise

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op, x = name_of(func), args[0] if args else None
        if op not in DROPOUTS | NOISES or not isinstance(x, Tensor) or x.ndim < 2 or not _training(args, kwargs):
            return func(*args, **kwargs)
        self.met = True
        if op in NOISES:
            return func(x[:1], *args[1:], **kwargs).expand_as(x).clone()
        mask = func(torch.ones_like(x[:1]), *args[1:], **kwargs)  # (1, ...), scaled by 1 / (1 - p)
        if isinstance(mask, tuple):  # native_dropout gives (output, mask)
            return x * mask[0], mask[1].expand_as(x)
        in_place = func.__name__.endswith("_") or kwargs.get("inplace", len(args) > 3 and args[3])
        return x.mul_(mask) if in_place else x * mask


def _training(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True)))


@contextmanager
def own_settings(device: torch.device) -> Iterator[None]:
    """Out of the caller's autocast, compiled graphs and fused attention, which bypass hooks."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # nothing is compiled otherwise
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def gradients_on(grad: bool) -> Iterator[None]:
    """Work although the caller may be in no_grad or inference_mode."""
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


@contextmanager
def narrowed(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Mixed precision, if any. Nothing is cached: casts made without a graph would stay for the caller's autocast."""
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype, cache_enabled=False):
        yield
