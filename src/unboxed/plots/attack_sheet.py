"""The result of an attack: the original, the adversarial image, and the magnified change between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import InputError
from . import colors
from .colors import Uint8Array, to_float64_array
from .embedding import class_colors
from .sheet import ColorBar, Tile, contact_sheet

if TYPE_CHECKING:
    from ..adversarial.changes import PredictionChange

DISTANCE_NAME_BY_NORM = {"linf": "largest change", "l2": "L2 distance", "l1": "L1 distance"}


def attack_sheet(
    changes: Sequence[PredictionChange], classes: Sequence[str], *, norm: str = "linf", title: str = "", side: int = 140
) -> Image.Image:
    """Originals, adversarial images and their changes, a row per example.

    Captions have the predicted class of each image and the probabilities of both classes. Changes are magnified by one
    factor for all examples. Raises InputError without examples.
    """
    if not changes:
        raise InputError("there is no example to draw: the attack got none, or fooled the model on none")
    vmax = colors.max_magnitude(*(c.delta for c in changes))
    factor = largest_round_magnification(vmax)
    rows = [
        [*_before_after_tiles(c, classes), Tile(render_change_image(c, factor), _change_caption(c, norm, factor))]
        for c in changes
    ]
    heads = ("original", "adversarial", f"change × {factor:g}" + ("" if _is_grayscale(changes[0]) else " (gray: none)"))
    bars = [ColorBar("signed", 1 / factor, "change, in parts of the pixel range")] if _is_grayscale(changes[0]) else []
    return contact_sheet(rows, title=title, columns=heads, bars=bars, side=side)


def input_change_sheet(
    x: Any, z: Any, captions: Mapping[str, Sequence[str]], *, title: str = "", max_examples: int = 6, side: int = 112,
    more: Mapping[str, Sequence[Tile]] = MappingProxyType({}),
) -> Image.Image:  # fmt: skip
    """Inputs x and changed inputs z (N, C, H, W) above the changes, on one scale; {row name: captions} of the rows.

    `more` are further rows, below.
    """
    x, z = to_float64_array(x[:max_examples]), to_float64_array(z[:max_examples])
    changes = colors.sum_channels(z - x)
    vmax = colors.max_magnitude(changes)
    rows = (colors.image_to_rgb(x), colors.image_to_rgb(z), colors.signed_to_rgb(changes, vmax))
    tiles = [[*map(Tile, row, words)] for row, words in zip(rows, captions.values(), strict=True)]
    bar = ColorBar("signed", vmax, "change, in parts of the pixel range")
    tiles += [list(row[:max_examples]) for row in more.values()]
    return contact_sheet(tiles, title=title, names=[*captions, *more], bars=[bar], side=side)


def label_map_rows(before: Any, after: Any) -> dict[str, list[Tile]]:
    """{row name: tiles} of the classes of scores (N, K, H, W) before and after, a color each; with what changed."""
    first, then = (np.asarray(scores.detach().cpu().argmax(1)) for scores in (before, after))
    palette = np.array([[*bytes.fromhex(c.removeprefix("#"))] for c in class_colors(before.shape[1])], np.uint8)
    captions = [f"{share:.0%} of positions\nchanged" for share in (first != then).mean((1, 2))]
    return {
        "predicted": [Tile(palette[m], "") for m in first],
        "predicted then": [Tile(palette[m], text) for m, text in zip(then, captions, strict=True)],
    }


def largest_round_magnification(vmax: float) -> float:
    """The largest round factor (1, 2, 5, 10, ...) by which changes of magnitude `vmax` still fit the range."""
    if not vmax > 0:
        return 1.0
    factor = 1 / vmax
    power = 10.0 ** math.floor(math.log10(factor))
    return max(step for step in (1, 2, 5) if step * power <= factor * (1 + 1e-6)) * power if factor >= 1 else 1.0


def render_change_image(change: PredictionChange, factor: float) -> Uint8Array:
    """Of gray images: red is lighter, blue darker, white unchanged. Of color images: gray is unchanged."""
    if _is_grayscale(change):
        return colors.signed_to_rgb(change.delta[0], 1 / factor)
    return colors.image_to_rgb(np.clip(0.5 + to_float64_array(change.delta) * factor / 2, 0, 1))


def class_prob_text(k: int, p: float, classes: Sequence[str]) -> str:
    return f"{classes[k]}: {p:.1%}"


def _before_after_tiles(change: PredictionChange, classes: Sequence[str]) -> list[Tile]:
    def caption(probs: tuple[float, float], k: int) -> str:
        lines = [class_prob_text(change.class_before, probs[0], classes)]
        lines += [class_prob_text(change.class_after, probs[1], classes)] * (change.class_after != change.class_before)
        return "\n".join([f"predicted {classes[k]}", *lines])

    return [
        Tile(colors.image_to_rgb(change.original), caption(change.probs_before, change.class_before)),
        Tile(colors.image_to_rgb(change.image), caption(change.probs_after, change.class_after)),
    ]


def _change_caption(change: PredictionChange, norm: str, factor: float) -> str:
    text = f"{DISTANCE_NAME_BY_NORM.get(norm, norm)} {change.distance:.3g}"
    return text if change.is_adversarial else f"{text}\nattack failed"


def _is_grayscale(change: PredictionChange) -> bool:
    return len(change.original) == 1
