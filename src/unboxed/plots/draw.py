"""Methods' results as pictures: each function takes what a method returned and gives a contact sheet.

Inputs are images (C, H, W) or (N, C, H, W) in [0, 1]; maps are shaped like them. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from . import colors
from .colors import Array, Bytes, array
from .sheet import Bar, Tile, sheet

if TYPE_CHECKING:
    from ..activations import LayerMaps
    from ..synthesis import Morph

MOST = 32  # channels of one layer that a picture shows
WIDE = 32  # units a row, where a layer has no positions
UNIT = 16  # pixels of such a unit
UNITS = 1024  # of one layer without positions that a picture shows
QUANTILE = 0.995  # of the magnitudes of compared maps; what lies beyond has full color


def signed_map(m: Any, scale: float) -> Bytes:
    """A signed map (C, H, W) summed over channels, (H, W, 3)."""
    return colors.signed(colors.flat(m), scale)


def alone(m: Any) -> tuple[Bytes, str]:
    """A map (C, H, W) on a scale of its own, and its range in words. One that is positive all over starts at its least:
    it tells by what stands out."""
    flat = colors.flat(m)
    low = float(flat.min()) if flat.size and np.isfinite(flat).all() else 0.0
    low = max(0.0, low)
    scale = colors.reach(flat - low, quantile=QUANTILE)
    if not np.abs(flat - low).any():
        return colors.signed(flat - low, scale), "the same everywhere"
    return colors.signed(flat - low, scale), f"{low:.2g} to {low + scale:.2g}" if low else f"±{scale:.2g}"


def shared_reach(*maps: Any) -> float:
    """The one range for signed maps (..., C, H, W) that stand side by side."""
    return colors.reach(*(colors.flat(m) for m in maps), quantile=QUANTILE)


def gradients(
    x: Any, columns: Mapping[str, Any], *, captions: Sequence[str] = (), title: str = "", own: Sequence[str] = ()
) -> Image.Image:
    """Inputs (N, C, H, W), a row each, beside their maps: {column title: (N, C, H, W)}.

    All columns share one printed scale, but those named in `own`: a model without training has gradients of another
    size.
    """
    together = [m for name, m in columns.items() if name not in own]
    scales = {name: shared_reach(m) if name in own else shared_reach(*together) for name, m in columns.items()}
    words = list(captions) or [""] * len(x)
    rows = [
        [Tile(colors.image(x[i]), words[i]), *(Tile(signed_map(m[i], scales[n])) for n, m in columns.items())]
        for i in range(len(x))
    ]
    bars = [Bar("signed", scales[n], f"{n}: change per unit of pixel value") for n in columns if n in own]
    if together:
        named = ", ".join(n for n in columns if n not in own)
        bars.insert(0, Bar("signed", shared_reach(*together), f"{named}: change per unit of pixel value"))
    return sheet(rows, title=title, columns=["input", *columns], bars=bars)


def confused(
    x: Any,
    maps: Any,
    names: Sequence[str],
    *,
    label: str = "",
    factor: float = 1.0,
    logits: Sequence[float] = (),
    before_clamp: Sequence[bool] = (False, False),
) -> Image.Image:
    """An input (C, H, W) that the model can't decide on, 2 x 3: itself with its label, d logit / dx of both classes
    (2, C, H, W), and the input plus `factor` times each."""
    x, maps = array(x), array(maps)
    scale = shared_reach(maps)
    asked = [f"d logit {n} / dx" for n in names]
    values = [f"logit {v:.3g}" for v in logits] or ["", ""]
    clamped = ["before the clamp" if c else "" for c in before_clamp]
    top = [Tile(colors.image(x), f"input, label {label}" if label else "input")]
    below: list[Tile | None] = [None]
    for m, a, *notes in zip(maps, asked, values, clamped, strict=True):
        top.append(Tile(signed_map(m, scale), "\n".join(filter(None, [a, *notes]))))
        below.append(Tile(colors.image(x + factor * m), f"input + {factor:g} × {a}"))
    return sheet([top, below], bars=[Bar("signed", scale, "d logit / dx")])


def morph_strip(
    morph: Morph, row: int, classes: Sequence[str], target: int, *, label: int | None = None, steps: int = 5
) -> Image.Image:
    """One morph as a strip: input, gradient, some of the steps, result, each with its probabilities."""
    frames, probs = morph_frames(morph, row)
    start = int(probs[0].argmax()) if label is None else label
    said = [f"{classes[target]}: {p[target]:.2f}\n{classes[start]}: {p[start]:.2f}" for p in probs]
    scale = shared_reach(morph.gradient[row])
    clamped = ", before the clamp" if bool(morph.before_clamp[row]) else ""
    tiles = [
        Tile(colors.image(frames[0]), f"input\n{said[0]}"),
        Tile(signed_map(morph.gradient[row], scale), f"gradient of {classes[target]}{clamped}"),
        *(Tile(colors.image(frames[t]), f"frame {t}\n{said[t]}") for t in spread(len(frames), steps)[1:-1]),
        Tile(colors.image(frames[-1]), f"result, frame {len(frames) - 1}\n{said[-1]}"),
    ]
    title, unit = f"{classes[start]} to {classes[target]}", f"gradient of {classes[target]} at the input"
    return sheet([tiles], title=title, bars=[Bar("signed", scale, unit)], side=112)


def morph_frames(morph: Morph, row: int) -> tuple[Array, Array]:
    """The frames (T, C, H, W) and probabilities (T, K) of one row, up to where it was done and stays as it is."""
    frames, probs = array(morph.frames[:, row]), array(morph.probs[:, row])
    moved = (frames[1:] != frames[:-1]).reshape(len(frames) - 1, -1).any(1).nonzero()[0]
    n = int(moved[-1]) + 2 if len(moved) else 1
    return frames[:n], probs[:n]


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the indices 0..n-1, evenly spread, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def class_sheet(
    rows: Mapping[str, Any], names: Sequence[str], said: Mapping[str, Sequence[str]] | None = None, *, title: str = ""
) -> Image.Image:
    """Class images, {row title: (K, C, H, W)}, a column a class; `said` is what stands below them (a verdict)."""
    words = said or {}
    grid = [
        [Tile(colors.image(im), w) for im, w in zip(images, words.get(row, [""] * len(images)), strict=True)]
        for row, images in rows.items()
    ]
    return sheet(grid, title=title, columns=list(names), names=list(rows), side=84)


def channels(h: Any, *, bar: Bar | None = None, most: int = MOST, columns: int = 8, wide: int = 232) -> Bytes:
    """One example's activation, (C, H, W) or (F,), channel by channel: at most `most` small maps, or a strip of units.

    Signed where any value is below zero, else a magnitude. `bar`: the scale of all that are to be compared, by
    default `activation_bar(h)`.
    """
    bar, h = bar or activation_bar(h), array(h)
    paint = colors.signed if bar.kind == "signed" else colors.magnitude
    if h.ndim < 3:
        strip = paint(_strip(h), bar.scale)
        return colors.tiled(strip[None], 1, cell=UNIT * max(strip.shape[:2]), wide=wide)
    maps = _shrunk(h.reshape(-1, *h.shape[-2:])[:most], wide // columns)
    return colors.tiled(paint(maps, bar.scale), columns, wide=wide)


def _shrunk(maps: Array, side: int) -> Array:
    """Maps (C, H, W) wider than `side` by a whole factor, each pixel the mean of a block."""
    f = -(-max(maps.shape[1:]) // max(side, 28))
    h, w = (max(1, s // f) for s in maps.shape[1:])
    if f == 1 or min(maps.shape[1:]) < f:
        return maps
    blocks: Array = maps[:, : h * f, : w * f].reshape(-1, h, f, w, f).mean((2, 4))
    return blocks


def activation_bar(h: Any) -> Bar:
    """The one scale of pictures by `channels`, for all that h holds: one example's activation, or those of several."""
    h = array(h)
    return Bar("signed" if h.min(initial=0) < 0 else "magnitude", colors.reach(h), "activation")


