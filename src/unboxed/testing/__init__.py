"""Test your own method against the contracts that every method of Unboxed keeps: `check_method`. Needs no pytest.

`contracts` and `rows` are the checks one by one, `models` is a zoo of awkward models, `trace` a snapshot of all that a
method may not change. `strategies` (random models, inputs and objectives) needs Hypothesis, and loads on first use.

What a user needs to test a method of their own moves in here; the tests of Unboxed are in `tests/`.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from ..namespaces import dir_of_exports
from . import contracts, models, rows, trace
from .method_check import check_method
from .trace import changes, snapshot

if TYPE_CHECKING:
    from . import strategies as strategies

__all__ = ["changes", "check_method", "contracts", "models", "rows", "snapshot", "trace"]


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return _import_module(".strategies", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__dir__ = dir_of_exports(__name__)
