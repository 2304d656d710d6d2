"""Leave no trace: contexts for train flags, RNGs and global settings, which are restored afterwards."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from operator import attrgetter
from threading import Lock
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..autocast import leaving_autocast
from ..errors import InputError
from .locks import RNG_LOCK, holding_locks
from .op_tables import DROPOUT_OPS, NOISE_OPS, canonical_op_name

P = ParamSpec("P")
R = TypeVar("R")

Modules = tuple[nn.Module, ...]
GET_TRAINING = attrgetter("training")


class setting_train_flags:
    """While open, every submodule is in eval mode (`mode="as-is"`: unchanged); afterwards its own flag is restored.

    A class, as a generator would cost more than the flags do: each forward pass of a box enters it.
    """

    def __init__(self, modules: Modules, mode: str) -> None:
        self.modules, self.mode = modules, mode

    def __enter__(self) -> None:
        self.before = list(map(GET_TRAINING, self.modules))
        if self.mode == "eval" and True in self.before:
            try:
                for m, training in zip(self.modules, self.before, strict=True):
                    if training:
                        m.training = False  # not .eval(): users override it, and exported models refuse it
            except BaseException:  # Ctrl-C
                self.__exit__()
                raise

    def __exit__(self, *error: object) -> None:
        if list(map(GET_TRAINING, self.modules)) != self.before:
            for m, training in zip(self.modules, self.before, strict=True):
                if m.training != training:
                    m.training = training


@contextmanager
def forking_rngs_with_lock(seed: int, device: torch.device) -> Iterator[None]:
    """As `forking_rngs`; other boxes whose models are stochastic wait until it ends."""
    with holding_locks((RNG_LOCK,)), forking_rngs(seed, device):
        yield


@contextmanager
def forking_rngs(seed: int, device: torch.device) -> Iterator[None]:
    """While open, every RNG that a model may use starts from `seed`; afterwards its state is restored."""
    before = rng_states(device)
    seed_rngs(seed, device)
    try:
        yield
    finally:
        restore_rng_states(before, device)


@contextmanager
def detecting_rng_use(device: torch.device) -> Iterator[list[str]]:
    """On exit, fill the list with the RNGs ("torch", "numpy", "random") that were used inside."""
    used: list[str] = []
    with holding_locks((RNG_LOCK,)):
        before = rng_states(device)
        try:
            yield used
        finally:
            after = rng_states(device)
            restore_rng_states(before, device)
            used += _names_of_changed_rngs(before, after)


def _names_of_changed_rngs(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[str]:
    torch_unchanged = torch.equal(before[0], after[0]) and (before[1] is None or torch.equal(before[1], after[1]))
    (kind, keys, *rest), (kind_now, keys_now, *rest_now) = before[2], after[2]
    numpy_unchanged = (kind, rest) == (kind_now, rest_now) and np.array_equal(keys, keys_now)
    unchanged_by_name = {"torch": torch_unchanged, "numpy": numpy_unchanged, "random": before[3] == after[3]}
    return [name for name, unchanged in unchanged_by_name.items() if not unchanged]


def waits_for_device_on_read(device: torch.device) -> bool:
    """Whether reading a value waits for the device."""
    return device.type != "cpu"


def _accelerator_backend(device: torch.device) -> Any:
    return None if device.type in ("cpu", "meta") else getattr(torch, device.type)


def rng_states(device: torch.device) -> tuple[Any, ...]:
    backend = _accelerator_backend(device)
    device_state = None if backend is None else _call_rng_function_for_device(backend.get_rng_state, device)
    return torch.default_generator.get_state(), device_state, np.random.get_state(), random.getstate()


def numpy_and_python_rng_states() -> tuple[Any, ...]:
    """The states of NumPy's and Python's RNGs, to compare."""
    kind, keys, *rest = np.random.get_state()
    return kind, np.asarray(keys).tobytes(), *rest, random.getstate()


def seed_rngs(seed: int, device: torch.device) -> None:
    """Start every RNG that a model may use from a seed; inside `forking_rngs` this is undone afterwards."""
    torch.default_generator.manual_seed(seed)
    if (backend := _accelerator_backend(device)) is not None:
        with torch.device(device):
            backend.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def restore_rng_states(states: tuple[Any, ...], device: torch.device) -> None:
    torch.default_generator.set_state(states[0])
    if (backend := _accelerator_backend(device)) is not None:
        _call_rng_function_for_device(backend.set_rng_state, device, states[1])
    np.random.set_state(states[2])
    random.setstate(states[3])


def _call_rng_function_for_device(call: Callable[..., Any], device: torch.device, *state: Any) -> Any:
    return call(*state) if device.type == "mps" else call(*state, device)


class SharedDropoutMaskMode(TorchFunctionMode):
    """Dropout that is always on draws one mask for all rows, so that splitting a batch does not change results."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op, x = canonical_op_name(func), args[0] if args else None
        if (
            op not in DROPOUT_OPS | NOISE_OPS
            or not isinstance(x, Tensor)
            or x.ndim < 2
            or not _has_training_argument(args, kwargs)
        ):
            return func(*args, **kwargs)
        if op in NOISE_OPS:
            return func(x[:1], *args[1:], **kwargs).expand_as(x).clone()
        mask = func(torch.ones_like(x[:1]), *args[1:], **kwargs)  # (1, ...), scaled by 1 / (1 - p)
        if isinstance(mask, tuple):  # native_dropout gives (output, mask)
            return x * mask[0], mask[1].expand_as(x)
        in_place = func.__name__.endswith("_") or kwargs.get("inplace", len(args) > 3 and args[3])
        return x.mul_(mask) if in_place else x * mask


