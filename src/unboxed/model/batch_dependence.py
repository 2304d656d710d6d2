"""Whether the rows of a batch depend on one another: then no batch of the model may be split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .hooks import tensors_in
from .op_mode import DispatchMode

BATCH_DEPENDENCE_PROBE_SEEDS = (0, 1)
"""A dropped unit may hide a dependence at one seed: a stochastic model is run with both."""

SeededRunFn = Callable[[Tensor, int], tuple[Any, object]]
"""(rows, seed) -> the model's output, and what it drew."""


class RandomOpRecorder(DispatchMode):
    """Records the shape of all random numbers that ops draw from torch's default generator of a device, or another."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.sampled_shapes: list[tuple[str, tuple[int, ...]]] = []
        is_host = device.type in ("cpu", "meta")
        self._get_state: Callable[[], Tensor] = (
            torch.default_generator.get_state if is_host else getattr(torch, device.type).get_rng_state
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        before, is_private = self._get_state(), (kwargs or {}).get("generator") is not None
        out = func(*args, **(kwargs or {}))
        if is_private or not torch.equal(before, self._get_state()):  # attention without dropout has the tag, too
            self.sampled_shapes.append((func.name(), *[tuple(h.shape) for h in tensors_in(out)][:1]))
        return out


PROBED_ROW_INDICES, PROBE_BATCH_ROW_ORDERS = (0, 1), ((2, 1, 0), (0, 3, 1))
"""Rows 0 and 1 alone, and among rows that are lower and higher than both, at other positions and batch sizes."""


def contrasting_input_levels(shape: Sequence[int], device: torch.device) -> Tensor:
    """Levels (4, *shape) in [0, 1] of four inputs: two in the middle, one near the low end, one mostly at the high end.

    The last two change whatever statistic of a batch its rows may depend on: extremes, mean, spread.
    """
    u = torch.rand(4, *shape, generator=torch.Generator(device).manual_seed(0), device=device)
    low, high = 0.1 * (u[2:3] - 0.5).clamp(min=0), (u[3:] < 0.9).to(u.dtype)  # half at 0; of high contrast
    return torch.cat([0.3 + 0.4 * u[:2], low, high])


def is_batch_dependent(run: SeededRunFn, x: Tensor, seeds: Sequence[int], max_rows: int) -> bool:
    """Whether the outputs of rows 0 and 1 of x (4, ...) differ among other rows, or random numbers are per row.

    A model that takes one row at a time (`max_rows` 1) has no dependence.
    """
    return max_rows > 1 and any(_is_batch_dependent_at_seed(run, x, seed, max_rows) for seed in seeds)


def _is_batch_dependent_at_seed(run: SeededRunFn, x: Tensor, seed: int, max_rows: int) -> bool:
    alone, sampled = run(x[list(PROBED_ROW_INDICES)], seed)
    for rows in (batch[:max_rows] for batch in PROBE_BATCH_ROW_ORDERS):
        among, sampled_again = run(x[list(rows)], seed)
        if sampled != sampled_again or _probed_rows_differ(alone, among, rows):
            return True
    return False


def _probed_rows_differ(alone: Any, among: Any, rows: Sequence[int]) -> bool:
    """Whether row 0 or 1 of the outputs alone differs from the same row of the outputs for `rows`."""
    pairs = [
        (a, b) for a, b in zip(tensors_in(alone), tensors_in(among), strict=False)
        if a.ndim and len(a) == len(PROBED_ROW_INDICES) and b.ndim and len(b) == len(rows) and a.is_floating_point()
    ]  # fmt: skip
    return any(not _nearly_equal(a[k], b[rows.index(k)]) for a, b in pairs for k in PROBED_ROW_INDICES if k in rows)


def _nearly_equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: an accelerator chooses kernels (TF32 among them) by batch size."""
    is_exact = a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64)
    rtol, atol = (1e-4, 1e-5) if is_exact else (2e-2, 2e-2 * float(a.abs().nan_to_num().max()) if a.numel() else 0.0)
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
