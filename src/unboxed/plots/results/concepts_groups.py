"""The figures of groups of examples: clusters of explanations with their proof, error slices, prototypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ...concepts import ErrorSlices, Prototypes, Shortcuts
from ...concepts.prototypes import ClassPrototypes
from ...concepts.shortcuts import ExplanationCluster
from ...concepts.slices import ErrorSlice
from ...engine.rectangle import Rectangle
from .. import colors
from ..charts import bar_chart
from ..draw import outline_rectangle
from ..figures import Figures, figures
from ..sheet import ColorBar, Tile, contact_sheet
from .common import class_name, image_tiles

if TYPE_CHECKING:
    from ...box import Box

MAX_CLUSTER_ROWS, MAX_ERROR_SLICE_ROWS, MAX_PROTOTYPE_CLASS_ROWS = 6, 5, 5  # rows of a figure
N_CLUSTER_MEMBER_TILES, N_BEFORE_AFTER_PASTE_PAIRS, N_ERROR_SLICE_TILES, N_TILES_PER_ROW = 3, 2, 6, 6
TILE_SIDE_PIXELS = 84
PATCH_OUTLINE_COLOR = (214, 40, 40)


@figures.register(Shortcuts)
def _shortcut_figures(result: Shortcuts, box: Box | None = None, *, data: Any = None) -> Figures:
    """A row per cluster: examples, mean map with the patch, images before and after pasting; claimed ones first."""
    ranked = sorted(result.clusters, key=lambda c: (not c.is_shortcut, -(c.test.with_patch.value if c.test else 0)))
    shown = ranked[:MAX_CLUSTER_ROWS]
    if not shown:
        return {}
    vmax = max(float(c.mean_map.max()) for c in shown)
    rows = [cluster_tiles(result, c, vmax) for c in shown]
    columns = [
        "examples",
        *[""] * (N_CLUSTER_MEMBER_TILES - 1),
        "mean map",
        "before, pasted",
        *[""] * (2 * N_BEFORE_AFTER_PASTE_PAIRS - 1),
    ]
    bar = ColorBar("magnitude", vmax, f"share of the positive relevance per pixel, mean of the maps ({result.method})")
    title = f"Clusters of explanations and what pasting their patch does: {_shortcut_verdict_text(result)}"
    names = [_cluster_caption(result, c) for c in shown]
    return {
        "shortcuts": contact_sheet(
            rows, title=title, columns=columns, names=names, bars=[bar], side=TILE_SIDE_PIXELS
        )
    }  # fmt: skip


def _shortcut_verdict_text(result: Shortcuts) -> str:
    if not result.shortcuts:
        return "no shortcut is claimed"
    names = dict.fromkeys(result.class_name(c.target) for c in result.shortcuts)
    return f"a shortcut to {', '.join(names)}"


def _cluster_caption(result: Shortcuts, c: ExplanationCluster) -> str:
    return f"{result.class_name(c.target)}: {len(c.members)} of {c.n_class}{', shortcut' if c.is_shortcut else ''}"


def cluster_tiles(result: Shortcuts, c: ExplanationCluster, vmax: float) -> list[Tile | None]:
    """Examples of a cluster, its mean map over their mean, and images before and after the patch is pasted."""
    members = image_tiles(c.examples[:N_CLUSTER_MEMBER_TILES])
    members += [None] * (N_CLUSTER_MEMBER_TILES - len(members))
    caption = f"patch {c.patch_share:.0%}\nborder {c.border_share:.0%}\ncorners {c.corner_share:.0%}"
    return [*members, Tile(_mean_map_image(c, vmax), caption), *_before_after_paste_tiles(result, c)]


def _mean_map_image(c: ExplanationCluster, vmax: float) -> Image.Image:
    """The mean map on the figure's scale, over the pale gray of the examples, with the patch outlined."""
    gray = colors.to_float64_array(c.examples.double().mean((0, 1)))[..., None]
    strength = (colors.to_float64_array(c.mean_map) / max(vmax, 1e-12)).clip(0, 1)[..., None]
    background = 255 * (1 - 0.35 * gray.clip(0, 1)).repeat(3, -1)
    rgb = background * (1 - strength) + colors.magnitude_to_rgb(c.mean_map, vmax) * strength
    return outline_rectangle(rgb.round().astype("uint8"), _patch_bounds(c.patch), PATCH_OUTLINE_COLOR, TILE_SIDE_PIXELS)


def _patch_bounds(patch: Rectangle) -> tuple[int, int, int, int]:
    return patch.top, patch.left, patch.top + patch.height, patch.left + patch.width


