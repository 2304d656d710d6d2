"""What attribution methods give: a tensor shaped like x, or more, with the map as its `map`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError


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
