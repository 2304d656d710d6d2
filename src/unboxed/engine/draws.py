"""Random draws keyed by (seed, row in the call): a row draws the same however the batch is split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PRIME = 1_000_003


def normal(like: Tensor, seed: int) -> Tensor:
    """Standard normal values shaped like `like`, each row from its own generator on its device."""
    return _rowwise(torch.randn, like, seed)


def uniform(like: Tensor, seed: int) -> Tensor:
    """Uniform values in [0, 1) shaped like `like`, each row from its own generator on its device."""
    return _rowwise(torch.rand, like, seed)


def _rowwise(draw: Callable[..., Tensor], like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device)
    rows = []
    for i in range(len(like)):
        generator.manual_seed(seed * PRIME + i)
        rows.append(draw(like.shape[1:], generator=generator, device=like.device, dtype=like.dtype))
    return torch.stack(rows)


def shared(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one step, the same for all rows."""
    return torch.Generator(device).manual_seed(seed * PRIME + step)


def of_sample(seed: int, row: int, sample: int, device: torch.device) -> torch.Generator:
    """The generator of one sample (or block of them) of one row, whatever batch it is drawn in."""
    return torch.Generator(device).manual_seed(((seed * PRIME + row) * PRIME + sample) % 2**63)


def hashed(seed: int, rows: Tensor, step: int, count: int) -> Tensor:
    """Uniform float32 values (n, count) in [0, 1) keyed by (seed, row, step), without a generator: for draws at every
    step of rows that come and go. `rows` (n,) are the rows' numbers in the call; alike on every device.

    The finalizer of Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators" (splitmix64).
    """
    k = torch.arange(count, device=rows.device)
    z = _mixed(_mixed(rows + seed * PRIME)[:, None] + step * count + k)
    return (z >> 40 & 0xFFFFFF) / float(1 << 24)


def _mixed(z: Tensor) -> Tensor:
    z = (z + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15, as torch's whole numbers are signed
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ (z >> 31 & (1 << 33) - 1)
