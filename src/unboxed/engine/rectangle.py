"""A rectangle of pixels."""

from __future__ import annotations

from typing import NamedTuple


class Rectangle(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)

    @property
    def area(self) -> int:
        return self.height * self.width

    def overlaps(self, other: Rectangle) -> bool:
        """Whether they share a pixel."""
        is_apart = self.top >= other.top + other.height or other.top >= self.top + self.height
        return not is_apart and self.left < other.left + other.width and other.left < self.left + self.width
