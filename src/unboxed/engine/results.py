"""What attribution methods give: a tensor shaped like x, or more, with the map as its `map`; and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError, warn


def attribution_map(result: Any) -> Tensor:
    """The map (N, ...) of whatever an attribution method gave. Raises InputError where there is none, or several."""
    attribution = getattr(result, "map", result)
    if not isinstance(attribution, Tensor):
        raise InputError(f"wanted a map, or a result with one; got {type(result).__name__}")
    return attribution


def map_structure(fn: Callable[..., Tensor], *structures: Any) -> Any:
    """`work` on tensors, or on each part of dicts or tuples of them, as they come of several inputs."""
    first = structures[0]
    if isinstance(first, Mapping):
        return {name: fn(*(h[name] for h in structures)) for name in first}
    return tuple(map(fn, *structures)) if isinstance(first, tuple) else fn(*structures)


def warn_rows(message: str, rows: Tensor, suffix: str = "") -> None:
    """Warn of the rows (N,) bool for which something holds, if there are any."""
    if n := int(rows.sum()):
        warn(f"{message} {n} of {len(rows)} inputs{suffix}")


def warn_not_finite(subject: str, maps: Tensor) -> None:
    """Warn of maps (N, ...) that hold NaN or infinite values though their scores are numbers."""
    warn_rows(f"{subject} is NaN or infinite for", ~maps.isfinite().flatten(1).all(1))
