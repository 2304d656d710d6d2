"""Checks of settings: each returns the value or raises InputError that says what was wanted."""

from __future__ import annotations

import math
from numbers import Integral, Real

from .errors import InputError


def whole(name: str, value: object, least: int = 0) -> int:
    """A whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return int(value)


def number(name: str, value: object, above: float = -math.inf, below: float = math.inf) -> float:
    """A number strictly between two bounds; never NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, Real) or not above < float(value) < below:
        limits = f" between {above:g} and {below:g}" if math.isfinite(below) else f" above {above:g}"
        raise InputError(f"{name} must be a number{limits if math.isfinite(above) else ''}; got {value!r}")
    return float(value)
