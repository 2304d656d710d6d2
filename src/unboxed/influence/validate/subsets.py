"""Random subsets of the training examples that are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ... import rng
from ...errors import InputError
from ...validation import check_float


def to_fraction_tuple(fractions: float | Sequence[float]) -> tuple[float, ...]:
    """Fractions between 0 and 1, one or several. Raises InputError where there is none."""
    given = list(fractions) if isinstance(fractions, Iterable) and not isinstance(fractions, str) else [fractions]
    if not given:
        raise InputError("fractions must be one number or several, between 0 and 1; got none")
    return tuple(check_float("a fraction", fraction, above=0, below=1) for fraction in given)


def left_out_subset_size(fraction: float, n: int) -> int:
    """How many of n examples a fraction is. Raises InputError where that is none or all of them."""
    size = round(check_float("a fraction", fraction, above=0, below=1) * n)
    if not 0 < size < n:
        raise InputError(f"a fraction of {fraction:g} of {n} examples leaves out {size} of them; wanted some, not all")
    return size


def left_out_subset_masks(n: int, fractions: Sequence[float], n_subsets: int, seed: int) -> Tensor:
    """Whether each example is left out, (F, S, N) bool: random subsets for each fraction.

    A subset depends on its size, its number and the seed alone.
    """
    left_out = torch.zeros(len(fractions), n_subsets, n, dtype=torch.bool)
    for f, fraction in enumerate(fractions):
        size = left_out_subset_size(fraction, n)
        for i in range(n_subsets):
            generator = rng.keyed_generator(rng.CPU, "left-out subset", seed, size, i)
            left_out[f, i, torch.randperm(n, generator=generator)[:size]] = True
    return left_out
