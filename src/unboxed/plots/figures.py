"""The figures of any result: one function for the command line, the report, the page and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from ..box import Box


@singledispatch
def figures(result: Any, box: Box) -> Mapping[str, Image.Image]:
    """{name: image} of a method's result; empty where it has no figure."""
    return {}
