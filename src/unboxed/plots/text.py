"""Text on images: a font, and lines that fit a width."""

from __future__ import annotations

import importlib.util
import re
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

from ..atomic_write import to_printable

BEFORE_MINUS_SIGN_PATTERN = r"(?<![^\s(\[±])"  # what comes before a sign, in a regular expression
SMALL_VALUES_BELOW = 0.1  # the largest magnitude, of which two decimals say too little
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def get_font(size: int, bold: bool = False) -> Font:
    """DejaVu Sans from matplotlib's files (found without importing it), else Pillow's own font."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"DejaVuSans{'-Bold' * bold}.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def hyphens_to_minus_signs(text: str) -> str:
    """With minus signs in place of hyphens before numbers, none before zero; names with a hyphen stay as they are.

    >>> hyphens_to_minus_signs("from -1.5 to -0.00, 2e-05, cifar-10")
    'from −1.5 to 0.00, 2e−05, cifar-10'
    """
    text = re.sub(rf"{BEFORE_MINUS_SIGN_PATTERN}-(?=0(\.0+)?(?![.e]?\d))", "", text)
    return re.sub(rf"{BEFORE_MINUS_SIGN_PATTERN}-(?=\.?\d)|(?<=\d[eE])-(?=\d)", "\u2212", text)


def format_two_digits(value: float) -> str:
    """A number in two digits, as short as it gets.

    >>> format_two_digits(0.12345), format_two_digits(-3.5e-5), format_two_digits(1234.5), format_two_digits(0.0)
    ('0.12', '−3.5e−5', '1,234', '0')
    """
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"
    return hyphens_to_minus_signs(re.sub(r"e([+-])0+", r"e\1", text).replace("e+", "e"))


def format_among(value: float, largest: float) -> str:
    """A value of several in two decimals; in two digits where the largest magnitude is small; a dash for NaN.

    >>> format_among(0.5, 1.0), format_among(5e-6, 1.0), format_among(5e-6, 8e-6)
    ('0.50', '0.00', '5e−6')
    """
    if value != value:
        return "–"
    is_decimal = largest >= SMALL_VALUES_BELOW and abs(value) < 100
    return hyphens_to_minus_signs(f"{value:.2f}") if is_decimal else format_two_digits(value)


def wrap_text(text: str, width: float, font: Font, max_lines: int = 4) -> list[str]:
    """The text in at most `max_lines` lines no wider than `width`; longer text ends in an ellipsis."""
    lines = [
        part
        for line in hyphens_to_minus_signs(to_printable(text)).split("\n")
        for part in _break_line(line, width, font)
    ]
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + "…"]
    return [_truncate_with_ellipsis(line, width, font) for line in lines]


@lru_cache(4096)
def _text_width(font: Font, text: str) -> float:
    """Cached: every line is measured many times, and sheets repeat their texts."""
    return font.getlength(text)


def _break_line(line: str, width: float, font: Font) -> list[str]:
    lines = [""]
    for word in line.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _text_width(font, longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _truncate_with_ellipsis(line: str, width: float, font: Font) -> str:
    if _text_width(font, line) <= width:
        return line
    while len(line) > 1 and _text_width(font, line + "…") > width:
        line = line[:-1]
    return line.rstrip("…") + "…"
