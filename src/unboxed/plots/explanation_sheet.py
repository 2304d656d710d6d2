"""One input and its maps by many methods, each with the verdict on the method: images, and rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from . import colors
from .attribution_plot import overlay_map
from .draw import VMAX_QUANTILE, map_to_rgb_and_range_text, signed_map_to_rgb
from .sheet import Tile, contact_sheet
from .tables import attribution_axis_label, contribution_bars, stack_panels

if TYPE_CHECKING:
    from ..engine.attribution_result import Attribution
    from ..explaining import Explanation

MAX_EXPLANATION_SHEET_COLUMNS = 4


class RenderedMap(NamedTuple):
    """A map as it is shown: laid over a photo, or alone; and its scale in words."""

    shown: colors.Uint8Array  # (H, W, 3)
    map: colors.Uint8Array  # (H, W, 3)
    scale: str


def render_map(x: Any, m: Any, vmax: float | None = None) -> RenderedMap:
    """A map (C or 1, H, W) of an input (C, H, W), on the scale of -vmax to vmax or on its own.

    Maps of another size than the photo's are not laid over it.
    """
    rgb, scale = map_to_rgb_and_range_text(m) if vmax is None else (signed_map_to_rgb(m, vmax), f"±{vmax:.3g}")
    image, summed = colors.image_to_rgb(x), colors.sum_channels(m)
    if max(image.shape[:2]) <= colors.MAX_PIXELATED_SIDE_PIXELS or image.shape[:2] != summed.shape[-2:]:
        return RenderedMap(rgb, rgb, scale)
    vmax = colors.max_magnitude(summed, quantile=VMAX_QUANTILE) if vmax is None else vmax
    return RenderedMap(overlay_map(image, summed, vmax), rgb, scale)


def render_input(explanation: Explanation) -> colors.Uint8Array:
    """The input of an explanation of an image, (H, W, 3)."""
    from .results.common import as_images_or_none

    image = as_images_or_none(explanation.input)
    return colors.image_to_rgb(image[0] if image is not None else explanation.input[0])


def render_explanation_maps(explanation: Explanation, maps: Mapping[str, Any] | None = None) -> dict[str, RenderedMap]:
    """{method: picture} of an explanation's maps, or of others of the same input; empty where it is no image."""
    from .results.common import as_images_or_none

    image, maps = as_images_or_none(explanation.input), explanation.maps if maps is None else maps
    if image is None:
        return {}
    images = {name: as_images_or_none(m) for name, m in maps.items()}
    return {name: render_map(image[0], m[0]) for name, m in images.items() if m is not None}


def explanation_sheet(explanation: Explanation, *, title: str = "") -> Image.Image:
    """The input and its maps, laid over it if it is a photo, with the methods' verdicts below them.

    Methods have different units, so each map has its own scale, printed below it. Of two classes, a row of maps for
    the difference and a row for each.
    """
    pictures = render_explanation_maps(explanation)
    tiles: list[Tile | None] = [Tile(render_input(explanation), "input")]
    for name, p in pictures.items():
        verdict = explanation.verdicts.get(name)
        badge = "not judged" if verdict is None else verdict.badge
        tiles.append(Tile(p.shown, f"{explanation.names[name]}\n{badge}\n{p.scale}"))
    rows = _split_into_sheet_rows(tiles)
    for target, maps in explanation.side_maps.items():
        sides = render_explanation_maps(explanation, maps)
        rows += _split_into_sheet_rows(
            [Tile(p.shown, f"{target} alone\n{explanation.names[n]}\n{p.scale}") for n, p in sides.items()]
        )
    return contact_sheet(rows, title=title, side=168)


def _split_into_sheet_rows(
    tiles: Sequence[Tile | None], columns: int = MAX_EXPLANATION_SHEET_COLUMNS
) -> list[list[Tile | None]]:
    rows = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return [row + [None] * (columns - len(row)) if len(tiles) > columns else row for row in rows]


def table_row_explanation_sheet(
    x: Any, maps: Mapping[str, Attribution], verdicts: Mapping[str, str], names: Sequence[str], *, title: str = ""
) -> Image.Image:
    """A row of a table (F,) and what each of its columns contributes {method: (1, F)}, the methods below one another;
    slopes per standard deviation, or range, of each column."""
    panels = [
        contribution_bars(
            m.flatten(), x, names, title=f"{method}: {verdicts.get(method, '')}", label=attribution_axis_label(m)
        )
        for method, m in ((method, m.per_column_scale()) for method, m in maps.items())
    ]
    return stack_panels([contact_sheet([], title=title), *panels])
