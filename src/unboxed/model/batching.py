"""Bounded batches: work is split into parts that fit in memory, which does not change results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import AtLeast

BatchSize = Annotated[
    int | Literal["auto"], AtLeast(1), 'Examples per forward pass; "auto" takes as many as fit in memory.'
]
T = TypeVar("T")


def check_batch_size(batch_size: object) -> BatchSize:
    """A whole number, 1 or more, as an int, or "auto". Raises InputError."""
    if isinstance(batch_size, str) and batch_size == "auto":
        return "auto"
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f'batch_size must be a positive int or "auto"; got {batch_size!r}')
    return int(batch_size)


def map_in_batches(func: Callable[[slice], T], n: int, batch_size: BatchSize, max_rows: int) -> list[T]:
    """Call `func` on consecutive parts of n rows; "auto" takes up to `max_rows` and halves when memory runs out."""
    batch_size = check_batch_size(batch_size)
    even_size = -(-n // max(1, -(-n // max_rows)))  # equal parts, none larger than `max_rows`
    step, start, results = even_size if batch_size == "auto" else batch_size, 0, list[T]()
    while start < n:
        try:
            results.append(func(slice(start, min(start + step, n))))
        except RuntimeError as error:
            if batch_size != "auto" or step == 1 or not is_out_of_memory_error(error):
                raise
            step = max(1, min(step, n - start) // 2)
            continue
        start += step
    return results


def is_out_of_memory_error(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class BatchPadding(NamedTuple):
    """n rows followed by copies of the last one, `padded_n` in all, for a model that takes no fewer."""

    n: int
    padded_n: int

    def pad(self, x: Tensor) -> Tensor:
        extra = self.padded_n - self.n
        return torch.cat([x, x[-1:].expand(extra, *x.shape[1:])]) if extra else x

    def split(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """The n rows and the padding, if any; a tensor without a batch axis has no padding."""
        if self.n == self.padded_n or not h.ndim or len(h) % self.padded_n:
            return h, None
        true = len(h) * self.n // self.padded_n
        return h[:true], h[true:]


def map_example_variants_in_batches(
    func: Callable[[Tensor, Tensor], T],
    n: int,
    n_variants: int,
    plan: tuple[BatchSize, int],
    one_variant_per_batch: bool,
    device: torch.device | str = "cpu",
) -> list[T]:
    """Call `func(examples (R,), variants (R,))` on all pairs of n examples and their variants, by a batch plan.

    `together`: a batch is all examples in one variant, because they depend on one another.
    """
    if one_variant_per_batch:
        rows = torch.arange(n, device=device)
        return map_in_batches(lambda part: func(rows, torch.full_like(rows, part.start)), n_variants, 1, 1)

    def run_part(part: slice) -> T:
        index = torch.arange(part.start, part.stop, device=device)
        return func(index // n_variants, index % n_variants)

    return map_in_batches(run_part, n * n_variants, *plan)


def run_all_example_variants(
    func: Callable[[Tensor, Tensor], Sequence[Tensor]],
    n: int,
    n_variants: int,
    plan: tuple[BatchSize, int],
    one_variant_per_batch: bool,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The outputs (R, ...) of `func` for all pairs, as (N, K, ...): see `map_example_variants_in_batches`."""
    parts = zip(*map_example_variants_in_batches(func, n, n_variants, plan, one_variant_per_batch, device), strict=True)
    if one_variant_per_batch:
        return [torch.stack(h, 1) for h in parts]
    return [(flat := torch.cat(h)).view(n, n_variants, *flat.shape[1:]) for h in parts]
