"""Numbers and names as the page prints them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def format_percent(fraction: float) -> str:
    """A share as a percentage, 100% (or 0%) only where it is exactly that.

    >>> format_percent(0.5), format_percent(1.0), format_percent(0.9999)
    ('50.0%', '100%', '99.99%')
    """
    for digits in (1, 2, 3, 4):
        text = f"{100 * fraction:.{digits}f}"
        if float(text) not in (0.0, 100.0) or fraction in (0.0, 1.0):
            break
    return f"{text.rstrip('0').rstrip('.') if fraction in (0.0, 1.0) else text}%"


def format_prob(p: float) -> str:
    """A probability in two digits, near 0 and 1 in three; never 0 or 1, which are rounding errors of a model.

    >>> format_prob(0.5), format_prob(0.998), format_prob(1.0), format_prob(0.0)
    ('0.50', '0.998', '>0.999', '<0.001')
    """
    if p < 0.0005:
        return "<0.001"
    if p >= 0.9995:
        return ">0.999"
    return f"{p:.3f}" if p < 0.005 or p >= 0.995 else f"{p:.2f}"


def format_named_prob(p: float) -> str:
    """A probability with its name, on one line."""
    return f"p\u00a0{format_prob(p)}"


def format_bar_prob(p: float) -> str:
    """A probability beside its bar, in two digits, as `page.js` writes it."""
    return "<0.01" if p < 0.005 else ">0.99" if p >= 0.995 else f"{p:.2f}"


def format_number(value: float, digits: int = 3) -> str:
    """A number in that many digits, large ones without decimals.

    >>> format_number(0.01234), format_number(1374.6), format_number(2.5e9)
    ('0.0123', '1,375', '2.5e+09')
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def format_signed(value: float) -> str:
    """A number in three digits with its sign; a dash where it is not known.

    >>> format_signed(38.24), format_signed(-0.5), format_signed(-1374.6), format_signed(0.0)
    ('+38.2', '-0.5', '-1,375', '0')
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "−∞" if value < 0 else "+∞"
    return f"{'+' * (value > 0)}{format_number(value)}"


def format_score(value: float) -> str:
    """A score in two digits, a dash where it is not known.

    >>> format_score(0.826), format_score(float("nan"))
    ('0.83', '–')
    """
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "\u2212")


def mean_without_nan(values: Sequence[float]) -> float:
    """The mean of those that are no NaN; NaN where none is known."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def quoted(name: str) -> str:
    """A class's name in a sentence, so that it does not read as a word of it; numbers don't.

    >>> quoted("lower"), quoted("7")
    ('"lower"', '7')
    """
    return name if name.isdigit() else f'"{name}"'


def format_range(values: Sequence[float]) -> str:
    """From the smallest value to the largest in two digits; one number where they read the same.

    >>> format_range([7.71, 7.68]), format_range([1.5, 8.3, 2.0])
    ('7.7', '1.5 to 8.3')
    """
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def count_noun(n: int, singular: str, plural: str = "") -> str:
    """A count with its noun.

    >>> count_noun(1, "class", "classes"), count_noun(1200, "image")
    ('1 class', '1,200 images')
    """
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def join_names_with_limit(words: Sequence[str], max_names: int = 12) -> str:
    """Names in a row, cut off with the number of the others.

    >>> join_names_with_limit(["cat", "dog", "ant"], max_names=2)
    'cat, dog and 1 more'
    """
    listed_words = list(words[:max_names])
    rest = len(words) - len(listed_words)
    return ", ".join(listed_words) + (f" and {rest} more" if rest else "")


def shorten_middle(text: str, max_characters: int) -> str:
    """A long name with its middle left out: what it begins with and its ending stay.

    >>> shorten_middle("a_very_long_name_of_a_photo.jpg", 16)
    'a_very_l…oto.jpg'
    """
    n_kept = max_characters - 1
    return text if len(text) <= max_characters else f"{text[: n_kept - n_kept // 2]}…{text[-(n_kept // 2) :]}"


def breakable(name: str) -> str:
    """A file's or a column's name that may be broken after its dashes, underscores and slashes."""
    return re.sub(r"([-_/])(?=.)", "\\1\u200b", name)


def layer_display_name(address: str) -> str:
    """A layer as a sentence names it: in an `nn.Sequential` its address is only a number.

    >>> layer_display_name("3"), layer_display_name("0.2"), layer_display_name("conv1")
    ('layer 3', 'layer 0.2', 'conv1')
    >>> layer_display_name("fc2:input")
    'the input of fc2'
    """
    if (path := address.removesuffix(":input")) != address:
        return f"the input of {layer_display_name(path)}"
    return f"layer {address}" if address.partition("#")[0].replace(".", "").isdigit() else address


def format_shape(shape: Sequence[int]) -> str:
    """A shape as the page prints it.

    >>> format_shape((3, 32, 32))
    '3×32×32'
    """
    return "×".join(map(str, shape)) or "1"


def error_sentence(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
