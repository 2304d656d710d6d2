"""The maps and images of the planted shortcut check, of the model with the shortcut and its control, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from . import colors
from .draw import outline_rectangle, shared_vmax, signed_map_to_rgb
from .sheet import ColorBar, Tile, contact_sheet

if TYPE_CHECKING:
    from ..checks.shortcut_report import ShortcutReport
    from ..checks.shortcut_trial import ShortcutFinding
    from ..engine.rectangle import Rectangle

TILE_SIDE_PIXELS = 84
OUTLINE_COLOR_ON_IMAGE, OUTLINE_COLOR_ON_MAP = (255, 176, 0), (28, 28, 30)  # visible on black and on white
MODEL_AND_CONTROL_NAMES = ("with the shortcut", "control model")


def shortcut_maps(result: ShortcutReport) -> Image.Image:
    """A row per attribution method, a column per image and model; explained is the class of the image's trigger.

    Both models share the scale of a row; triggers are outlined.
    """
    rows = [f for f in result.findings if f.family == "attribution" and f.images is not None]
    rectangles = [result.trigger.rectangle(int(k)) for k in result.classes]
    grid = [_outlined_input_tiles(result, rectangles), *(_outlined_map_tiles(f, rectangles) for f in rows)]
    names = [
        "input",
        *(f"{f.name}\n{f.grade}\n{_finding_score_text(f)}\n±{_vmax_of_finding_maps(f):.2g}" for f in rows),
    ]
    columns = [
        f"{model}: {'mismatched' if k != y else 'matched'} trigger"
        for model in MODEL_AND_CONTROL_NAMES
        for k, y in _trigger_class_and_label_pairs(result)
    ]
    bar = ColorBar("signed", 1.0, "relative to the range of the row, printed on its left")
    title = "Which methods show the planted shortcut? Left: maps that peak at a mismatched trigger (control model)"
    return contact_sheet(grid, title=title, columns=columns, names=names, bars=[bar], side=TILE_SIDE_PIXELS)


def _trigger_class_and_label_pairs(result: ShortcutReport) -> list[tuple[int, int]]:
    return list(zip(result.classes.tolist(), result.labels.tolist(), strict=True))


def _finding_score_text(finding: ShortcutFinding) -> str:
    return (
        ""
        if finding.score is None or finding.control_score is None
        else f"{finding.score:.0%} ({finding.control_score:.0%})"
    )


def _vmax_of_finding_maps(finding: ShortcutFinding) -> float:
    return shared_vmax(*(finding.images or ()))


def _outlined_input_tiles(result: ShortcutReport, rectangles: Sequence[Rectangle]) -> list[Tile]:
    tiles = []
    for predicted in result.predicted:
        for x, (k, y), p, rectangle in zip(
            result.images, _trigger_class_and_label_pairs(result), predicted.tolist(), rectangles, strict=True
        ):
            tiles.append(
                Tile(
                    outline_rectangle(
                        colors.image_to_rgb(x), _rectangle_bounds(rectangle), OUTLINE_COLOR_ON_IMAGE, TILE_SIDE_PIXELS
                    ),
                    f"label {y}, trigger {k}\npredicted {p}",
                )
            )
    return tiles


def _outlined_map_tiles(finding: ShortcutFinding, rectangles: Sequence[Rectangle]) -> list[Tile]:
    vmax = _vmax_of_finding_maps(finding)
    all_maps = [m for of_model in finding.images or () for m in of_model]
    return [
        Tile(
            outline_rectangle(
                signed_map_to_rgb(m, vmax), _rectangle_bounds(rectangle), OUTLINE_COLOR_ON_MAP, TILE_SIDE_PIXELS
            )
        )
        for m, rectangle in zip(all_maps, [*rectangles, *rectangles], strict=False)
    ]


def _rectangle_bounds(rectangle: Rectangle) -> tuple[int, int, int, int]:
    return rectangle.top, rectangle.left, rectangle.top + rectangle.height, rectangle.left + rectangle.width


def shortcut_images(result: ShortcutReport) -> Image.Image:
    """Class images and top examples of the first class with a trigger, of both models."""
    k = result.trigger.classes[0]
    rows, names = list[list[Any]](), list[str]()
    for f in result.findings:
        if f.family in ("synthesis", "activations") and f.images is not None:
            for images, model in zip(f.images, MODEL_AND_CONTROL_NAMES, strict=True):
                rows.append([Tile(colors.image_to_rgb(x)) for x in images])
                names.append(f"{f.name} of {k}\n{model}")
    return contact_sheet(rows, title=f"Class images and top examples of {k}", names=names, side=84)
