"""How a result shows itself: as an image, on axes, in a notebook and in a file.

What is drawn is registered in `plots.results`, above this package, and loaded when something is drawn.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

    from ..box import Box

T = TypeVar("T")


class ResultViewsMixin:
    """What every result can do to be seen: `image`, `plot`, `show`, `save`, and its picture as the last line of a cell.

    `box` is needed for what the result itself does not carry (the names of a table's columns), `data` for pictures of
    the examples that its indices refer to.
    """

    def image(self, name: str | None = None, *, box: Box | None = None, data: Any = None) -> Image.Image:
        """The picture of the result.

        Args:
            name: Which of several pictures, as `ub.plots.figures` lists them; None is the most important one.
            box: The opened model: names and predictions that the result does not carry.
            data: The examples that the result's indices refer to: tensors (x, y) or x, or a Dataset.

        Returns:
            A Pillow image.

        Raises:
            InputError: where there is no such picture.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(2)
            >>> ub.attribution.gradient(box, x).image().mode
            'RGB'
        """
        return _import_plot_views().result_image(self, name, box=box, data=data)  # type: ignore[no-any-return]

    def plot(
        self, ax: Axes | None = None, name: str | None = None, *, box: Box | None = None, data: Any = None
    ) -> Axes:
        """Draw the picture of the result on axes of a matplotlib figure that you compose.

        Args:
            ax: Axes to draw on; None makes a figure of the picture's size.
            name: Which of several pictures, as `ub.plots.figures` lists them; None is the most important one.
            box: The opened model: names and predictions that the result does not carry.
            data: The examples that the result's indices refer to: tensors (x, y) or x, or a Dataset.

        Returns:
            The axes.

        Raises:
            InputError: where there is no such picture.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(2)
            >>> len(ub.attribution.gradient(box, x).plot().images)
            1
        """
        return _import_plot_views().plot_on_axes(self.image(name, box=box, data=data), ax)  # type: ignore[no-any-return]

    def show(self, name: str | None = None, *, box: Box | None = None, data: Any = None) -> None:
        """Show the picture: in the cell of a notebook, else in the system's image viewer.

        Args:
            name: Which of several pictures, as `ub.plots.figures` lists them; None is the most important one.
            box: The opened model: names and predictions that the result does not carry.
            data: The examples that the result's indices refer to: tensors (x, y) or x, or a Dataset.

        Raises:
            InputError: where there is no such picture.
        """
        _import_plot_views().show_image(self.image(name, box=box, data=data))

    def save(self, path: str | os.PathLike[str], *, box: Box | None = None, data: Any = None) -> Path:
        """Write the result to a file, by the ending of its name.

        Args:
            path: File to write: ".html" is a page of all pictures with their words, ".json" the numbers (of tensors
                with more than 100,000 values shape, range and mean), ".npz" all tensors as NumPy arrays, ".gif" the
                frames of a method that was called with `frame_every`; any other ending that Pillow knows, like ".png",
                the most important picture.
            box: The opened model: names and predictions that the result does not carry.
            data: The examples that the result's indices refer to: tensors (x, y) or x, or a Dataset.

        Returns:
            The path.

        Raises:
            InputError: where there is no picture, or there are no frames.
            WriteError: when the ending is not known, or the file cannot be written.

        Example:
            >>> import tempfile, unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(2)
            >>> ub.attribution.gradient(box, x).save(f"{tempfile.mkdtemp()}/gradient.png").name
            'gradient.png'
        """
        return _import_plot_views().save_result(self, Path(path), box=box, data=data)  # type: ignore[no-any-return]

    def _repr_html_(self) -> str | None:
        """The picture with its words, for notebooks; None where the result has no picture."""
        return _import_plot_views().result_html(self)  # type: ignore[no-any-return]


class ResultTuple(tuple[T, ...], ResultViewsMixin):
    """Several results in order: a tuple that shows itself.

    >>> ResultTuple(["one", "two"])
    ResultTuple(2: 'one', ...)
    """

    __slots__ = ()

    def __repr__(self) -> str:
        parts = f": {self[0]!r}{', ...' if len(self) > 1 else ''}" if self else ""
        return f"{type(self).__name__}({len(self)}{parts})"


def _import_plot_views() -> Any:
    return import_module("unboxed.plots.views")
