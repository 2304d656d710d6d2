"""The figures of dissection: units with their concepts, detectors beside their twins; images before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...concepts import CausalUnits, Dissection, LayerDissection
from ...concepts.detectors import DetectorExamples
from .. import colors
from ..charts import bar_chart
from ..colors import Uint8Array
from ..figures import Figures, figures
from ..sheet import Tile, contact_sheet

if TYPE_CHECKING:
    from ...box import Box

TILE_SIDE_PIXELS = 112
UNIT_COLOR, CONCEPT_COLOR, BOTH_COLOR = (230, 120, 0), (60, 150, 235), (255, 255, 255)
IMAGE_SHARE_OF_MARKED_PIXELS = 0.15  # of a marked pixel's color that remains the image's
MAX_IMAGE_BRIGHTNESS = 0.4  # so that white marks both
MAX_LISTED_UNITS = 6
LEGEND = "Orange: the unit's mask, blue: its concept, white: both."


@figures.register(Dissection)
def _dissection_figures(result: Dissection, box: Box | None = None, *, data: Any = None) -> Figures:
    """Units of the best layer with their concepts; the number of detectors beside the twins', layer by layer."""
    return {"units": units_sheet(result, result.best), "detectors": detectors_chart(result)}


def units_sheet(result: Dissection, layer: LayerDissection) -> Image.Image:
    """A row per unit: the images on which it is largest, with its mask and its concept's."""
    rows = [detector_tiles(layer, unit) for unit in layer.shown]
    names = [unit_caption(result, layer, unit) for unit in layer.shown]
    title = f"Units of {layer.layer} with the largest IoU ({layer.verdict}). {LEGEND}"
    return contact_sheet(rows, title=title, names=names, side=TILE_SIDE_PIXELS)


def unit_caption(result: Dissection, layer: LayerDissection, unit: DetectorExamples) -> str:
    """A unit with its concept, its IoU, and the largest that its mask could reach."""
    k = int(layer.concept[unit.unit])
    mark = ", beyond chance" * (unit.unit in layer.beyond_chance.tolist())
    return (
        f"unit {unit.unit}: {layer.names[k]}{mark}\n"
        f"IoU {float(layer.iou[unit.unit, k]):.2f} (at most {float(result.reachable_iou[k]):.2f})"
    )


def detector_tiles(layer: LayerDissection, unit: DetectorExamples) -> list[Tile | None]:
    """The images on which a unit is largest, with both masks."""
    return [
        Tile(overlay_unit_and_concept_masks(image, inside, concept))
        for image, inside, concept in zip(unit.images, unit.unit_masks, unit.concept_masks, strict=True)
    ]


def overlay_unit_and_concept_masks(image: Tensor, unit: Tensor, concept: Tensor) -> Uint8Array:
    """An image (C, H, W) as gray, with the pixels of the unit's mask (H, W), of its concept's, and of both in color."""
    unit_mask, concept_mask = (m.cpu().numpy().astype(bool) for m in (unit, concept))
    shade = colors.to_float64_array(image).mean(0).clip(0, 1)[..., None] * (255 * MAX_IMAGE_BRIGHTNESS)
    rgb = shade.repeat(3, -1)
    marks = {UNIT_COLOR: unit_mask & ~concept_mask, CONCEPT_COLOR: concept_mask & ~unit_mask,
             BOTH_COLOR: unit_mask & concept_mask}  # fmt: skip
    for color, mask in marks.items():
        rgb[mask] = IMAGE_SHARE_OF_MARKED_PIXELS * rgb[mask] + (1 - IMAGE_SHARE_OF_MARKED_PIXELS) * np.array(color)
    levels: Uint8Array = rgb.clip(0, 255).round().astype(np.uint8)
    return levels


def detectors_chart(result: Dissection) -> Image.Image:
    """The share of each layer's units that are detectors, in the model and in its twins."""
    series = {"model": [len(p.detectors) / len(p.iou) for p in result.layers]}
    for name, twins in (
        ("random weights (mean)", [p.random for p in result.layers]),
        ("rotated bases (mean)", [p.rotated for p in result.layers]),
    ):
        if len(twins[0].n_detectors):
            means = [float(t.n_detectors.double().mean()) for t in twins]
            series[name] = [mean / len(p.iou) for mean, p in zip(means, result.layers, strict=True)]
    series["model, beyond chance"] = [len(p.beyond_chance) / len(p.iou) for p in result.layers]
    names = [f"{p.layer}: {p.verdict}" for p in result.layers]
    return bar_chart(series, names, title="Units that detect a concept", label="share of the layer's units")


@figures.register(CausalUnits)
def _causal_figures(result: CausalUnits, box: Box | None = None, *, data: Any = None) -> Figures:
    """Images before, without the units, and with them inserted; what that does to each concept, beside random units."""
    return {"images": ablation_and_insertion_sheet(result), "effects": ablation_effects_chart(result)}


def ablation_and_insertion_sheet(result: CausalUnits) -> Image.Image:
    """A row each: the images, without the units, with them inserted again, and without as many random ones."""
    random = "" if not len(result.random_ablated) else f", {float(result.random_removed.mean()):.0%} is gone"
    rows = {
        "images": result.images,
        f"units ablated, {result.removed:.0%} is gone": result.images_ablated,
        f"inserted, {result.restored:.0%} is there": result.images_inserted,
        f"random units ablated{random}": result.images_random,
    }
    tiles = [[Tile(colors.image_to_rgb(image)) for image in images] for images in rows.values()]
    units = ", ".join(map(str, result.units[:MAX_LISTED_UNITS].tolist()))
    more = f" and {len(result.units) - MAX_LISTED_UNITS} more" * (len(result.units) > MAX_LISTED_UNITS)
    title = f"{result.concept}: units {units}{more} of {result.layer} ({result.verdict})"
    return contact_sheet(tiles, title=title, names=list(rows), side=TILE_SIDE_PIXELS)


def ablation_effects_chart(result: CausalUnits) -> Image.Image:
    """Each concept's pixels with the units ablated and inserted, and with random ones ablated."""
    before = result.before.clamp_min(1)
    series = {
        "ablated": (result.ablated / before).tolist(),
        "then inserted": (result.inserted / before).tolist(),
    }
    if len(result.random_ablated):
        series["random units ablated (mean)"] = (result.random_ablated.double().mean(0) / before).tolist()
    names = [
        f"{name}{' (the concept)' if name == result.concept else ' (apart)' if result.disjoint[k] else ''}"
        for k, name in enumerate(result.names)
    ]
    title = f"{len(result.units)} units of {result.layer}: what is left of each concept"
    return bar_chart(series, names, title=title, label="pixels, as a share of those before")
