"""Bounded batches: work is done in parts that fit in memory, and splitting changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from ..errors import InputError

BatchSize = int | Literal["auto"]
T = TypeVar("T")


def in_batches(func: Callable[[slice], T], n: int, batch_size: BatchSize, max_rows: int) -> list[T]:
    """`work` on consecutive parts of n rows; "auto" takes `most` rows at a time and halves when memory runs out."""
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f'batch_size must be a positive int or "auto"; got {batch_size!r}')
    even_size = -(-n // max(1, -(-n // max_rows)))  # equal parts, none larger than `most`
    step, start, results = even_size if batch_size == "auto" else batch_size, 0, list[T]()
    while start < n:
        try:
            results.append(func(slice(start, min(start + step, n))))
        except RuntimeError as error:
            if batch_size != "auto" or step == 1 or not is_out_of_memory(error):
                raise
            step = max(1, min(step, n - start) // 2)
            continue
        start += step
    return results


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
