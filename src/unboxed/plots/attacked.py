"""What an attack did: the original, the image that fools the model, and the change between them, enlarged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import InputError
from . import colors
from .colors import Bytes, array
from .sheet import Bar, Tile, sheet

if TYPE_CHECKING:
    from ..adversarial.changes import Change

NORMS = {"linf": "largest change", "l2": "L2 distance", "l1": "L1 distance"}


def attacked(
    changes: Sequence[Change], classes: Sequence[str], *, norm: str = "linf", title: str = "", side: int = 140
) -> Image.Image:
    """A row an example: the original, the adversarial image, the change times one factor for all, with its scale.

    Below them stand what the model says of each and the probabilities of both classes. Raises InputError for no
    example.
    """
    if not changes:
        raise InputError("there is no example to draw: the attack was given none, or fooled none of them")
    reach = colors.reach(*(c.delta for c in changes))
    factor = enlarged(reach)
    rows = [[*_pair(c, classes), Tile(change(c, factor), _changed(c, norm, factor))] for c in changes]
    heads = ("original", "adversarial", f"change × {factor:g}" + ("" if _flat(changes[0]) else " (gray: none)"))
    bars = [Bar("signed", 1 / factor, "change, in parts of the pixel range")] if _flat(changes[0]) else []
    return sheet(rows, title=title, columns=heads, bars=bars, side=side)


def enlarged(reach: float) -> float:
    """A round factor by which changes as large as `reach` just fill the range."""
    if not reach > 0:
        return 1.0
    factor = 1 / reach
    power = 10.0 ** math.floor(math.log10(factor))
    return max(step for step in (1, 2, 5) if step * power <= factor * (1 + 1e-6)) * power if factor >= 1 else 1.0


def change(c: Change, factor: float) -> Bytes:
    """Gray: red is lighter, blue darker, white unchanged. Color: gray is unchanged, each channel by itself."""
    if _flat(c):
        return colors.signed(c.delta[0], 1 / factor)
    return colors.image(np.clip(0.5 + array(c.delta) * factor / 2, 0, 1))


def said(k: int, p: float, classes: Sequence[str]) -> str:
    return f"{classes[k]}: {p:.0%}" if 0.005 <= p < 0.995 else f"{classes[k]}: {p:.2%}"


def _pair(c: Change, classes: Sequence[str]) -> list[Tile]:
    def words(ps: tuple[float, float], k: int) -> str:
        lines = [said(c.before, ps[0], classes)]
        lines += [said(c.after, ps[1], classes)] * (c.after != c.before)
        return "\n".join([f"says {classes[k]}", *lines])

    return [
        Tile(colors.image(c.original), words(c.p_before, c.before)),
        Tile(colors.image(c.image), words(c.p_after, c.after)),
    ]


def _changed(c: Change, norm: str, factor: float) -> str:
    told = f"{NORMS.get(norm, norm)} {c.distance:.3g}"
    return told if c.fooled else f"{told}\nnot fooled"


def _flat(c: Change) -> bool:
    return len(c.original) == 1
