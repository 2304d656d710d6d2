"""Methods' results as pictures: each function takes what a method returned and gives a contact sheet.

Inputs are images (C, H, W) or (N, C, H, W) in [0, 1]; maps are shaped like them. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..engine.rows import evenly_spaced as evenly_spaced
from . import colors
from .colors import Array, Bytes, as_array
from .sheet import ColorBar, Tile, contact_sheet

if TYPE_CHECKING:
    from ..activations import LayerMaps
    from ..synthesis import Morph

MAX_CHANNELS = 32  # channels of one layer that a picture shows
UNITS_PER_ROW = 32  # units a row, where a layer has no positions
UNIT_PIXELS = 16  # pixels of such a unit
MAX_UNITS = 1024  # of one layer without positions that a picture shows
VMAX_QUANTILE = 0.995  # of the magnitudes of compared maps; what lies beyond has full color


def signed_map(m: Any, scale: float) -> Bytes:
    """A signed map (C, H, W) summed over channels, (H, W, 3)."""
    return colors.signed_to_rgb(colors.sum_channels(m), scale)


def map_on_own_scale(m: Any) -> tuple[Bytes, str]:
    """A map (C, H, W) on a scale of its own, and its range in words. One that is positive all over starts at its least:
    it tells by what stands out."""
    summed = colors.sum_channels(m)
    low = float(summed.min()) if summed.size and np.isfinite(summed).all() else 0.0
    low = max(0.0, low)
    scale = colors.vmax(summed - low, quantile=VMAX_QUANTILE)
    if not np.abs(summed - low).any():
        return colors.signed_to_rgb(summed - low, scale), "the same everywhere"
    return colors.signed_to_rgb(summed - low, scale), f"{low:.2g} to {low + scale:.2g}" if low else f"±{scale:.2g}"


def shared_vmax(*maps: Any) -> float:
    """The one range for signed maps (..., C, H, W) that stand side by side."""
    return colors.vmax(*(colors.sum_channels(m) for m in maps), quantile=VMAX_QUANTILE)


def gradients(
    x: Any, columns: Mapping[str, Any], *, captions: Sequence[str] = (), title: str = "", own_scale: Sequence[str] = ()
) -> Image.Image:
    """Inputs (N, C, H, W), a row each, beside their maps: {column title: (N, C, H, W)}.

    All columns share one printed scale, but those named in `own`: a model without training has gradients of another
    size.
    """
    shared = [m for name, m in columns.items() if name not in own_scale]
    scales = {name: shared_vmax(m) if name in own_scale else shared_vmax(*shared) for name, m in columns.items()}
    padded_captions = list(captions) or [""] * len(x)
    rows = [
        [
            Tile(colors.image_to_rgb(x[i]), padded_captions[i]),
            *(Tile(signed_map(m[i], scales[n])) for n, m in columns.items()),
        ]
        for i in range(len(x))
    ]
    bars = [ColorBar("signed", scales[n], f"{n}: change per unit of pixel value") for n in columns if n in own_scale]
    if shared:
        shared_names = ", ".join(n for n in columns if n not in own_scale)
        bars.insert(0, ColorBar("signed", shared_vmax(*shared), f"{shared_names}: change per unit of pixel value"))
    return contact_sheet(rows, title=title, columns=["input", *columns], bars=bars)


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
    x, maps = as_array(x), as_array(maps)
    scale = shared_vmax(maps)
    gradient_names = [f"d logit {n} / dx" for n in names]
    values = [f"logit {v:.3g}" for v in logits] or ["", ""]
    clamp_notes = ["before the clamp" if c else "" for c in before_clamp]
    first_row = [Tile(colors.image_to_rgb(x), f"input, label {label}" if label else "input")]
    second_row: list[Tile | None] = [None]
    for m, a, *notes in zip(maps, gradient_names, values, clamp_notes, strict=True):
        first_row.append(Tile(signed_map(m, scale), "\n".join(filter(None, [a, *notes]))))
        second_row.append(Tile(colors.image_to_rgb(x + factor * m), f"input + {factor:g} × {a}"))
    return contact_sheet([first_row, second_row], bars=[ColorBar("signed", scale, "d logit / dx")])


def morph_strip(morph: Morph, row: int, *, label: int | None = None, steps: int = 5) -> Image.Image:
    """One morph as a strip: input, gradient, some of the steps, result, each with its probabilities."""
    frames, probs = morph_frames(morph, row)
    classes, target = morph.classes, int(morph.targets[row])
    start = int(probs[0].argmax()) if label is None else label
    captions = [f"{classes[target]}: {p[target]:.2f}\n{classes[start]}: {p[start]:.2f}" for p in probs]
    scale = shared_vmax(morph.initial_gradient[row])
    clamp_note = ", before the clamp" if bool(morph.before_clamp[row]) else ""
    tiles = [
        Tile(colors.image_to_rgb(frames[0]), f"input\n{captions[0]}"),
        Tile(signed_map(morph.initial_gradient[row], scale), f"gradient of {classes[target]}{clamp_note}"),
        *(
            Tile(colors.image_to_rgb(frames[t]), f"frame {t}\n{captions[t]}")
            for t in evenly_spaced(len(frames), steps)[1:-1]
        ),
        Tile(colors.image_to_rgb(frames[-1]), f"result, frame {len(frames) - 1}\n{captions[-1]}"),
    ]
    title, unit = f"{classes[start]} to {classes[target]}", f"gradient of {classes[target]} at the input"
    return contact_sheet([tiles], title=title, bars=[ColorBar("signed", scale, unit)], side=112)


def morph_frames(morph: Morph, row: int) -> tuple[Array, Array]:
    """The frames (T, C, H, W) and probabilities (T, K) of one row, up to where it was done and stays as it is."""
    frames, probs = as_array(morph.frames[:, row]), as_array(morph.probs[:, row])
    changed_steps = (frames[1:] != frames[:-1]).reshape(len(frames) - 1, -1).any(1).nonzero()[0]
    n = int(changed_steps[-1]) + 2 if len(changed_steps) else 1
    return frames[:n], probs[:n]


def class_sheet(
    rows: Mapping[str, Any],
    names: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    *,
    title: str = "",
) -> Image.Image:
    """Class images, {row title: (K, C, H, W)}, a column a class; `said` is what stands below them (a verdict)."""
    captions_by_row = captions or {}
    grid = [
        [
            Tile(colors.image_to_rgb(im), w)
            for im, w in zip(images, captions_by_row.get(row, [""] * len(images)), strict=True)
        ]
        for row, images in rows.items()
    ]
    return contact_sheet(grid, title=title, columns=list(names), names=list(rows), side=84)


def channel_maps(
    h: Any, *, bar: ColorBar | None = None, max_channels: int = MAX_CHANNELS, columns: int = 8, max_width: int = 232
) -> Bytes:
    """One example's activation, (C, H, W) or (F,), channel by channel: at most `most` small maps, or a strip of units.

    Signed where any value is below zero, else a magnitude. `bar`: the scale of all that are to be compared, by
    default `activation_bar(h)`.
    """
    bar, h = bar or activation_bar(h), as_array(h)
    to_rgb = colors.signed_to_rgb if bar.kind == "signed" else colors.magnitude_to_rgb
    if h.ndim < 3:
        strip = to_rgb(_units_as_rows(h), bar.scale)
        return colors.tile_images(strip[None], 1, cell=UNIT_PIXELS * max(strip.shape[:2]), max_width=max_width)
    maps = _downsample(h.reshape(-1, *h.shape[-2:])[:max_channels], max_width // columns)
    return colors.tile_images(to_rgb(maps, bar.scale), columns, max_width=max_width)


def _downsample(maps: Array, side: int) -> Array:
    """Maps (C, H, W) wider than `side` by a whole factor, each pixel the mean of a block."""
    f = -(-max(maps.shape[1:]) // max(side, 28))
    h, w = (max(1, s // f) for s in maps.shape[1:])
    if f == 1 or min(maps.shape[1:]) < f:
        return maps
    blocks: Array = maps[:, : h * f, : w * f].reshape(-1, h, f, w, f).mean((2, 4))
    return blocks


def activation_bar(h: Any) -> ColorBar:
    """The one scale of pictures by `channels`, for all that h holds: one example's activation, or those of several."""
    h = as_array(h)
    return ColorBar("signed" if h.min(initial=0) < 0 else "magnitude", colors.vmax(h), "activation")


