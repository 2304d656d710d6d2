"""Test your own method against the contracts that every method of Unboxed keeps. Needs no pytest.

`trace` takes the snapshot that shows what a method left behind, `models` is a zoo of awkward models.
`unboxed.testing.strategies` is imported by its name, for it needs hypothesis.
"""

from . import models, trace
from .trace import changes, snapshot

__all__ = ["changes", "models", "snapshot", "trace"]
