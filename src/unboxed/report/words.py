"""Numbers and names in the words of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence


def percent(share: float) -> str:
    """A share as a percentage that says 100% (or 0%) only where it is.

    >>> percent(0.5), percent(1.0), percent(0.9999)
    ('50.0%', '100%', '99.99%')
    """
    for digits in (1, 2, 3, 4):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0.0, 100.0) or share in (0.0, 1.0):
            break
    return f"{text.rstrip('0').rstrip('.') if share in (0.0, 1.0) else text}%"


def prob(p: float) -> str:
    """A probability in two digits, near 0 and 1 in three; it never says 0 or 1: those are rounding errors of a model.

    >>> prob(0.5), prob(0.998), prob(1.0), prob(0.0)
    ('0.50', '0.998', '>0.999', '<0.001')
    """
    if p < 0.0005:
        return "<0.001"
    if p >= 0.9995:
        return ">0.999"
    return f"{p:.3f}" if p < 0.005 or p >= 0.995 else f"{p:.2f}"


def p_of(p: float) -> str:
    """A probability with its name, on one line."""
    return f"p\u00a0{prob(p)}"


def bar(p: float) -> str:
    """A probability beside its bar, in two digits, as `page.js` writes it."""
    return "<0.01" if p < 0.005 else ">0.99" if p >= 0.995 else f"{p:.2f}"


def digits(value: float) -> str:
    """A number in three digits, large ones whole.

    >>> digits(0.01234), digits(1374.6), digits(2.5e9)
    ('0.0123', '1,375', '2.5e+09')
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


def typographic(text: str) -> str:
    """With a minus sign, not a hyphen, before numbers; names that hold a hyphen stay as they are.

    >>> typographic("from -1.5 to 2, cifar-10")
    'from −1.5 to 2, cifar-10'
    """
    return re.sub(r"(?<![^\s(\[±])-(?=\.?\d)", "\u2212", text)


def many(n: int, one: str, more: str = "") -> str:
    """A count with its noun.

    >>> many(1, "class", "classes"), many(1200, "image")
    ('1 class', '1,200 images')
    """
    return f"{n:,} {one if n == 1 else more or one + 's'}"


def listed(words: Sequence[str], most: int = 12) -> str:
    """Names in a row, cut off with how many are left.

    >>> listed(["cat", "dog", "ant"], most=2)
    'cat, dog and 1 more'
    """
    shown = list(words[:most])
    rest = len(words) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def size(shape: Sequence[int]) -> str:
    """A shape as the page prints it.

    >>> size((3, 32, 32))
    '3×32×32'
    """
    return "×".join(map(str, shape)) or "1"


def sentence(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
