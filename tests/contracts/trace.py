"""The snapshot, as the tests name it; it is part of the package (`unboxed.testing.trace`)."""

from unboxed.testing.trace import TensorCopy, changes, snapshot

__all__ = ["TensorCopy", "changes", "snapshot"]
