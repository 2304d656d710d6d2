"""A patch as a page to print: the patch, where to cut, and the rules under which it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from . import colors
from .sheet import EDGE, INK, MARGIN, PAPER
from .text import font, wrapped

if TYPE_CHECKING:
    from ..adversarial import Patch

CAVEAT = "Paper, light and camera were no part of that: measure it again where it is to work."


def printable(
    patch: Patch, *, classes: Sequence[str] = (), success: float | None = None, side: int = 1200
) -> Image.Image:
    """A page with the patch about `side` pixels wide, a line to cut along, and its placement rules in words.

    `success` is its measured share of fooled images, as `patch.success` gives it.
    """
    face, head = font(max(11, side // 40)), font(max(13, side // 30), bold=True)
    step, margin = round(1.4 * side / 40) + 6, MARGIN + side // 40
    title = wrapped(_title(patch, classes), side, head)
    words = [line for text in _words(patch, success) for line in wrapped(text, side, face, most=8)]
    top = margin + len(title) * (step + 4) + margin // 2
    page = Image.new("RGB", (side + 2 * margin, top + side + margin + len(words) * step + margin), PAPER)
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(title):
        pen.text((margin, margin + i * (step + 4)), line, INK, head)
    _lay(page, patch, margin, top, side)
    for i, line in enumerate(words):
        pen.text((margin, top + side + margin + i * step), line, INK, face)
    return page


def _lay(page: Image.Image, patch: Patch, x: int, y: int, side: int) -> None:
    """The patch, smooth as it was sampled, cut to its shape."""
    size, box = (side, side), (0, 0, side - 1, side - 1)
    picture = Image.fromarray(colors.image(patch.image)).resize(size, Image.Resampling.BILINEAR)
    stencil = Image.new("L", size, 255)
    if patch.placing.shape == "circle":
        stencil.paste(0, (0, 0, *size))
        ImageDraw.Draw(stencil).ellipse(box, 255)
    page.paste(picture, (x, y), stencil)
    pen, edge = ImageDraw.Draw(page), (x - 1, y - 1, x + side, y + side)
    (pen.ellipse if patch.placing.shape == "circle" else pen.rectangle)(edge, outline=EDGE)


def _title(patch: Patch, classes: Sequence[str]) -> str:
    if patch.target is None:
        return "Adversarial patch: whatever it lies on is taken for something else"
    name = classes[patch.target] if classes else f"class {patch.target}"
    return f"Adversarial patch: whatever it lies on is taken for {name}"


def _words(patch: Patch, success: float | None) -> list[str]:
    said = [f"Cut along the line. It is {patch.placing}."]
    if success is not None:
        said.append(f"So placed on the screen it fooled {success:.0%} of the images it was measured on. {CAVEAT}")
    return said
