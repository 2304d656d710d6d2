"""Results of several models side by side, on one printed scale; and the similarity of their layers as a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from ..errors import InputError
from . import colors
from .charts import MAX_MATRIX_SIDE_PIXELS, matrix_plot
from .colors import Uint8Array, to_float64_array
from .draw import VMAX_QUANTILE
from .sheet import ColorBar, Tile, contact_sheet

MapKind = Literal["signed", "magnitude", "image"]


@dataclass(frozen=True)
class ColoredPanels:
    """Colored maps or images {model: (N, H, W, 3)}, and the color bar that maps share."""

    images: dict[str, Uint8Array]
    bar: ColorBar | None


def colored_panels(results: Mapping[str, Any], *, kind: MapKind | None = None, unit: str = "") -> ColoredPanels:
    """The results {model: (N, C, H, W)} colored on one scale, by default signed if any value is below zero.

    Raises InputError where they are not maps or images of one shape.
    """
    are_images = all(hasattr(result, "images") for result in results.values())
    maps = _check_same_shape_maps({name: result.images for name, result in results.items()} if are_images else results)
    if kind is None and are_images:
        kind = "image"
    if kind is None:
        kind = "signed" if min(m.min(initial=0) for m in maps.values()) < 0 else "magnitude"
    if kind == "image":
        return ColoredPanels({name: colors.image_to_rgb(m) for name, m in maps.items()}, None)
    summed = {name: colors.sum_channels(m) for name, m in maps.items()}
    vmax = colors.max_magnitude(*summed.values(), quantile=VMAX_QUANTILE)
    to_rgb = colors.signed_to_rgb if kind == "signed" else colors.magnitude_to_rgb
    return ColoredPanels({name: to_rgb(m, vmax) for name, m in summed.items()}, ColorBar(kind, vmax, unit))


def side_by_side(
    results: Mapping[str, Any],
    x: Any = None,
    *,
    kind: MapKind | None = None,
    captions: Sequence[str] = (),
    title: str = "",
    unit: str = "",
    side: int = 140,
) -> Image.Image:
    """Results of several models side by side, a row per example and a column per model.

    Of checkpoints in place of models it is a strip over the training.

    Args:
        results: {model: result}, as `unboxed.compare` returns them: maps (N, C, H, W) or generated images.
        x: The inputs (N, C, H, W) in [0, 1], shown on the left; None shows none.
        kind: "signed" or "magnitude" maps, or "image"; None determines it from the results and their values.
        captions: Text below the first image of each row.
        title: Printed above.
        unit: Unit of the maps' values, printed at the color bar.
        side: Size in pixels of each image: small ones are enlarged by a whole factor, photos are shrunk to it.

    Returns:
        The sheet. Maps share one printed scale.

    Raises:
        InputError: when the results are not maps or images of one shape.

    Example:
        >>> import unboxed as ub
        >>> weights = {"trained": "trained", "untrained": None}
        >>> boxes = {name: ub.Box(*ub.zoo.load("digits-cnn", weights=w)) for name, w in weights.items()}
        >>> x, y = ub.data.digits("test").first(2)
        >>> maps = ub.compare(boxes, ub.attribution.gradient, x, y)
        >>> ub.plots.compare.side_by_side(maps, x).width
        480
    """
    colored = colored_panels(results, kind=kind, unit=unit)
    n = len(next(iter(colored.images.values())))
    padded_captions = [*captions, *[""] * (n - len(captions))]
    first = [[] if x is None else [Tile(colors.image_to_rgb(x[i]), padded_captions[i])] for i in range(n)]
    rows: list[list[Tile | None]] = [
        [
            *first[i],
            *(
                Tile(p[i], padded_captions[i] if x is None and j == 0 else "")
                for j, p in enumerate(colored.images.values())
            ),
        ]
        for i in range(n)
    ]
    columns = [*(["input"] if x is not None else []), *results]
    return contact_sheet(rows, title=title, columns=columns, bars=[colored.bar] if colored.bar else [], side=side)


def _check_same_shape_maps(results: Mapping[str, Any]) -> dict[str, colors.Array]:
    if not results:
        raise InputError("there is nothing to draw: give {model: result}")
    if not_arrays := [name for name, m in results.items() if not hasattr(m, "shape")]:
        type_text = f"{not_arrays[0]!r} is a {type(results[not_arrays[0]]).__name__}"
        raise InputError(
            f"wanted maps (N, C, H, W) or generated images of each model; {type_text}: pass one of its tensors"
        )
    maps = {name: to_float64_array(m) for name, m in results.items()}
    shapes = {name: m.shape for name, m in maps.items()}
    if wrong_shape := [name for name, shape in shapes.items() if len(shape) != 4]:
        raise InputError(
            f"wanted maps or images (N, C, H, W) of each model; {wrong_shape[0]!r} has shape {shapes[wrong_shape[0]]}"
        )
    if len(set(shapes.values())) > 1:
        shapes_text = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise InputError(f"results side by side must have the same shape; got {shapes_text}")
    return maps


# -- similarity of layers --------------------------------------------------------------------------------------------


def cka_plot(
    cka: Any, rows: Sequence[str], columns: Sequence[str], models: tuple[str, str], *, title: str = "",
    max_pixels: int = MAX_MATRIX_SIDE_PIXELS, transparent: bool = False,
) -> Image.Image:  # fmt: skip
    """Similarities (La, Lb) of two models' layers from 0, black, to 1, light; the first layer is at the bottom left.

    `models` are the names of the two axes; `transparent` leaves out the background, for light and dark pages.
    """
    values = to_float64_array(cka)[::-1].clip(0, 1)
    return matrix_plot(
        values, list(reversed(rows)), columns, models, title=title, unit="CKA", vmax=1.0, max_pixels=max_pixels,
        transparent=transparent,
    )  # fmt: skip


# -- two models' filters and maps in one grid each ---------------------------------------------------------------------


def map_grid_by_model(
    maps: Mapping[str, Any], *, max_maps: int = 32, columns: int = 8, max_width: int = 400
) -> tuple[dict[str, Uint8Array], ColorBar]:
    """{model: maps (K, H, W), or filters of three colors (K, 3, h, w)} as one grid per model, on one scale."""
    selected = {name: to_float64_array(m)[:max_maps] for name, m in maps.items()}
    vmax = colors.max_magnitude(*selected.values())
    if all(m.ndim == 4 for m in selected.values()):
        rgb, kind = {name: colors.image_to_rgb(0.5 + m / (2 * vmax)) for name, m in selected.items()}, "gray"
    else:
        kind = "signed" if min(m.min(initial=0) for m in selected.values()) < 0 else "magnitude"
        to_rgb = colors.signed_to_rgb if kind == "signed" else colors.magnitude_to_rgb
        rgb = {name: to_rgb(m, vmax) for name, m in selected.items()}
    bar = ColorBar(kind, vmax)  # type: ignore[arg-type]
    return {n: colors.tile_images(p, columns, cell=48, max_width=max_width) for n, p in rgb.items()}, bar
