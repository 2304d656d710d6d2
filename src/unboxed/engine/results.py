"""What attribution methods give: a tensor shaped like x, or more, with the map as its `map`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import InputError


def map_of(result: Any) -> Tensor:
    """The map (N, ...) of whatever an attribution method gave. Raises InputError where there is none, or several."""
    found = getattr(result, "map", result)
    if not isinstance(found, Tensor):
        raise InputError(f"wanted a map, or a result with one; got {type(result).__name__}")
    return found
