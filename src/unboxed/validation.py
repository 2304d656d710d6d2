"""Checks of settings: each returns the value or raises InputError that says what was wanted."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from hashlib import blake2b
from numbers import Integral, Real

from .errors import InputError, LayerError

SEED_BITS = 40  # larger seeds are folded: what random streams are keyed by must fit 64 bits with row and step beside it


def whole(name: str, value: object, least: int = 0) -> int:
    """A whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return int(value)


def number(
    name: str, value: object, above: float = -math.inf, below: float = math.inf, *,
    least: float = -math.inf, most: float = math.inf,
) -> float:  # fmt: skip
    """A finite number strictly between `above` and `below`, and from `least` to `most`, the two included."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not above < float(value) < below or not least <= float(value) <= most:  # type: ignore[arg-type]
        raise InputError(f"{name} must be a number{_bounds(above, below, least, most)}; got {value!r}")
    return float(value)  # type: ignore[arg-type]


def _bounds(above: float, below: float, least: float, most: float) -> str:
    """The bounds in words."""
    if math.isfinite(least):
        return f" from {least:g} to {most:g}" if math.isfinite(most) else _both(f", {least:g} or more", below)
    if math.isfinite(above) and math.isfinite(below):
        return f" between {above:g} and {below:g}, both excluded"
    low = f" above {above:g}" if math.isfinite(above) else ""
    return f"{low}{' and' if low else ','} {most:g} or less" if math.isfinite(most) else _both(low, below)


def _both(low: str, below: float) -> str:
    return f"{low}{' and' if low else ''} below {below:g}" if math.isfinite(below) else low


def check_seed(seed: object) -> int:
    """The seed of random draws: any whole number. Negative and huge ones are folded, always alike.

    Whoever takes a seed from a caller uses what this returns.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise InputError(f"seed must be a whole number, of any size; got {seed!r}")
    value, top = int(seed), 1 << SEED_BITS
    if 0 <= value < 2 * top:  # what was folded stays as it is
        return value
    return top + int.from_bytes(blake2b(b"%d" % value, digest_size=8).digest(), "big") % top


def class_names(classes: object, n: int, before: int | None = None) -> tuple[str, ...]:
    """The names of n outputs, of which there were `before` when the model was opened; their numbers without names."""
    given = range(n) if classes is None else classes
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(f"classes are the names of the {n} outputs, in their order; got {classes!r}")
    names = tuple(map(str, given))
    if len(names) != n:
        again = f"It had {before} when it was opened; open it again: ub.Box(model, inputs, classes=...)"
        one = "Give one per output, in their order, or none: outputs are then named by their numbers"
        hint = one if before in (None, n) else again
        raise InputError(f"the model has {n} outputs; got {len(names)} class names. {hint}")
    return names


def listed_addresses(addresses: object) -> list[str]:
    """Layer addresses, one or many, as a list."""
    if isinstance(addresses, str):
        return [addresses]
    if not isinstance(addresses, Collection):
        raise LayerError(f"wanted the address of a layer, or a list of them; got {addresses!r}")
    return list(addresses)
