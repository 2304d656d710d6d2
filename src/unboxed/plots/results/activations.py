"""The figures of what a model sees: activations, units, neighbors, embeddings, interventions and similarities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ...activations import (
    CKA,
    Ablation,
    Filters,
    LayerMaps,
    Neighbors,
    Patching,
    Projections,
    ReceptiveField,
    RewriteResult,
    TopExamples,
    TsneMaps,
    UnitStatistics,
)
from ...engine.read.activations import Activations
from .. import colors, draw
from ..charts import bar_chart, matrix_plot
from ..compare import cka_plot
from ..embedding import tsne_scatter_sheet
from ..figures import Figures, figures
from ..sheet import ColorBar, Tile, contact_sheet
from ..units import PlottedUnit, histogram_image, units_sheet, value_range_text
from .common import (
    MAX_EXAMPLES_PER_FIGURE,
    as_images_or_none,
    class_name,
    fetch_images_at,
    image_tiles,
    labels_of_data_pair,
    numbered_names,
    shown_of_total_suffix,
)

if TYPE_CHECKING:
    from ...box import Box

MAX_LAYERS_PER_FIGURE = 24
MAX_UNITS_PER_FIGURE = 12  # units of a layer that a figure shows
MAX_MATRIX_ROWS_AND_COLUMNS, MAX_CHART_BARS = 32, 16  # rows and columns of a matrix; bars of a chart
HISTOGRAMS_PER_ROW = 4
RECEPTIVE_FIELD_COLOR = (255, 176, 0)


def layer_maps_figures(results: Sequence[Any]) -> Figures:
    """Activation maps of several layers, a row per layer and a figure per example; empty for other results."""
    if not results or not all(isinstance(r, LayerMaps) for r in results):
        return {}
    n = min(len(results[0].outputs), MAX_EXAMPLES_PER_FIGURE)
    return {f"example {i}": draw.activations(results, i, title=f"Activations, example {i}") for i in range(n)}


@figures.register(LayerMaps)
def _single_layer_maps_figures(result: LayerMaps, box: Box | None = None, *, data: Any = None) -> Figures:
    return layer_maps_figures([result])


@figures.register(Activations)
def _activations_figures(result: Activations, box: Box | None = None, *, data: Any = None) -> Figures:
    """What each layer gives, a row per layer and a figure per example; without layers that have no row per example."""
    layers = {a: h for a, h in result.items() if h.ndim > 1 and not h.is_complex()}
    n = min(*(len(h) for h in layers.values()), MAX_EXAMPLES_PER_FIGURE) if layers else 0
    shown = dict(islice(layers.items(), MAX_LAYERS_PER_FIGURE))
    rest = f" (the first {len(shown)} of {len(layers)} layers)" if len(shown) < len(layers) else ""
    return {f"example {i}": draw.layer_sheet(shown, i, title=f"Activations, example {i}{rest}") for i in range(n)}


@figures.register(Filters)
def _filters_figures(result: Filters, box: Box | None = None, *, data: Any = None) -> Figures:
    shape = " × ".join(map(str, result.shape[1:]))
    title = f"Filters of {result.layer} ({result.type}): {len(result)} of {shape}"
    return {"filters": draw.filters(result.weights, title=title)}


@figures.register(Ablation)
def _ablation_figures(result: Ablation, box: Box | None = None, *, data: Any = None) -> Figures:
    """The units whose ablation changes the score most, averaged over the examples."""
    change = result.score_change.double().mean(0)
    strongest = change.abs().argsort(descending=True)[:MAX_CHART_BARS].tolist()
    values = {f"unit {int(result.units[i])}": float(change[i]) for i in strongest}
    title = f"Ablating single units of {result.layer}"
    return {"ablation": bar_chart(values, title=title, label="mean change of the score")}


@figures.register(CKA)
def _cka_figures(result: CKA, box: Box | None = None, *, data: Any = None) -> Figures:
    title = f"Similarity of layers (CKA), {result.n_examples} examples"
    return {"cka": cka_plot(result.cka, result.layers_a, result.layers_b, ("first model", "second model"), title=title)}


@figures.register(Neighbors)
def _neighbors_figures(result: Neighbors, box: Box | None = None, *, data: Any = None) -> Figures:
    """The nearest examples, the nearest first; without the data, their numbers and distances."""
    n, k = min(len(result.indices), MAX_EXAMPLES_PER_FIGURE), result.indices.shape[1]
    queries, places = numbered_names(n, "query"), [f"nearest {j + 1}" for j in range(k)]
    images = fetch_images_at(data, result.indices[:n], box)
    if images is None:
        table = matrix_plot(result.distances[:n], queries, places, title="Nearest neighbors", unit="distance")
        return {"neighbors": table}
    words = [
        f"example {i}\ndistance {d:.3g}"
        for i, d in zip(*(t[:n].flatten().tolist() for t in (result.indices, result.distances)), strict=True)
    ]
    tiles = image_tiles(images, words)
    rows = [tiles[i * k : (i + 1) * k] for i in range(n)]
    return {"neighbors": contact_sheet(rows, title="Nearest neighbors", columns=places, names=queries, side=84)}


@figures.register(Patching)
def _patching_figures(result: Patching, box: Box | None = None, *, data: Any = None) -> Figures:
    """The restored fraction of each layer; where only one was patched in parts, of each part."""
    if len(result.layers) == 1 and result.layers[0].restored_fraction.ndim > 1:
        values, what = (
            result.layers[0].restored_fraction.flatten(1)[:, :MAX_MATRIX_ROWS_AND_COLUMNS],
            f"part of {result.layers[0].path}",
        )
        columns = numbered_names(values.shape[1], "")
    else:
        values, what, columns = result.matrix, "layer", [layer.path for layer in result.layers]
    values = values[:MAX_MATRIX_ROWS_AND_COLUMNS]
    plot = matrix_plot(
        values, numbered_names(len(values)), columns, ("", what),
        title="Activation patching", kind="signed", unit="restored fraction of the score",
    )  # fmt: skip
    return {"patching": plot}


@figures.register(ReceptiveField)
def _receptive_field_figures(result: ReceptiveField, box: Box | None = None, *, data: Any = None) -> Figures:
    """How many positions see each pixel, with the field of the central position outlined."""
    bounds = result.bounds.reshape(-1, 4).cpu()
    shape = getattr(getattr(box, "inputs", None), "shape", ())
    height, width = tuple(shape)[-2:] if len(shape) == 3 else bounds[:, 2:].amax(0).tolist()
    n_positions = np.zeros((height, width))
    for top, left, bottom, right in bounds.tolist():
        n_positions[top:bottom, left:right] += 1
    center = result.bounds[tuple(s // 2 for s in result.bounds.shape[:-1])].tolist()
    image = draw.outline_rectangle(colors.magnitude_to_rgb(n_positions), center, RECEPTIVE_FIELD_COLOR, side=224)
    (h, w), (dy, dx) = result.size, result.stride
    caption = f"outlined: the central position sees {h} × {w} pixels" + (f"; stride {dy} × {dx}" if dy or dx else "")
    bar = ColorBar("magnitude", float(n_positions.max()) or 1.0, "positions that see a pixel")
    return {
        "receptive field": contact_sheet([[Tile(image, caption)]], title=result.path, bars=[bar], side=max(image.size))
    }


@figures.register(Projections)
def _back_projection_figures(result: Projections, box: Box | None = None, *, data: Any = None) -> Figures:
    """What raises each unit in each example, with the unit's receptive field outlined; below the examples if given."""
    maps = as_images_or_none(result.map[:MAX_EXAMPLES_PER_FIGURE])
    if maps is None:
        return {}
    vmax = draw.shared_vmax(maps)
    rows = zip(maps, result.unit.tolist(), result.value.tolist(), result.bounds.tolist(), strict=False)
    tiles: list[Tile | None] = []
    for m, unit, value, bounds in rows:
        rgb = draw.signed_map_to_rgb(m, vmax)
        image = draw.outline_rectangle(rgb, bounds, RECEPTIVE_FIELD_COLOR, side=112) if bounds else rgb
        tiles.append(Tile(image, f"unit {unit}\nvalue {value:.3g}"))
    x = fetch_images_at(data, range(len(tiles)), box)
    grid = [tiles] if x is None else [image_tiles(x), tiles]
    names = ["projection"] if x is None else ["input", "projection"]
    bar = ColorBar("signed", vmax, "red raises the unit's activation")
    return {
        "projections": contact_sheet(
            grid, title=f"Units of {result.path} ({result.rule})", names=names, bars=[bar], side=112
        )
    }


