"""A snapshot of all that a method may not change: in the model, in torch, in the process."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.overrides import _get_current_function_mode_stack as _stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


@dataclass(frozen=True, eq=False)
class TensorSnapshot:
    """A tensor as it was: the object itself and a copy of its values."""

    tensor: Tensor
    value: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSnapshot:
        return cls(tensor, tensor.detach().clone())

    def is_unchanged(self, other: Any) -> bool:
        return (
            isinstance(other, TensorSnapshot)
            and other.tensor is self.tensor
            and other.value.dtype == self.value.dtype
            and torch.equal(other.value.nan_to_num(), self.value.nan_to_num())
        )


def snapshot(model: nn.Module, *user_tensors: Tensor) -> dict[str, Any]:
    """All state that a method may not change: of the model, the caller's tensors, torch and the process.

    Args:
        model: The model.
        user_tensors: Tensors of the caller, such as inputs and labels.

    Returns:
        {name: state}, for `changes`.

    Example:
        >>> import torch
        >>> from unboxed.testing import changes, snapshot
        >>> model = torch.nn.BatchNorm1d(2)
        >>> before = snapshot(model)
        >>> _ = model(torch.ones(4, 2))
        >>> changes(before, snapshot(model))
        ['.num_batches_tracked', '.running_mean', '.running_var']
    """
    return dict([*_model_state(model), *_torch_state(), *_process_state(), *_user_tensor_states(user_tensors)])


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of all state that differs between two snapshots.

    Args:
        before: A snapshot.
        after: A later one.

    Returns:
        Sorted names; empty where nothing changed.

    Example:
        >>> import torch
        >>> from unboxed.testing import changes, snapshot
        >>> model = torch.nn.Linear(2, 2)
        >>> changes(snapshot(model), snapshot(model.eval()))
        [' training']
    """
    added_or_removed = before.keys() ^ after.keys()
    return sorted(
        added_or_removed | {k for k in before.keys() & after.keys() if not _is_same_value(before[k], after[k])}
    )


def _is_same_value(a: Any, b: Any) -> bool:
    if isinstance(a, TensorSnapshot):
        return a.is_unchanged(b)
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def _model_state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        yield f"{path} module", id(module)
        yield f"{path} training", module.training
        yield f"{path} attributes", sorted(vars(module))
        yield from (
            (f"{path} {k}", list(v.items())) for k, v in vars(module).items() if "hook" in k and hasattr(v, "items")
        )
        yield from _parameters_and_buffers(path, module)


def _parameters_and_buffers(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    for kind in ("_parameters", "_buffers"):
        for name, value in getattr(module, kind).items():
            yield f"{path}.{name}", None if value is None else TensorSnapshot.of(value)
            if value is not None:
                yield from ((f"{path}.{name} {k}", v) for k, v in _tensor_state(value))


def _tensor_state(t: Tensor) -> Iterator[tuple[str, Any]]:
    yield "requires_grad", t.requires_grad
    yield "grad", TensorSnapshot.of(t.grad) if t.is_leaf and t.grad is not None else None
    yield "grad_fn", t.grad_fn
    yield "tensor hooks", list((t._backward_hooks or {}).items())
    yield "memory format", (t.shape, t.stride(), t.device)


def _user_tensor_states(user_tensors: tuple[Tensor, ...]) -> Iterator[tuple[str, Any]]:
    for i, t in enumerate(user_tensors):
        yield f"the caller's tensor {i}", TensorSnapshot.of(t)
        yield from ((f"the caller's tensor {i} {k}", v) for k, v in _tensor_state(t))


def _torch_state() -> Iterator[tuple[str, Any]]:
    yield "grad mode", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield (
        "autocast",
        (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
    )
    yield "function modes", [id(m) for m in _stack()]  # type: ignore[no-untyped-call]
    yield "dispatch modes", [id(m) for m in _get_current_dispatch_mode_stack()]
    yield "saved tensor hooks", torch._C._autograd._top_saved_tensors_default_hooks(True)
    yield "defaults", (torch.get_default_dtype(), str(torch.get_default_device()), torch.get_num_threads())
    yield (
        "deterministic",
        (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
    )
    yield "anomaly", (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    flash: bool = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    yield "fused attention", (torch.backends.mha.get_fastpath_enabled(), flash)
    yield (
        "scripting",
        (torch._C._get_graph_executor_optimize(), torch._C._jit_set_profiling_executor(True), _jit_profiled_runs()),
    )
    yield from (
        (k, list(v.items())) for k, v in vars(module_globals).items() if k.startswith("_global") and hasattr(v, "items")
    )
    dynamo = sys.modules.get("torch._dynamo")  # importing it here would be a change
    yield "compiler stance", "default" if dynamo is None else dynamo.eval_frame._stance.stance


def _jit_profiled_runs() -> int:
    set_runs: Any = torch._C._jit_set_num_profiled_runs  # its stub is wrong: it takes and returns an int
    runs = int(set_runs(1))
    set_runs(runs)
    return runs


def _process_state() -> Iterator[tuple[str, Any]]:
    yield "torch RNG", torch.get_rng_state()
    if torch.cuda.is_available():
        yield "CUDA RNG", torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)
    yield "NumPy RNG", (name, np.asarray(keys).tobytes(), *rest)
    yield "Python RNG", random.getstate()
    yield "Ctrl-C handler", signal.getsignal(signal.SIGINT)
