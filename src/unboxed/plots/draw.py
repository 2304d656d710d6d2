"""Contact sheets of maps, class images, activations, filters and morphs.

Inputs are images (C, H, W) or (N, C, H, W) in [0, 1]; maps are shaped like them. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ..engine.rows import evenly_spaced_indices as evenly_spaced_indices
from . import colors
from .colors import Array, Uint8Array, to_float64_array
from .sheet import ColorBar, Tile, contact_sheet

if TYPE_CHECKING:
    from ..activations import LayerMaps
    from ..synthesis import Morph

MAX_SHOWN_CHANNELS_PER_LAYER = 32  # of a layer that are shown
N_UNITS_PER_ROW = 32  # of a layer without positions
UNIT_SIDE_PIXELS = 16  # per side of such a unit
MAX_SHOWN_UNITS_WITHOUT_POSITIONS = 1024  # of a layer without positions that are shown
VMAX_QUANTILE = 0.995  # of the magnitudes of compared maps; larger ones get the same color


def signed_map_to_rgb(m: Any, vmax: float) -> Uint8Array:
    """A signed map (C, H, W) summed over channels, (H, W, 3)."""
    return colors.signal_map_to_band(colors.signed_to_rgb(colors.sum_channels(m), vmax))


def map_to_rgb_and_range_text(m: Any) -> tuple[Uint8Array, str]:
    """An attribution map (C, H, W) colored on its own scale, and that scale as text. White is zero in every map, also
    in one that is positive everywhere: what is pale does not count."""
    summed = colors.sum_channels(m)
    vmax = colors.max_magnitude(summed, quantile=VMAX_QUANTILE)
    rgb = colors.signal_map_to_band(colors.signed_to_rgb(summed, vmax))
    if not summed.size or (summed == summed.flat[0]).all():
        return rgb, "the same everywhere"
    return rgb, f"0 to {vmax:.2g}" if (summed >= 0).all() else f"±{vmax:.2g}"


def shared_vmax(*maps: Any) -> float:
    """The range that signed maps (..., C, H, W) share which are compared."""
    return colors.max_magnitude(*(colors.sum_channels(m) for m in maps), quantile=VMAX_QUANTILE)


def outline_rectangle(rgb: Uint8Array, bounds: Sequence[int], color: tuple[int, int, int], side: int) -> Image.Image:
    """An image (H, W, 3), enlarged as on a sheet, with a line around bounds (top, left, bottom, right) of it."""
    im = colors.resize_to_side(rgb, side).convert("RGB")
    fy, fx = im.height / rgb.shape[0], im.width / rgb.shape[1]
    top, left, bottom, right = bounds
    corners = round(left * fx) - 1, round(top * fy) - 1, round(right * fx), round(bottom * fy)
    ImageDraw.Draw(im).rectangle(corners, outline=color)
    return im


def gradients(
    x: Any,
    columns: Mapping[str, Any],
    *,
    captions: Sequence[str] = (),
    title: str = "",
    own_scale: Sequence[str] = (),
    unit: str = "change per unit of pixel value",
) -> Image.Image:
    """Inputs and their gradients (or other signed maps) by several methods or models, a row per input.

    Args:
        x: Inputs (N, C, H, W) in [0, 1].
        columns: {column title: maps (N, C, H, W)}.
        captions: Text below each input.
        title: Printed above.
        own_scale: Titles of the columns that do not share the scale of the others: an untrained model has gradients of
            another magnitude.
        unit: What the values of the maps are, printed at the scales.

    Returns:
        The sheet, with its scales printed.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.plots.gradients(x, {"gradient": ub.attribution.gradient(box, x, y)}, captions=["7", "2"]).width > 300
        True
    """
    shared = [m for name, m in columns.items() if name not in own_scale]
    vmax_of = {name: shared_vmax(m) if name in own_scale else shared_vmax(*shared) for name, m in columns.items()}
    padded_captions = list(captions) or [""] * len(x)
    rows = [
        [
            Tile(colors.image_to_rgb(x[i]), padded_captions[i]),
            *(Tile(signed_map_to_rgb(m[i], vmax_of[n])) for n, m in columns.items()),
        ]
        for i in range(len(x))
    ]
    bars = [ColorBar("signed", vmax_of[n], f"{n}: {unit}") for n in columns if n in own_scale]
    if shared:
        shared_names = ", ".join(n for n in columns if n not in own_scale)
        bars.insert(0, ColorBar("signed", shared_vmax(*shared), f"{shared_names}: {unit}"))
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
    """An input between two classes: the gradients of both logits, and the input moved along each of them.

    Args:
        x: The input (C, H, W) in [0, 1].
        maps: d logit / dx of both classes, (2, C, H, W).
        names: Names of the two classes.
        label: Name of the correct class; "" prints none.
        factor: Multiple of the gradients that is added to the input.
        logits: The two logits; () prints none.
        before_clamp: For each class, whether its gradient was taken before a final ReLU that clamps the logit.

    Returns:
        A sheet of 2 x 3 images.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> maps = [ub.attribution.gradient(box, x[:1], k)[0] for k in (4, 9)]
        >>> import torch
        >>> ub.plots.confused(x[0], torch.stack(maps), ["4", "9"], label="9", factor=0.2).width
        480
    """
    x, maps = to_float64_array(x), to_float64_array(maps)
    vmax = shared_vmax(maps)
    gradient_names = [f"d logit {n} / dx" for n in names]
    values = [f"logit {v:.3g}" for v in logits] or ["", ""]
    clamp_notes = ["before the clamp" if c else "" for c in before_clamp]
    first_row = [Tile(colors.image_to_rgb(x), f"input, label {label}" if label else "input")]
    second_row: list[Tile | None] = [None]
    for m, a, *notes in zip(maps, gradient_names, values, clamp_notes, strict=True):
        first_row.append(Tile(signed_map_to_rgb(m, vmax), "\n".join(filter(None, [a, *notes]))))
        second_row.append(Tile(colors.image_to_rgb(x + factor * m), f"input + {factor:g} × {a}"))
    return contact_sheet([first_row, second_row], bars=[ColorBar("signed", vmax, "d logit / dx")])


def morph_strip(morph: Morph, row: int, *, label: int | None = None, steps: int = 5) -> Image.Image:
    """One morph as a strip: the input, the gradient there, some of the frames and the result, with probabilities.

    Args:
        morph: The result of `synthesis.morph`.
        row: Which of the N inputs.
        label: The class that it came from; None takes the predicted class of the input.
        steps: Number of frames shown, evenly spaced, the first and the last among them.

    Returns:
        The strip.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> morph = ub.synthesis.morph(box, x, 3, steps=4)
        >>> ub.plots.morph_strip(morph, 0, steps=3).height
        261
    """
    frames, probs = morph_frames(morph, row)
    classes, target = morph.classes, int(morph.targets[row])
    start = int(probs[0].argmax()) if label is None else label
    captions = [f"{classes[target]}: {p[target]:.2f}\n{classes[start]}: {p[start]:.2f}" for p in probs]
    vmax = shared_vmax(morph.initial_gradient[row])
    clamp_note = ", before the clamp" if bool(morph.before_clamp[row]) else ""
    tiles = [
        Tile(colors.image_to_rgb(frames[0]), f"input\n{captions[0]}"),
        Tile(signed_map_to_rgb(morph.initial_gradient[row], vmax), f"gradient of {classes[target]}{clamp_note}"),
        *(
            Tile(colors.image_to_rgb(frames[t]), f"frame {t}\n{captions[t]}")
            for t in evenly_spaced_indices(len(frames), steps)[1:-1]
        ),
        Tile(colors.image_to_rgb(frames[-1]), f"result, frame {len(frames) - 1}\n{captions[-1]}"),
    ]
    title, unit = f"{classes[start]} to {classes[target]}", f"gradient of {classes[target]} at the input"
    return contact_sheet([tiles], title=title, bars=[ColorBar("signed", vmax, unit)], side=112)


def morph_frames(morph: Morph, row: int) -> tuple[Array, Array]:
    """The frames (T, C, H, W) and probabilities (T, K) of one row, up to the last frame that changed."""
    frames, probs = to_float64_array(morph.frames[:, row]), to_float64_array(morph.probs[:, row])
    changed_steps = (frames[1:] != frames[:-1]).reshape(len(frames) - 1, -1).any(1).nonzero()[0]
    n = int(changed_steps[-1]) + 2 if len(changed_steps) else 1
    return frames[:n], probs[:n]


def class_sheet(
    rows: Mapping[str, Any],
    names: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    *,
    title: str = "",
    side: int = 84,
) -> Image.Image:
    """Class images, a column per class and a row per method or model.

    Args:
        rows: {row title: images (K, C, H, W) in [0, 1]}.
        names: Titles of the K columns: names of the classes.
        captions: {row title: text below each of its images}; None prints none.
        title: Printed above.
        side: Size in pixels of each image: small ones are enlarged by a whole factor, photos are shrunk to it.

    Returns:
        The sheet.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> drawn = ub.synthesis.class_image(box, [0, 1], steps=2)
        >>> ub.plots.class_sheet({"images": drawn.images}, ["zero", "one"]).width > 250
        True
    """
    captions_by_row = captions or {}
    grid = [
        [
            Tile(colors.image_to_rgb(im), w)
            for im, w in zip(images, captions_by_row.get(row, [""] * len(images)), strict=True)
        ]
        for row, images in rows.items()
    ]
    return contact_sheet(grid, title=title, columns=list(names), names=list(rows), side=side)


def channel_map_grid(
    h: Any,
    *,
    bar: ColorBar | None = None,
    max_channels: int = MAX_SHOWN_CHANNELS_PER_LAYER,
    columns: int = 8,
    max_width: int = 232,
) -> Uint8Array:
    """One example's activation: of (C, H, W) at most `max_channels` small maps, of (F,) rows of units.

    Signed where any value is below zero, else a magnitude. `bar` is the scale of all that are compared, by default
    `activation_color_bar(h)`.
    """
    bar, h = bar or activation_color_bar(h), to_float64_array(h)
    to_rgb = colors.signed_to_rgb if bar.kind == "signed" else colors.magnitude_to_rgb
    if h.ndim < 3:
        strip = to_rgb(_arrange_units_in_rows(h), bar.vmax)
        return colors.tile_images(strip[None], 1, cell=UNIT_SIDE_PIXELS * max(strip.shape[:2]), max_width=max_width)
    maps = _downsample_maps(h.reshape(-1, *h.shape[-2:])[:max_channels], max_width // columns)
    return colors.tile_images(to_rgb(maps, bar.vmax), columns, max_width=max_width)


def _downsample_maps(maps: Array, side: int) -> Array:
    """Maps (C, H, W) wider than `side` by a whole factor, each pixel the mean of a block."""
    f = -(-max(maps.shape[1:]) // max(side, 28))
    h, w = (max(1, s // f) for s in maps.shape[1:])
    if f == 1 or min(maps.shape[1:]) < f:
        return maps
    blocks: Array = maps[:, : h * f, : w * f].reshape(-1, h, f, w, f).mean((2, 4))
    return blocks


def activation_color_bar(h: Any) -> ColorBar:
    """The scale of `channel_map_grid` for all values of h: one example's activation, or those of several."""
    h = to_float64_array(h)
    return ColorBar("signed" if h.min(initial=0) < 0 else "magnitude", colors.max_magnitude(h), "activation")


