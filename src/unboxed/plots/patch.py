"""A patch as a page to print: the patch, a line to cut along, and the placement for which it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from . import colors
from .colors import TILE_BORDER_COLOR
from .sheet import BACKGROUND_COLOR, SHEET_MARGIN_PIXELS, TEXT_COLOR
from .text import get_font, wrap_text

if TYPE_CHECKING:
    from ..adversarial import Patch

PRINT_CAVEAT_TEXT = "Print, light and camera were not part of the measurement: measure it again in its surroundings."


def printable_patch(
    patch: Patch, *, classes: Sequence[str] = (), success: float | None = None, side: int = 1200
) -> Image.Image:
    """A page to print: an adversarial patch, a line to cut along, and its placement in words.

    Args:
        patch: The result of `adversarial.patch`.
        classes: Names of the model's classes; without them the target is printed as a number.
        success: The measured fooling rate, as `patch.fooling_rate(...)` returns it; None prints none.
        side: Width of the patch in pixels.

    Returns:
        The page.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> patch = ub.adversarial.patch(box, x, y, target=3, steps=2)
        >>> ub.plots.printable_patch(patch, classes=box.classes, side=300).width
        346
    """
    face, head = get_font(max(11, side // 40)), get_font(max(13, side // 30), bold=True)
    step, margin = round(1.4 * side / 40) + 6, SHEET_MARGIN_PIXELS + side // 40
    title = wrap_text(_patch_title(patch, classes), side, head)
    rule_lines = [
        line for text in _placement_instructions(patch, success) for line in wrap_text(text, side, face, max_lines=8)
    ]
    top = margin + len(title) * (step + 4) + margin // 2
    canvas = Image.new(
        "RGB", (side + 2 * margin, top + side + margin + len(rule_lines) * step + margin), BACKGROUND_COLOR
    )
    pen = ImageDraw.Draw(canvas)
    for i, line in enumerate(title):
        pen.text((margin, margin + i * (step + 4)), line, TEXT_COLOR, head)
    _paste_patch(canvas, patch, margin, top, side)
    for i, line in enumerate(rule_lines):
        pen.text((margin, top + side + margin + i * step), line, TEXT_COLOR, face)
    return canvas


def _paste_patch(canvas: Image.Image, patch: Patch, x: int, y: int, side: int) -> None:
    """The patch, with the interpolation by which it is placed, cut to its shape."""
    size, box = (side, side), (0, 0, side - 1, side - 1)
    image = Image.fromarray(colors.image_to_rgb(patch.pixels)).resize(size, Image.Resampling.BILINEAR)
    mask = Image.new("L", size, 255)
    if patch.placement.shape == "circle":
        mask.paste(0, (0, 0, *size))
        ImageDraw.Draw(mask).ellipse(box, 255)
    canvas.paste(image, (x, y), mask)
    pen, edge = ImageDraw.Draw(canvas), (x - 1, y - 1, x + side, y + side)
    (pen.ellipse if patch.placement.shape == "circle" else pen.rectangle)(edge, outline=TILE_BORDER_COLOR)


def _patch_title(patch: Patch, classes: Sequence[str]) -> str:
    if patch.target is None:
        return "Adversarial patch: images with it are misclassified"
    name = classes[patch.target] if classes else f"class {patch.target}"
    return f"Adversarial patch: images with it are classified as {name}"


def _placement_instructions(patch: Patch, success: float | None) -> list[str]:
    rules = [f"Cut along the line. It is {patch.placement}."]
    if success is not None:
        rules.append(f"Placed like this in image files, it fooled {success:.0%} of the images. {PRINT_CAVEAT_TEXT}")
    return rules