def _has_training_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True)))


class RefCountedContext:
    """A setting of the process, changed while any thread needs it and restored by the last one."""

    def __init__(self, make_context: Callable[[], AbstractContextManager[None]]) -> None:
        self.make_context = make_context
        self.lock, self.n_users, self.context = Lock(), 0, None

    context: AbstractContextManager[None] | None

    def __enter__(self) -> None:
        with self.lock:
            if self.n_users == 0:
                self.context = self.make_context()
                self.context.__enter__()
            self.n_users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.n_users -= 1
            if self.n_users == 0 and self.context is not None:
                self.context.__exit__(None, None, None)


@contextmanager
def disabling_attention_fast_path() -> Iterator[None]:
    """torch fuses the attention of a layer that no hook watches, which rounds differently; not in here."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _ForceEager:
    """As `with torch.compiler.set_stance(...)`, which sets the stance when it is made and once more on entering."""

    def __enter__(self) -> None:
        self.stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *error: object) -> None:
        self.stance.__exit__(None, None, None)


UNFUSED_ATTENTION_CONTEXT, EAGER_MODE_CONTEXT = (
    RefCountedContext(disabling_attention_fast_path),
    RefCountedContext(_ForceEager),
)
MATH_ATTENTION_CONTEXT = RefCountedContext(lambda: sdpa_kernel(SDPBackend.MATH))
"""Attention by its plain form: the fused ones have no second derivative."""
FUSED_ATTENTION_MODULE_TYPES = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def without_compiled_graphs() -> AbstractContextManager[object]:
    """A context in which compiled modules run as they were written."""
    return EAGER_MODE_CONTEXT if "torch._dynamo" in sys.modules else NULL_CONTEXT  # else nothing is compiled


def hook_safe_contexts(device_type: str, has_fused_attention: bool = True) -> list[AbstractContextManager[object]]:
    """Contexts that disable the caller's autocast, compiled graphs and fused attention, which bypass hooks."""
    settings = list[AbstractContextManager[object]]()
    if (eager := without_compiled_graphs()) is not NULL_CONTEXT:
        settings.append(eager)
    if torch.is_autocast_enabled(device_type):
        settings.append(torch.autocast(device_type, enabled=False))
    if has_fused_attention:
        settings.append(UNFUSED_ATTENTION_CONTEXT)
    return settings


def combined_context(contexts: Sequence[AbstractContextManager[object]]) -> AbstractContextManager[object]:
    """These contexts as one, entered in turn; the common cases of none and one cost nothing."""
    if len(contexts) < 2:
        return contexts[0] if contexts else NULL_CONTEXT
    return _combined_context(contexts)


@contextmanager
def _combined_context(contexts: Sequence[AbstractContextManager[object]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


NULL_CONTEXT = nullcontext()


def leaving_inference_mode() -> AbstractContextManager[None]:
    """torch.inference_mode(False) where the caller is in inference_mode; else nothing, at no cost."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else NULL_CONTEXT


def copy_to(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy without its graph."""
    if x.dtype == dtype and x.device == device:
        return x.detach().clone() if x.requires_grad else x.clone()
    return x.detach().to(device, dtype, copy=True)


def outside_callers_modes(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run outside the caller's inference_mode, where nothing has a gradient, and outside autocast."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with leaving_inference_mode(), leaving_autocast():
            return function(*args, **kwargs)

    return run


def setting_grad_mode(grad: bool) -> AbstractContextManager[None]:
    """Gradient mode on or off, also where the caller is in no_grad or inference_mode."""
    return _leaving_inference_mode(grad) if torch.is_inference_mode_enabled() else _GradMode(grad)


class _GradMode:
    """As torch.set_grad_enabled, but acts when entered."""

    def __init__(self, grad: bool) -> None:
        self.grad = grad

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(self.grad)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self.before)


@contextmanager
def _leaving_inference_mode(grad: bool) -> Iterator[None]:
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


def autocast_context(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Mixed precision, if any. Without a cache: casts made without a graph would remain in the caller's autocast."""
    return NULL_CONTEXT if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def check_autocast_dtype(autocast: object, dtype: torch.dtype) -> torch.dtype:
    """The setting itself, if a model in `dtype` may run in it. Raises InputError."""
    if autocast not in (torch.bfloat16, torch.float16):
        raise InputError(f"autocast must be torch.bfloat16, torch.float16 or None; got {autocast!r}")
    if dtype != torch.float32:
        raise InputError(f"autocast is for models in torch.float32; this one is in {dtype}")
    return autocast
