"""Heat maps in matplotlib, for notebooks and figures of one's own: each gives (figure, axes), and takes axes.

Everything else in this room is drawn by Pillow; matplotlib is imported only when one of these is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..atomic_write import to_printable
from ..errors import InputError
from . import colors
from .colors import Array, Bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PlotKind = Literal["signed", "absolute", "overlay", "mask"]
INCHES_PER_MAP = 2.6  # a side of one picture
MASK_FADE = 0.75  # how far what a mask leaves out fades into white
MASK_OUTLINE_COLOR, FRAME_COLOR = "#c1272d", "#d6d6da"
VMAX_QUANTILE = 0.995  # of the magnitudes: what lies beyond has full color


def attribution_plot(
    m: Any,
    x: Any = None,
    *,
    kind: PlotKind = "signed",
    scale: float | None = None,
    titles: str | list[str] = "",
    ax: Any = None,
) -> tuple[Figure, Any]:
    """Draw the map of one example, (C, H, W) or (H, W), or of several, (N, C, H, W), on one scale; or a result's map.

    "signed": blue below zero, white at zero, red above; "absolute": magnitudes; "overlay": the signed map over the
    gray of image `x` (as `m` is, in [0, 1]), the stronger the less transparent; "mask": the image where a mask of bools
    is true.
    Channels are summed. `scale` is the value of full color (default: the 99.5 % quantile of the magnitudes shown). `ax`
    is one of matplotlib's axes, or as many as there are maps. Returns (figure, axes). Raises InputError.
    """
    if kind not in get_args(PlotKind):
        raise InputError(f"kind is one of {', '.join(get_args(PlotKind))}; got {kind!r}")
    m = getattr(m, "map", m)
    if kind == "mask" and "bool" not in str(getattr(m, "dtype", "")):
        raise InputError(
            "a mask is of bools: m > threshold, attribution.segmentation(m, x) or attribution.positive(...)"
        )
    maps = _as_2d_maps(m)  # (N, H, W)
    images = _check_images(x, maps, kind)
    figure, axes = _get_axes(ax, len(maps))
    scale = scale or colors.vmax(maps, quantile=VMAX_QUANTILE)
    names = [titles] * len(maps) if isinstance(titles, str) else list(titles)
    for map_2d, rgb, axis, name in zip(maps, _render_maps(maps, images, kind, scale), axes, names, strict=False):
        axis.imshow(rgb, interpolation="nearest" if max(map_2d.shape) <= colors.NEAREST_MAX_PIXELS else "antialiased")
        if kind == "mask" and (map_2d != 0).any() and not (map_2d != 0).all():
            axis.contour(map_2d != 0, levels=[0.5], colors=MASK_OUTLINE_COLOR, linewidths=1)
        _add_frame(axis, name)
    if kind != "mask":
        _add_colorbar(figure, list(axes), "magnitude" if kind == "absolute" else "signed", scale)
    return figure, axes if len(maps) > 1 or isinstance(ax, (list, np.ndarray)) else axes[0]


def _as_2d_maps(m: Any) -> Array:
    values = colors.as_array(m)
    if values.ndim not in (2, 3, 4) or not values.size:
        raise InputError(f"wanted a map (H, W), (C, H, W) or (N, C, H, W); got shape {values.shape}")
    while values.ndim < 4:
        values = values[None]
    return colors.sum_channels(values)


def _check_images(x: Any, maps: Array, kind: PlotKind) -> Bytes | None:
    """The images (N, H, W, 3) below maps (N, H, W). Raises InputError where they are wanted and don't fit."""
    if x is None:
        if kind in ("overlay", "mask"):
            raise InputError(f"kind={kind!r} is drawn over the image: pass x, (C, H, W) in [0, 1]")
        return None
    values = colors.as_array(x)
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[0] != len(maps) or values.shape[2:] != maps.shape[1:]:
        raise InputError(f"maps {maps.shape} and images {values.shape} don't fit each other")
    return colors.image_to_rgb(values)


def _render_maps(maps: Array, images: Bytes | None, kind: PlotKind, scale: float) -> Bytes:
    if kind == "absolute":
        return colors.magnitude_to_rgb(np.abs(maps), scale)
    if kind == "signed" or images is None:
        return colors.signed_to_rgb(maps, scale)
    if kind == "mask":
        return fade_outside(images, maps != 0)
    return overlay_map(images, maps, scale)


def overlay_map(image: Bytes, m: Any, scale: float) -> Bytes:
    """A signed map (..., H, W) over the gray of an image (..., H, W, 3), the stronger the less transparent."""
    m = colors.as_array(m)
    opacity = (np.abs(m) / scale).clip(0, 1)[..., None]
    background = 255 - (255 - image.mean(-1, keepdims=True).repeat(3, -1)) * 0.6  # so that both colors stand out
    return _to_uint8(background * (1 - opacity) + colors.signed_to_rgb(m, scale) * opacity)


def fade_outside(image: Bytes, mask: Any) -> Bytes:
    """An image (..., H, W, 3) that fades where the mask (..., H, W) is false."""
    is_inside = np.asarray(mask, dtype=bool)[..., None]
    return _to_uint8(np.where(is_inside, image, (image * (1 - MASK_FADE) + 255 * MASK_FADE)))


def _to_uint8(picture: Array) -> Bytes:
    levels: Bytes = picture.round().astype(np.uint8)
    return levels


def _get_axes(ax: Any, n: int) -> tuple[Figure, list[Axes]]:
    """Axes of the caller's, or new ones."""
    if ax is None:
        from matplotlib import pyplot

        figure, subplots = pyplot.subplots(
            1, n, figsize=(INCHES_PER_MAP * n, INCHES_PER_MAP * 1.25), squeeze=False, layout="constrained"
        )
        return figure, list(subplots[0])
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != n:
        raise InputError(f"wanted {n} axes for {n} maps; got {len(axes)}")
    return axes[0].figure, axes


def _add_frame(a: Axes, title: str) -> None:
    """A title and a thin frame: zero is as white as the paper."""
    a.set_xticks([])
    a.set_yticks([])
    a.spines[:].set_color(FRAME_COLOR)
    a.set_title(to_printable(title), fontsize=9)


def _add_colorbar(figure: Figure, axes: list[Axes], table: str, scale: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    table_colors = {"signed": colors.SIGNED_TABLE, "magnitude": colors.MAGNITUDE_TABLE}[table] / 255
    low = -scale if table == "signed" else 0.0
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, scale), ListedColormap(table_colors)), ax=axes, orientation="horizontal",
        fraction=0.06, pad=0.04, ticks=[low, 0, scale] if low else [0, scale],
    )  # fmt: skip
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    bar.ax.set_xticklabels([f"{v:.3g}" for v in bar.get_ticks()])