def _arrange_units_in_rows(h: Array) -> Array:
    """Units (F,) in rows of N_UNITS_PER_ROW; free cells are NaN, drawn gray. Tokens (T, F) keep their rows."""
    if h.ndim == 2:
        rows: Array = _downsample_maps(h[None], 16 * N_UNITS_PER_ROW)[0]
        return rows
    h = h[:MAX_SHOWN_UNITS_WITHOUT_POSITIONS]
    width = min(N_UNITS_PER_ROW, len(h))
    padded = np.full(-(-len(h) // width) * width, np.nan)
    padded[: len(h)] = h
    return padded.reshape(-1, width)


def activations(layers: Sequence[LayerMaps], row: int = 0, *, title: str = "") -> Image.Image:
    """The input and the output of each layer for one example, a row per layer.

    Each layer has one scale, printed, for all examples and channels, so sheets of several examples can be compared.

    Args:
        layers: The result of `activations.maps`.
        row: Which of the N examples.
        title: Printed above.

    Returns:
        The sheet.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.plots.activations(ub.activations.maps(box, x, ["conv1", "conv2"]), row=1).width > 500
        True
    """
    rows = [[_activation_tile(h, row) for h in (layer.inputs, layer.outputs)] for layer in layers]
    names = [f"{layer.path}\n{layer.type}" for layer in layers]
    return contact_sheet(rows, title=title, columns=["input", "output"], names=names, side=260)


def layer_sheet(layers: Mapping[str, Any], row: int = 0, *, title: str = "") -> Image.Image:
    """What each layer gives, {address: (N, ...)}, for one example: two layers in a line, each with its scale."""
    tiles: list[Tile | None] = [
        replace(tile, caption=f"{address}\n{tile.caption}")
        for address, h in layers.items()
        for tile in [_activation_tile(h, row)]
    ]
    return contact_sheet([tiles[i : i + 2] for i in range(0, len(tiles), 2)], title=title, side=260)


def _activation_tile(h: Any, row: int) -> Tile:
    bar = activation_color_bar(h)
    return Tile(
        channel_map_grid(h[row], bar=bar),
        f"{'×'.join(map(str, h.shape[1:]))}, {bar.tick_labels[0]} to {bar.tick_labels[-1]}",
    )


def filters(weights: Any, *, title: str = "") -> Image.Image:
    """Filters of a first layer, as small images on one scale.

    Args:
        weights: What `ub.activations.filters` gives, or weights (K, C, h, w): of three channels as colors around gray,
            else the signed sum over channels.
        title: Printed above.

    Returns:
        The sheet, with at most 64 filters.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> ub.plots.filters(ub.activations.filters(box)).width
        429
    """
    grid, bar = filter_grid(getattr(weights, "weights", weights))
    return contact_sheet([[Tile(colors.add_borders(grid))]], title=title, bars=[bar], side=max(grid.shape) + 2)


def filter_grid(
    weights: Any, *, max_filters: int = 64, columns: int = 8, max_width: int = 400
) -> tuple[Uint8Array, ColorBar]:
    """The filters of `filters` as one image, and its color bar."""
    w = to_float64_array(weights)
    color = w.shape[1] == 3
    vmax = colors.max_magnitude(w) if color else colors.max_magnitude(colors.sum_channels(w))
    selected = w[:max_filters]
    rgb = (
        colors.image_to_rgb(0.5 + selected / (2 * vmax))
        if color
        else colors.signed_to_rgb(colors.sum_channels(selected), vmax)
    )
    cell = 48 if max(w.shape[2:]) <= 16 else 112
    return colors.tile_images(rgb, columns, cell=cell, max_width=max_width), ColorBar(
        "gray" if color else "signed", vmax, "weight"
    )
