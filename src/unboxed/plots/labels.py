"""Points with their words beside them: as many as fit without covering one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from .embedding import class_colors, normalize_points, scatter_dot_radius
from .sheet import BACKGROUND_COLOR, FAINT_COLOR, TEXT_COLOR
from .text import get_font, wrap_text

LABEL_FONT_SIZE, LABEL_GAP_PIXELS = 12, 3  # points of the font; pixels between a dot and its word, and between words
MAX_LABEL_WIDTH_PIXELS = 140
FOOTER_HEIGHT_PIXELS = 22  # for the line below the map
DOT_SUPERSAMPLING_FACTOR = 4
HALO_COLOR = BACKGROUND_COLOR  # around words, which lie above dots
WORD_MAP_MARGIN_FRACTION = 0.06  # of the map's side, free at its edges

LabelRectangle = tuple[float, float, float, float]


def labeled_scatter(points: Any, words: Sequence[str], *, title: str = "", note: str = "", side: int = 760) -> Any:
    """Points with words: the first words first, each where it covers no other word.

    Args:
        points: Points (N, 2).
        words: Their words (N,), the most important ones first.
        title: Printed above.
        note: Printed below, after how many words are named.
        side: Width and height in pixels of the map.

    Returns:
        The map, at one scale on both axes.

    Raises:
        InputError: for other shapes, or values that are not finite.

    Example:
        >>> from unboxed.plots.labels import labeled_scatter
        >>> labeled_scatter([[0.0, 0.0], [1.0, 1.0]], ["sun", "moon"], side=200).width
        200
    """
    positions = normalize_points(points, margin=WORD_MAP_MARGIN_FRACTION) * side
    if len(words) != len(positions):
        raise InputError(f"wanted one word per point, {len(positions)}; got {len(words)}")
    top = FOOTER_HEIGHT_PIXELS * bool(title)
    image = Image.new("RGB", (side, side + top + FOOTER_HEIGHT_PIXELS), BACKGROUND_COLOR)
    image.paste(_draw_dots(positions, side), (0, top))
    pen, face = ImageDraw.Draw(image), get_font(LABEL_FONT_SIZE)
    boxes = place_labels(positions, [_label_on_one_line(word, face) for word in words], side)
    for i, (left, upper, _, _) in boxes.items():
        pen.text(
            (left, upper + top),
            _label_on_one_line(words[i], face),
            TEXT_COLOR,
            face,
            stroke_width=2,
            stroke_fill=HALO_COLOR,
        )
    if title:
        pen.text((8, 5), wrap_text(title, side - 16, get_font(13, bold=True), 1)[0], TEXT_COLOR, get_font(13, True))
    named = f"{len(boxes):,} of {len(words):,} words are named" + f"; {note}" * bool(note)
    pen.text((8, side + top + 3), wrap_text(named, side - 16, get_font(11), 1)[0], FAINT_COLOR, get_font(11))
    return image


def _label_on_one_line(word: str, face: Any) -> str:
    return wrap_text(word, MAX_LABEL_WIDTH_PIXELS, face, 1)[0]


def _draw_dots(positions: Any, side: int) -> Image.Image:
    canvas = Image.new("RGB", (side * DOT_SUPERSAMPLING_FACTOR,) * 2, BACKGROUND_COLOR)
    pen, fill = ImageDraw.Draw(canvas), class_colors(1)[0]
    r = min(2.5, scatter_dot_radius(len(positions), side)) * DOT_SUPERSAMPLING_FACTOR
    for x, y in positions * DOT_SUPERSAMPLING_FACTOR:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


def place_labels(positions: Any, labels: Sequence[str], side: int) -> dict[int, LabelRectangle]:
    """{index: (left, upper, right, lower)} of the labels that fit beside their points, inside the map."""
    face, placed = get_font(LABEL_FONT_SIZE), dict[int, LabelRectangle]()
    taken = np.empty((0, 4))
    for i, (label, (x, y)) in enumerate(zip(labels, positions, strict=True)):
        width, height = face.getlength(label), LABEL_FONT_SIZE + 2
        for left in (x + LABEL_GAP_PIXELS + 1, x - LABEL_GAP_PIXELS - 1 - width):
            box = (left, y - height / 2, left + width, y + height / 2)
            if label.strip() and min(box) >= 0 and max(box) <= side and not _overlaps_any_label(taken, box):
                placed[i], taken = box, np.vstack([taken, box])
                break
    return placed


def _overlaps_any_label(taken: Any, box: LabelRectangle) -> bool:
    left, upper, right, lower = box
    apart = (
        (taken[:, 0] > right + LABEL_GAP_PIXELS) | (taken[:, 2] < left - LABEL_GAP_PIXELS)
        | (taken[:, 1] > lower) | (taken[:, 3] < upper)
    )  # fmt: skip
    return bool((~apart).any())
