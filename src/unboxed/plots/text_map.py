"""Texts with their words colored by an attribution, as a picture: one scale, printed, for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .colors import SIGNED_COLORMAP
from .sheet import ColorBar, Tile, contact_sheet
from .text import get_font

TEXT_MAP_WIDTH_PIXELS, WORD_PADDING_PIXELS, LINE_GAP_PIXELS = 720, 3, 6
WORD_FONT_SIZE_PIXELS = 15
MAX_DRAWN_TOKENS = 400  # of a text that are drawn
DARK_TEXT_COLOR, LIGHT_TEXT_COLOR, SPECIAL_TOKEN_TEXT_COLOR = (28, 28, 30), (255, 255, 255), (130, 130, 136)
CONTINUATION_TOKEN_PATTERN = re.compile(r"^##")  # of WordPiece: it goes on the word before
WORD_START_TOKEN_PATTERN = re.compile(r"^[Ġ▁]")  # of byte pairs and SentencePiece: a space comes before


@dataclass(frozen=True)
class TextWithValues:
    """One text: its tokens, a value for each, and which of them the tokenizer added."""

    tokens: Sequence[str]
    values: Sequence[float]
    special: Sequence[bool]
    caption: str = ""


def text_sheet(texts: Sequence[TextWithValues], *, title: str = "", unit: str = "") -> Image.Image:
    """Texts below one another; red words raise the score, blue ones lower it, and words that were added are gray.

    Args:
        texts: The texts.
        title: Printed above.
        unit: What the scale is in.

    Returns:
        The picture.

    Example:
        >>> from unboxed.plots.text_map import TextWithValues, text_sheet
        >>> text_sheet([TextWithValues(("not", "good"), (-1.0, 0.5), (False, False))]).mode
        'RGB'
    """
    shown = [abs(v) for t in texts for v, s in zip(t.values, t.special, strict=True) if not s and np.isfinite(v)]
    vmax = max(shown, default=0.0) or 1.0
    rows = [[Tile(np.asarray(_draw_colored_tokens(text, vmax)), text.caption)] for text in texts]
    return contact_sheet(rows, title=title, bars=[ColorBar("signed", vmax, unit)], side=TEXT_MAP_WIDTH_PIXELS)


def _draw_colored_tokens(text: TextWithValues, vmax: float) -> Image.Image:
    """The words of a text on their colors, wrapped."""
    font = get_font(WORD_FONT_SIZE_PIXELS)
    height = WORD_FONT_SIZE_PIXELS + 2 * WORD_PADDING_PIXELS + LINE_GAP_PIXELS
    places = list[tuple[str, float, bool, int, int, int]]()
    x, y = WORD_PADDING_PIXELS, 0
    rows = list(zip(tokens_to_display_words(text.tokens), text.values, text.special, strict=True))[:MAX_DRAWN_TOKENS]
    for (word, is_glued), value, special in rows:
        width = int(font.getlength(word)) + 2 * WORD_PADDING_PIXELS
        x = x if is_glued or not places else x + WORD_PADDING_PIXELS
        if x + width > TEXT_MAP_WIDTH_PIXELS and places:
            x, y = WORD_PADDING_PIXELS, y + height
        places.append((word, value, special, x, y, width))
        x += width
    image = Image.new("RGB", (TEXT_MAP_WIDTH_PIXELS, y + height), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for word, value, special, left, top, width in places:
        color, ink = ((255, 255, 255), SPECIAL_TOKEN_TEXT_COLOR) if special else background_and_text_color(value / vmax)
        draw.rectangle((left, top, left + width, top + WORD_FONT_SIZE_PIXELS + 2 * WORD_PADDING_PIXELS), fill=color)
        draw.text((left + WORD_PADDING_PIXELS, top + WORD_PADDING_PIXELS - 2), word, fill=ink, font=font)
    return image


def tokens_to_display_words(tokens: Sequence[str]) -> list[tuple[str, bool]]:
    """Each token as it is shown, and whether it goes on the word before."""
    has_marks = any(WORD_START_TOKEN_PATTERN.match(t) for t in tokens)
    return [_display_word_and_is_continuation(token, has_marks) for token in tokens]


def _display_word_and_is_continuation(token: str, has_marks: bool) -> tuple[str, bool]:
    """A token as it is shown, and whether it goes on the word before."""
    if CONTINUATION_TOKEN_PATTERN.match(token):
        return token[2:], True
    if has_marks:
        return WORD_START_TOKEN_PATTERN.sub("", token) or " ", not WORD_START_TOKEN_PATTERN.match(token)
    return token, False


def background_and_text_color(value: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The color of a value of -1 to 1, and that of text on it."""
    if not np.isfinite(value):
        return (128, 128, 128), LIGHT_TEXT_COLOR
    r, g, b = (int(v) for v in SIGNED_COLORMAP[round((np.clip(value, -1, 1) + 1) / 2 * (len(SIGNED_COLORMAP) - 1))])
    return (r, g, b), DARK_TEXT_COLOR if 0.299 * r + 0.587 * g + 0.114 * b > 140 else LIGHT_TEXT_COLOR
