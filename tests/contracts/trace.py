"""The snapshot, as the tests name it; it is part of the package (`unboxed.testing.trace`)."""

from unboxed.testing.trace import Kept, changes, snapshot

__all__ = ["Kept", "changes", "snapshot"]