def _units_as_rows(h: Array) -> Array:
    """Units (F,) as rows of `WIDE`; the free places at the end are NaN, drawn gray. Tokens (T, F) keep their rows."""
    if h.ndim == 2:
        rows: Array = _downsample(h[None], 16 * UNITS_PER_ROW)[0]
        return rows
    h = h[:MAX_UNITS]
    width = min(UNITS_PER_ROW, len(h))
    padded = np.full(-(-len(h) // width) * width, np.nan)
    padded[: len(h)] = h
    return padded.reshape(-1, width)


def activations(layers: Sequence[LayerMaps], row: int = 0, *, title: str = "") -> Image.Image:
    """What each layer received and gave for one example of `activations.maps`, a row a layer.

    A layer has one scale, printed, for all examples and channels: sheets of several examples compare.
    """
    rows = [[_activation_tile(h, row) for h in (layer.inputs, layer.outputs)] for layer in layers]
    names = [f"{layer.path}\n{layer.type}" for layer in layers]
    return contact_sheet(rows, title=title, columns=["received", "gave"], names=names, side=260)


def _activation_tile(h: Any, row: int) -> Tile:
    bar = activation_bar(h)
    return Tile(
        channel_maps(h[row], bar=bar),
        f"{'×'.join(map(str, h.shape[1:]))}, {bar.tick_labels[0]} to {bar.tick_labels[-1]}",
    )


def filters(weights: Any, *, title: str = "") -> Image.Image:
    """First-layer weights (K, C, h, w) on one scale: RGB around gray for three channels, else signed (their sum)."""
    picture, bar = filter_grid(weights)
    return contact_sheet([[Tile(picture)]], title=title, bars=[bar], side=max(picture.shape))


def filter_grid(
    weights: Any, *, max_filters: int = 64, columns: int = 8, max_width: int = 400
) -> tuple[Bytes, ColorBar]:
    """The filters of `filters` as one picture, and its scale."""
    w = as_array(weights)
    color = w.shape[1] == 3
    scale = colors.vmax(w) if color else colors.vmax(colors.sum_channels(w))
    selected = w[:max_filters]
    rgb = (
        colors.image_to_rgb(0.5 + selected / (2 * scale))
        if color
        else colors.signed_to_rgb(colors.sum_channels(selected), scale)
    )
    cell = 48 if max(w.shape[2:]) <= 16 else 112
    return colors.tile_images(rgb, columns, cell=cell, max_width=max_width), ColorBar(
        "gray" if color else "signed", scale, "weight"
    )
