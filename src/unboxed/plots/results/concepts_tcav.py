"""The figures of concept vectors: scores beside those of random sets, the tested alignment, and the diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import scipy
import torch
from PIL import Image
from torch import Tensor

from ...concepts import ConceptScores, ConceptVectors, Diagnostics
from .. import colors
from ..charts import bar_chart, matrix_plot, null_band_chart
from ..figures import Figures, figures
from ..sheet import ColorBar, Tile, contact_sheet

if TYPE_CHECKING:
    from ...box import Box

QUANTILES = 0.05, 0.95
MAX_CONCEPTS = 8  # of a figure: those that are most significant
TILE_SIDE_PIXELS = 112


@figures.register(ConceptScores)
def _tcav_figures(result: ConceptScores, box: Box | None = None, *, data: Any = None) -> Figures:
    """Scores with intervals, the tested alignment; of several concepts their cosines, of images where vectors lie."""
    shown = _most_significant_concepts(result)
    images: dict[str, Any] = {
        "alignment": gradient_alignment_chart(result, shown),
        "scores": tcav_score_chart(result, shown),
    }
    if result.diagnostics is not None:
        if len(shown) > 1:
            images["entanglement"] = entanglement_chart(result, result.diagnostics, shown)
        if (sheet := spatial_dependence_sheet(result, result.diagnostics, shown)) is not None:
            images["spatial"] = sheet
    return images


def _most_significant_concepts(result: ConceptScores) -> list[int]:
    """The concepts that are drawn, in their order."""
    order = result.p_values.amin(1).argsort(stable=True)[:MAX_CONCEPTS]
    return sorted(order.tolist())


def gradient_alignment_chart(result: ConceptScores, shown: Sequence[int]) -> Image.Image:
    """The mean cosine of gradient and vector in each layer, on the band of random examples."""
    n = result.random_alignment.shape[2]
    reach = float(scipy.stats.t.ppf(1 - result.alpha / 2, n - 1))
    spread = reach * result.random_alignment.double().square().mean(2).sqrt()
    rows = {
        f"{result.concepts[c]}, {result.layers[k]}{_mark(result, c, k)}": (
            float(result.alignment[c, k]), -float(spread[c, k]), float(spread[c, k]),
        )
        for c in shown for k in range(len(result.layers))
    }  # fmt: skip
    band = f"{1 - result.alpha:.0%} of random examples; * significant, corrected; (*) with random weights, too"
    return null_band_chart(
        rows, title=f"How the score of {result.target} changes along each concept: {result.verdict}",
        label="mean cosine of gradient and concept vector", band_label=band,
    )  # fmt: skip


def _mark(result: ConceptScores, c: int, k: int) -> str:
    if not result.is_significant[c, k]:
        return ""
    is_unsure = result.twin_p_values is not None and not result.is_claimed[c, k]
    return " (*)" if is_unsure else " *"


def tcav_score_chart(result: ConceptScores, shown: Sequence[int]) -> Image.Image:
    """TCAV scores and those of random sets, as bars with the range over sets, and the smooth scores."""
    concept, random = result.scores[shown].double(), result.random_scores[shown].double()
    bars = {
        "concept": _flatten_to_array(concept.mean(2)),
        "concept, smooth": _flatten_to_array(result.smooth_scores[shown]),
        "random sets": _flatten_to_array(random.mean(2)),
    }  # fmt: skip
    intervals = {name: _ends(scores) for name, scores in (("concept", concept), ("random sets", random))}
    names = [
        f"{result.concepts[c]}, {layer}{_mark(result, c, k)}" for c in shown for k, layer in enumerate(result.layers)
    ]
    label = "share of examples whose score rises (lines: 5 to 95 % of the random sets)"
    title = f"TCAV scores of {result.target}"
    return bar_chart(bars, names, title=title, label=label, value_range=(0, 1.15), intervals=intervals)


def _ends(scores: Tensor) -> tuple[colors.Array, colors.Array]:
    """Low and high ends over the random sets, of scores (C, L, R), one after the other."""
    low, high = (_flatten_to_array(scores.quantile(q, 2)) for q in QUANTILES)
    return low, high


def _flatten_to_array(values: Tensor) -> colors.Array:
    """(C, L) values one after the other."""
    return colors.to_float64_array(values.flatten())


def entanglement_chart(result: ConceptScores, diagnostics: Diagnostics, shown: Sequence[int]) -> Image.Image:
    """Cosines of the concepts' vectors, in the layer with the most entangled pair."""
    cosines = diagnostics.entanglement[:, shown][:, :, shown]
    k = int(torch.triu(cosines.abs(), 1).amax((1, 2)).argmax())
    names = [result.concepts[c] for c in shown]
    title = f"Entanglement: cosines of the concepts' vectors in {result.layers[k]}"
    return matrix_plot(cosines[k], names, names, title=title, kind="signed", vmax=1.0)


def spatial_dependence_sheet(
    result: ConceptScores, diagnostics: Diagnostics, shown: Sequence[int]
) -> Image.Image | None:
    """Where each concept's vector lies on the image; None where no layer has positions."""
    layers = [s for s in diagnostics.spatial if s is not None]
    if not layers:
        return None
    rows = [
        [_spatial_dependence_tile(s.maps[c], float(s.distance[c]), s.random_distance) for c in shown] for s in layers
    ]
    bar = ColorBar("magnitude", 1.0, "squared length; 1: its largest position")
    title = "Where on the image each vector differs from random ones"
    return contact_sheet(
        rows, title=title, columns=[result.concepts[c] for c in shown],
        names=[s.layer for s in layers], bars=[bar], side=TILE_SIDE_PIXELS,
    )  # fmt: skip


def _spatial_dependence_tile(shares: Tensor, distance: float, random: Tensor) -> Tile:
    largest = float(shares.max()) or 1.0
    return Tile(colors.magnitude_to_rgb(shares / largest, 1.0), f"{distance:.2f}\nrandom {float(random.mean()):.2f}")


@figures.register(ConceptVectors)
def _concept_vector_figures(result: ConceptVectors, box: Box | None = None, *, data: Any = None) -> Figures:
    """Held-out accuracy of each concept's classifiers, beside that of random sets."""
    names = [f"{name}, {layer}" for name in result.concepts for layer in result.layers]
    random = result.random_accuracy.double()
    bars = {"concept": _flatten_to_array(result.accuracy), "random sets": _flatten_to_array(random.mean(2))}
    title, label = f"Concepts told apart: {result.verdict}", "held-out accuracy (lines: 5 to 95 % of the random sets)"
    intervals = {"random sets": _ends(random)}
    return {"accuracy": bar_chart(bars, names, title=title, label=label, value_range=(0, 1.15), intervals=intervals)}
