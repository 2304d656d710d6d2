"""The snapshot, as the tests name it; it is part of the package (`unboxed.testing.trace`)."""

from unboxed.testing.trace import TensorSnapshot, changes, snapshot

__all__ = ["TensorSnapshot", "changes", "snapshot"]