def _before_after_paste_tiles(result: Shortcuts, c: ExplanationCluster) -> list[Tile | None]:
    """Pairs of images before and after, with the predicted classes; the figures of the test below the first."""
    if c.test is None or c.before is None or c.after is None or c.answers is None:
        return [None] * (2 * N_BEFORE_AFTER_PASTE_PAIRS)
    tiles = list[Tile | None]()
    for i in range(min(N_BEFORE_AFTER_PASTE_PAIRS, len(c.before))):
        before, after = (
            f"{word} {result.class_name(int(k))}" for word, k in zip(("was", "is"), c.answers[i], strict=True)
        )
        if i == 0:
            after += f"\nof all: {c.test.with_patch.value:.0%}\nrandom: {c.test.with_random.value:.0%}"
        pasted = outline_rectangle(
            colors.image_to_rgb(c.after[i]), _patch_bounds(c.patch), PATCH_OUTLINE_COLOR, TILE_SIDE_PIXELS
        )
        tiles += [Tile(colors.image_to_rgb(c.before[i]), before), Tile(pasted, after)]
    return tiles


@figures.register(ErrorSlices)
def _error_slice_figures(result: ErrorSlices, box: Box | None = None, *, data: Any = None) -> Figures:
    """A row of examples per slice, and the error rates of slices and rest; candidates where nothing is significant."""
    shown = sorted(result.candidates, key=lambda s: s.p_value)[:MAX_ERROR_SLICE_ROWS]
    if not shown:
        return {}
    return {"errors": error_slice_rate_chart(result, shown), **_error_slice_sheet_figures(result, shown)}


def error_slice_rate_chart(result: ErrorSlices, shown: list[ErrorSlice]) -> Image.Image:
    """Held-out error rates of each group and of the rest."""
    rates = {
        "group": [s.errors.value if s.errors.n else 0.0 for s in shown],
        "the other examples": [s.rest.value if s.rest.n else 0.0 for s in shown],
    }
    names = [f"{_error_slice_caption(result, s)}: {_error_interval_text(s)}" for s in shown]
    return bar_chart(rates, names, title="Error rate on held-out examples", label="fraction wrong")


def _error_interval_text(s: ErrorSlice) -> str:
    low, high = s.errors.clopper_pearson_interval
    return f"{low:.0%} to {high:.0%}, p = {s.p_value:.1g}"


def _error_slice_caption(result: ErrorSlices, s: ErrorSlice) -> str:
    about = f"near {s.concept}" if s.concept else f"{s.label_fraction:.0%} label {result.class_name(s.label)}"
    return f"{len(s.members)} examples, {about}{'' if s.is_significant else ' (not significant)'}"


def _error_slice_sheet_figures(result: ErrorSlices, shown: list[ErrorSlice]) -> Figures:
    """The most typical examples of each group; nothing where they are no images."""
    rows = [error_slice_tiles(result, s) for s in shown if s.examples is not None]
    if not rows:
        return {}
    names = [_error_slice_caption(result, s) for s in shown]
    return {
        "slices": contact_sheet(rows, title="Groups of examples with more errors", names=names, side=TILE_SIDE_PIXELS)
    }


def error_slice_tiles(result: ErrorSlices, s: ErrorSlice) -> list[Tile | None]:
    """The most typical examples of a group, with label and predicted class."""
    if s.examples is None:
        return []
    captions = [_label_and_prediction_caption(result, *pair) for pair in s.answers[:N_ERROR_SLICE_TILES].tolist()]
    return image_tiles(s.examples[:N_ERROR_SLICE_TILES], captions)


def _label_and_prediction_caption(result: ErrorSlices, label: int, answer: int) -> str:
    name = result.class_name(label)
    return f"{name}, right" if label == answer else f"{name}, as {result.class_name(answer)}"


@figures.register(Prototypes)
def _prototype_figures(result: Prototypes, box: Box | None = None, *, data: Any = None) -> Figures:
    """Two rows per class: prototypes and criticisms; without images, how well they represent each class."""
    shown = [g for g in result.groups if g.examples is not None][:MAX_PROTOTYPE_CLASS_ROWS]
    if not shown:
        return {"prototypes": _prototype_mmd_chart(result)}
    rows, names = list[list[Tile | None]](), list[str]()
    for g in shown:
        parts = {"prototypes": _prototype_images(g), "criticisms": _prototype_images(g, criticisms=True)}
        for word, images in parts.items():
            if len(images):
                rows.append(image_tiles(images[:N_TILES_PER_ROW]))
                names.append(f"{class_name(g.target, result.classes, box)}: {word}")
    title = f"Examples that represent each class in {result.layer}, and those that they leave out"
    return {"prototypes": contact_sheet(rows, title=title, names=names, side=TILE_SIDE_PIXELS)}


def _prototype_images(group: ClassPrototypes, criticisms: bool = False) -> Tensor:
    images, n = group.examples, len(group.prototypes)
    if images is None:
        return torch.empty(0)
    return images[n:] if criticisms else images[:n]


def _prototype_mmd_chart(result: Prototypes) -> Image.Image:
    shown = result.groups[:MAX_PROTOTYPE_CLASS_ROWS]
    values = {"prototypes": [g.mmd2 for g in shown], "random examples": [float(g.random_mmd2.mean()) for g in shown]}
    names = [result.class_name(g) for g in shown]
    return bar_chart(values, names, title="How far from all examples of the class", label="squared MMD")
