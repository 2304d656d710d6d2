"""What attribution methods give: a tensor shaped like x, or more, with the map as its `map`; and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError, warn


def map_of(result: Any) -> Tensor:
    """The map (N, ...) of whatever an attribution method gave. Raises InputError where there is none, or several."""
    found = getattr(result, "map", result)
    if not isinstance(found, Tensor):
        raise InputError(f"wanted a map, or a result with one; got {type(result).__name__}")
    return found


def each(work: Callable[..., Tensor], *found: Any) -> Any:
    """`work` on tensors, or on each part of dicts or tuples of them, as they come of several inputs."""
    first = found[0]
    if isinstance(first, Mapping):
        return {name: work(*(h[name] for h in found)) for name in first}
    return tuple(map(work, *found)) if isinstance(first, tuple) else work(*found)


def tell_rows(what: str, rows: Tensor, then: str = "") -> None:
    """Warn of the rows (N,) bool for which something holds, if there are any."""
    if n := int(rows.sum()):
        warn(f"{what} {n} of {len(rows)} inputs{then}")


def tell_not_finite(what: str, maps: Tensor) -> None:
    """Warn of maps (N, ...) that hold NaN or infinite values though their scores are numbers."""
    tell_rows(f"{what} is NaN or infinite for", ~maps.isfinite().flatten(1).all(1))
