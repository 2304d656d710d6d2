"""Small operations on the rows of a batch that many methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # figures need `evenly_spaced_indices`, and not torch
    from torch import Tensor


def broadcast_rows(values: Tensor, like: Tensor) -> Tensor:
    """A value per row (N,) as (N, 1, ...), which broadcasts with a tensor (N, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def evenly_spaced_indices(n: int, max_count: int) -> list[int]:
    """At most `max_count` of the indices 0 to n - 1, evenly spaced, with the first and the last one."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, max_count))}) if n else []