def _strip(h: Array) -> Array:
    """Units (F,) as rows of `WIDE`; the free places at the end are NaN, drawn gray. Tokens (T, F) keep their rows."""
    if h.ndim == 2:
        rows: Array = _shrunk(h[None], 16 * WIDE)[0]
        return rows
    h = h[:UNITS]
    wide = min(WIDE, len(h))
    padded = np.full(-(-len(h) // wide) * wide, np.nan)
    padded[: len(h)] = h
    return padded.reshape(-1, wide)


def activations(layers: Sequence[LayerMaps], row: int = 0, *, title: str = "") -> Image.Image:
    """What each layer received and gave for one example of `activations.maps`, a row a layer.

    A layer has one scale, printed, for all examples and channels: sheets of several examples compare.
    """
    rows = [[_activation(h, row) for h in (layer.received, layer.given)] for layer in layers]
    names = [f"{layer.path}\n{layer.type}" for layer in layers]
    return sheet(rows, title=title, columns=["received", "gave"], names=names, side=260)


def _activation(h: Any, row: int) -> Tile:
    bar = activation_bar(h)
    return Tile(channels(h[row], bar=bar), f"{'×'.join(map(str, h.shape[1:]))}, {bar.ends[0]} to {bar.ends[-1]}")


def filters(weights: Any, *, title: str = "") -> Image.Image:
    """First-layer weights (K, C, h, w) on one scale: RGB around gray for three channels, else signed (their sum)."""
    picture, bar = filter_grid(weights)
    return sheet([[Tile(picture)]], title=title, bars=[bar], side=max(picture.shape))


def filter_grid(weights: Any, *, most: int = 64, columns: int = 8, wide: int = 400) -> tuple[Bytes, Bar]:
    """The filters of `filters` as one picture, and its scale."""
    w = array(weights)
    color = w.shape[1] == 3
    scale = colors.reach(w) if color else colors.reach(colors.flat(w))
    shown = w[:most]
    pictures = colors.image(0.5 + shown / (2 * scale)) if color else colors.signed(colors.flat(shown), scale)
    cell = 48 if max(w.shape[2:]) <= 16 else 112
    return colors.tiled(pictures, columns, cell=cell, wide=wide), Bar("gray" if color else "signed", scale, "weight")
