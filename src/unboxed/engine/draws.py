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
