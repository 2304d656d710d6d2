"""The figures of any result: one function for the command line, the report, the page, notebooks and the docs.

How each type of result is drawn is registered in `results/`, a file per family, with the plots of this package.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from ..box import Box

Figures = Mapping[str, Image.Image]


@singledispatch
def figures(result: Any, box: Box | None = None, *, data: Any = None) -> Figures:
    """The figures of what a method or a check returned, whatever it is.

    Take a function of `ub.plots` instead to choose what is drawn, and how. A result type of your own is drawn by a
    function that you register: `@ub.plots.figures.register(MyResult)`.

    Args:
        result: What a method or a check returned; a tuple of such results; or {model: result}, as `ub.compare` returns.
        box: The opened model. With it, figures also show what the result itself does not carry: the model's
            predictions and the names of classes and features.
        data: The examples that the result's indices refer to (top examples, nearest neighbors) or that it has a row
            for (t-SNE, inversions), as tensors (x, y) or x, or a Dataset.

    Returns:
        {name: image}, the most important figure first; empty where the type of result has no figure.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> images = ub.plots.figures(ub.attribution.gradient(box, x, y), box)
        >>> list(images), images["attribution"].mode
        (['attribution'], 'RGB')
    """
    n_types = len(figures.registry)
    importlib.import_module(f"{__package__}.results")  # registers the library's own types, on the first call
    return figures(result, box, data=data) if len(figures.registry) > n_types else {}
