"""Random numbers keyed by (stream, seed, row, ...): a row gets the same numbers however the batch is split.

Streams are independent, as their purpose is part of the key: the random start of a row never equals what a step draws,
and seed 8 shares nothing with a second sample of seed 7.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

CPU = torch.device("cpu")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for a tuple of ints (of any size) and names: a different one for each tuple."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def keyed_generator(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator on a device, keyed by `parts`."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def normal(like: Tensor, seed: int, stream: str = "start") -> Tensor:
    """Standard normal values shaped like `like`, each row from its own generator on its device."""
    return _fill_rows_with_own_generators(Tensor.normal_, like, ("normal", stream, seed))


def uniform(like: Tensor, seed: int, stream: str = "start") -> Tensor:
    """Uniform values in [0, 1) shaped like `like`, each row from its own generator on its device."""
    return _fill_rows_with_own_generators(Tensor.uniform_, like, ("uniform", stream, seed))


def _fill_rows_with_own_generators(
    fill: Callable[..., Tensor], like: Tensor, key_parts: tuple[int | str, ...]
) -> Tensor:
    rng = torch.Generator(like.device)
    samples = torch.empty(like.shape, device=like.device, dtype=like.dtype)
    for i, row in enumerate(samples.unbind()):
        rng.manual_seed(derive_seed(*key_parts, i))
        fill(row, generator=rng)
    return samples


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one step, the same for all rows."""
    return keyed_generator(device, "step", seed, step)


def sample_generator(seed: int, row: int, sample: int, device: torch.device) -> torch.Generator:
    """The generator of one sample (or block of them) of one row, independent of the batch."""
    return keyed_generator(device, "sample", seed, row, sample)


def hashed_uniform(seed: int, rows: Tensor, step: int, n_values: int) -> Tensor:
    """Uniform float32 values (n, n_values) in [0, 1), keyed by (seed, row, step) and the same on every device.

    Without a generator: for numbers at each step for the rows that are still active. `rows` (n,) are their indices.

    Source:
        Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators": the finalizer of splitmix64.
    """
    k = torch.arange(n_values, device=rows.device)
    z = _splitmix64(_splitmix64(_splitmix64(rows + derive_seed("hashed", seed)) + step)[:, None] + k)
    return (z >> 40 & 0xFFFFFF) / float(1 << 24)


def _splitmix64(z: Tensor) -> Tensor:
    z = (z + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15; torch's ints are signed
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ (z >> 31 & (1 << 33) - 1)
