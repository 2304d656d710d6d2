"""A verdict, drawn."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

from .verdict import Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


def explain_verdict(verdict: Annotated[Verdict, "The verdict to draw."]) -> dict[str, Image]:
    """Draw what a verdict was made from: its tests, the maps beside those of the controls, the removal curves.

    For a verdict that surprises; `print(verdict)` has the same figures as text, and `ub.plots.figures` draws results of
    any other type.

    Args:
        verdict: The verdict to draw.

    Returns:
        {name: picture}: "tests" has each test's interval against its bound, "maps" the inputs, the maps and those of
        the model with randomized layers and of another class, "removal" the score while parts are removed. Of a verdict
        that was read from a file "tests" alone; empty where nothing was tested.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(8)
        >>> list(ub.checks.explain_verdict(ub.checks.verdict(box, x, ub.attribution.gradient)))
        ['tests', 'maps', 'removal']

    Source:
        Our own.
    """
    plots = import_module("unboxed.plots")  # views are above checks, and loaded when something is drawn
    return dict(plots.figures(verdict))