@figures.register(RewriteResult)
def _rewrite_figures(result: RewriteResult, box: Box | None = None, *, data: Any = None) -> Figures:
    change = result.logits_change[:MAX_MATRIX_ROWS_AND_COLUMNS, :MAX_MATRIX_ROWS_AND_COLUMNS]
    classes = [class_name(k, result.classes, box) for k in range(change.shape[1])]
    plot = matrix_plot(
        change, numbered_names(len(change)), classes, title="Change of the logits", kind="signed", unit="logit"
    )
    return {"logits": plot}


@figures.register(UnitStatistics)
def _statistics_figures(result: UnitStatistics, box: Box | None = None, *, data: Any = None) -> Figures:
    """The histograms of the first units."""
    units = [_make_plotted_unit(result, k) for k in range(min(len(result.mean), MAX_UNITS_PER_FIGURE))]
    tiles: list[Tile | None] = [
        Tile(
            histogram_image(u),
            f"{u.name}\n{value_range_text(u)}\nactive in {float(result.active_fraction[u.number]):.0%}",
        )
        for u in units
    ]
    grid = [tiles[i : i + HISTOGRAMS_PER_ROW] for i in range(0, len(tiles), HISTOGRAMS_PER_ROW)]
    counted = {"positions": "every position", "max": "largest value per example", "mean": "mean value per example"}
    shown = shown_of_total_suffix(len(units), len(result.mean), "unit")
    title = f"Values of the units of {result.path}{shown}: {counted[result.histogram_of]}"
    return {"histograms": contact_sheet(grid, title=title, side=150)}


