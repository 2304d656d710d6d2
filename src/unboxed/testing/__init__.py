"""Test your own method against the contracts that every method of Unboxed keeps: `check_method`. Needs no pytest.

`contracts` are the checks one by one, `models` is a zoo of awkward models, `trace` a snapshot of all that a method may
not change. `unboxed.testing.strategies` (random models, inputs and objectives) is imported by its name: it needs
Hypothesis.
"""

from . import contracts, models, trace
from .own import check_method
from .trace import changes, snapshot

__all__ = ["changes", "check_method", "contracts", "models", "snapshot", "trace"]
