"""Whether a model's rows depend on one another: then no batch of it may be split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .taps import tensors_in

SEEDS = (0, 1)
"""A gate that is open at one seed may be shut at another: a model that draws is run under both."""

Run = Callable[[Tensor, int], tuple[Any, object]]
"""Rows and a seed -> what the model gives for them, and what it drew."""


class RandomOps(TorchDispatchMode):
    """Notes the shape of everything that ops draw from torch's default generator of a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[str, tuple[int, ...]]] = []
        host = device.type in ("cpu", "meta")
        self._state: Callable[[], Tensor] = (
            torch.default_generator.get_state if host else getattr(torch, device.type).get_rng_state
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        before = self._state()
        out = func(*args, **(kwargs or {}))
        if not torch.equal(before, self._state()):  # attention without dropout has the tag, too
            self.shapes.append((func.name(), *[tuple(h.shape) for h in tensors_in(out)][:1]))
        return out


def rows_couple(run: Run, x: Tensor, seeds: Sequence[int]) -> bool:
    """Whether a row of x (4, ...) comes out differently at another position beside other rows, or draws are per row."""
    for seed in seeds:
        first, drew = run(x[:3], seed)
        second, drew_again = run(x[1::2] if len(x) > 1 else x, seed)
        if _differ(first, second) or (len(x) > 1 and drew != drew_again):
            return True
    return False


def _differ(first: Any, second: Any) -> bool:
    """Whether row 1 of three is no longer what it is as row 0 of two."""
    pairs = zip(tensors_in(first), tensors_in(second), strict=False)
    rows = [(a[1], b[0]) for a, b in pairs if a.ndim and len(a) == 3 and len(b) == 2 and a.is_floating_point()]
    return any(not _equal(a, b) for a, b in rows)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: an accelerator picks other kernels (TF32 among them) for another batch size."""
    exact = a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64)
    rtol, atol = (1e-4, 1e-5) if exact else (2e-2, 2e-2 * float(a.abs().nan_to_num().max()) if a.numel() else 0.0)
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