def _make_plotted_unit(
    statistics: UnitStatistics, k: int, patches: Any = None, values: Sequence[float] = ()
) -> PlottedUnit:
    counts, edges = statistics.counts[k].cpu().numpy(), statistics.edges[k].double().cpu().numpy()
    patches = np.zeros((0, 1, 1, 1)) if patches is None else patches
    value_range = statistics.histogram_range[k].tolist()
    return PlottedUnit(k, patches, None, values, counts, edges, value_range, bool(statistics.dead[k]))


@figures.register(TopExamples)
def _top_examples_figures(result: TopExamples, box: Box | None = None, *, data: Any = None) -> Figures:
    """The examples with the largest activations of the first units; without data, the histograms of the values."""
    alive = [k for k in range(len(result.value)) if not bool(result.dead[k])]
    units = alive[:MAX_UNITS_PER_FIGURE]
    if (data is None and not result.inputs) or not units:
        return figures(result.statistics, box)
    examples = result.fetch_examples(data, units, None if box is None else box.inputs)  # (U, k, ...)
    images = as_images_or_none(examples.flatten(0, 1))
    if images is None:
        return figures(result.statistics, box)
    patches = images.reshape(*examples.shape[:2], *images.shape[1:])
    shown = [
        _make_plotted_unit(result.statistics, k, colors.to_float64_array(p), result.value[k].tolist())
        for k, p in zip(units, patches, strict=True)
    ]
    title = f"Top examples of {result.path}{shown_of_total_suffix(len(units), len(alive), 'unit')}"
    return {"top examples": units_sheet(shown, title=title, patch_name="top examples")}


@figures.register(TsneMaps)
def _tsne_figures(result: TsneMaps, box: Box | None = None, *, data: Any = None) -> Figures:
    """The maps side by side, colored by class where the data have labels."""
    labels = labels_of_data_pair(data, len(result.layers[0].points)) if result.layers else None
    names = [class_name(k, (), box) for k in range(int(labels.max()) + 1)] if labels is not None else []
    return {"t-SNE": tsne_scatter_sheet(result, labels, names, title="t-SNE")}
