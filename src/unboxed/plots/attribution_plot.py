"""Attribution maps on matplotlib axes, for notebooks and figures of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..atomic_write import to_printable
from ..errors import InputError
from . import colors
from .colors import Array, Uint8Array
from .text import hyphens_to_minus_signs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVERLAY_COLOR_LEVEL = 0.85  # of vmax: the color of a map laid over a photo
PlotKind = Literal["signed", "absolute", "overlay", "mask"]
MAP_SIDE_INCHES = 2.6  # per side
WHITE_FRACTION_OUTSIDE_MASK = 0.75  # share of white that is mixed into what a mask leaves out
MASK_OUTLINE_COLOR, FRAME_COLOR = "#c1272d", "#d6d6da"
VMAX_MAGNITUDE_QUANTILE = 0.995  # of the magnitudes; larger ones get the same color


def attribution_plot(
    m: Any,
    x: Any = None,
    *,
    kind: PlotKind = "signed",
    vmax: float | None = None,
    titles: str | list[str] = "",
    ax: Any = None,
) -> tuple[Figure, Any]:
    """Draw attribution maps with matplotlib, on axes of your own if you like.

    For notebooks and papers. Take `figures` for a finished figure of a result, with inputs, classes and scores.

    Args:
        m: An attribution, a map (H, W) or (C, H, W), or maps (N, C, H, W), which share one scale. Channels are summed.
        x: The images (C, H, W) or (N, C, H, W) in [0, 1]; needed for "overlay" and "mask".
        kind: "signed": blue below zero, white at zero, red above. "absolute": magnitudes. "overlay": the signed map
            over the gray image, more opaque where it is stronger. "mask": the image where a mask of bools is true.
        vmax: The value of full color; None takes the 99.5 % quantile of the magnitudes.
        titles: One title for all maps, or one per map.
        ax: The axes to draw on, one per map; None makes a figure.

    Returns:
        (figure, axes): the axes of a single map, else one per map.

    Raises:
        InputError: for shapes that do not fit, another kind, or a mask that is not of bools.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> figure, axes = ub.plots.attribution_plot(ub.attribution.gradient(box, x, y), titles=["first", "second"])
        >>> [a.get_title() for a in axes]
        ['first', 'second']
    """
    if kind not in get_args(PlotKind):
        raise InputError(f"kind is one of {', '.join(get_args(PlotKind))}; got {kind!r}")
    m = getattr(m, "map", m)
    if kind == "mask" and "bool" not in str(getattr(m, "dtype", "")):
        raise InputError(
            "a mask is of bools: m > threshold, attribution.segmentation(m, x) or "
            "attribution.positive_segments_mask(...)"
        )
    maps = _to_2d_maps(m)  # (N, H, W)
    images = _check_images(x, maps, kind)
    figure, axes = _check_or_make_axes(ax, len(maps))
    vmax = vmax or colors.max_magnitude(maps, quantile=VMAX_MAGNITUDE_QUANTILE)
    names = [titles] * len(maps) if isinstance(titles, str) else list(titles)
    for map_2d, rgb, axis, name in zip(maps, _render_maps(maps, images, kind, vmax), axes, names, strict=False):
        axis.imshow(
            rgb, interpolation="nearest" if max(map_2d.shape) <= colors.MAX_PIXELATED_SIDE_PIXELS else "antialiased"
        )
        if kind == "mask" and (map_2d != 0).any() and not (map_2d != 0).all():
            axis.contour(map_2d != 0, levels=[0.5], colors=MASK_OUTLINE_COLOR, linewidths=1)
        _add_title_and_frame(axis, name)
    if kind != "mask":
        _add_colorbar(figure, list(axes), "magnitude" if kind == "absolute" else "signed", vmax)
    return figure, axes if len(maps) > 1 or isinstance(ax, (list, np.ndarray)) else axes[0]


def _to_2d_maps(m: Any) -> Array:
    values = colors.to_float64_array(m)
    if values.ndim not in (2, 3, 4) or not values.size:
        raise InputError(f"wanted a map (H, W), (C, H, W) or (N, C, H, W); got shape {values.shape}")
    while values.ndim < 4:
        values = values[None]
    return colors.sum_channels(values)


def _check_images(x: Any, maps: Array, kind: PlotKind) -> Uint8Array | None:
    """The images (N, H, W, 3) of maps (N, H, W). Raises InputError where they are needed and do not fit."""
    if x is None:
        if kind in ("overlay", "mask"):
            raise InputError(f"kind={kind!r} needs the image: pass x, (C, H, W) in [0, 1]")
        return None
    values = colors.to_float64_array(x)
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[0] != len(maps) or values.shape[2:] != maps.shape[1:]:
        raise InputError(f"maps {maps.shape} and images {values.shape} do not fit each other")
    return colors.image_to_rgb(values)


def _render_maps(maps: Array, images: Uint8Array | None, kind: PlotKind, vmax: float) -> Uint8Array:
    if kind == "absolute":
        return colors.magnitude_to_rgb(np.abs(maps), vmax)
    if kind == "signed" or images is None:
        return colors.signed_to_rgb(maps, vmax)
    if kind == "mask":
        return fade_outside_mask(images, maps != 0)
    return overlay_map(images, maps, vmax)


def overlay_map(image: Uint8Array, m: Any, vmax: float) -> Uint8Array:
    """A signed map (..., H, W) over the gray of an image (..., H, W, 3), more opaque where it is stronger."""
    m = colors.to_float64_array(m)
    opacity = (np.abs(m) / vmax).clip(0, 1)[..., None]
    background = 255 - (255 - image.mean(-1, keepdims=True).repeat(3, -1)) * 0.6  # pale, so that both colors are seen
    color = colors.signed_to_rgb(OVERLAY_COLOR_LEVEL * vmax * np.sign(m), vmax)  # opacity alone says how strong it is
    return _to_uint8(background * (1 - opacity) + color * opacity)


def fade_outside_mask(image: Uint8Array, mask: Any) -> Uint8Array:
    """An image (..., H, W, 3) that fades where the mask (..., H, W) is false."""
    is_inside = np.asarray(mask, dtype=bool)[..., None]
    return _to_uint8(
        np.where(is_inside, image, (image * (1 - WHITE_FRACTION_OUTSIDE_MASK) + 255 * WHITE_FRACTION_OUTSIDE_MASK))
    )


def _to_uint8(rgb: Array) -> Uint8Array:
    levels: Uint8Array = rgb.round().astype(np.uint8)
    return levels


def _check_or_make_axes(ax: Any, n: int) -> tuple[Figure, list[Axes]]:
    """The caller's axes, or new ones. Raises InputError for another number of them."""
    if ax is None:
        from matplotlib import pyplot

        figure, subplots = pyplot.subplots(
            1, n, figsize=(MAP_SIDE_INCHES * n, MAP_SIDE_INCHES * 1.25), squeeze=False, layout="constrained"
        )
        return figure, list(subplots[0])
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != n:
        raise InputError(f"wanted {n} axes for {n} maps; got {len(axes)}")
    return axes[0].figure, axes


def _add_title_and_frame(ax: Axes, title: str) -> None:
    """A title and a thin frame, since zero is as white as the background."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color(FRAME_COLOR)
    ax.set_title(to_printable(title), fontsize=9)


def _add_colorbar(figure: Figure, axes: list[Axes], colormap_kind: str, vmax: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    table_colors = {"signed": colors.SIGNED_COLORMAP, "magnitude": colors.MAGNITUDE_COLORMAP}[colormap_kind] / 255
    low = -vmax if colormap_kind == "signed" else 0.0
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, vmax), ListedColormap(table_colors)), ax=axes, orientation="horizontal",
        fraction=0.06, pad=0.04, ticks=[low, 0, vmax] if low else [0, vmax],
    )  # fmt: skip
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    bar.ax.set_xticklabels([hyphens_to_minus_signs(f"{v:.3g}") for v in bar.get_ticks()])
