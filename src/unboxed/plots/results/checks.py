"""The figures of checks: similarities of maps, scores while pixels are removed, verdicts, planted shortcuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from ...checks import (
    ConstantModel,
    EdgeSimilarity,
    Infidelity,
    LabelRandomization,
    MapSimilarity,
    PerturbationCurve,
    PlantedDataset,
    RandomInput,
    Randomization,
    Road,
    SensitivityN,
    ShortcutReport,
    Verdict,
)
from ...checks.influence_evidence import InfluenceEvidence
from ...checks.verdict import TestOutcome, VerdictEvidence
from ..charts import bar_chart, interval_chart, line_chart
from ..draw import map_to_rgb_and_range_text
from ..figures import Figures, figures
from ..sheet import Tile, contact_sheet
from ..shortcut import shortcut_images, shortcut_maps
from ..text_map import TextWithValues, text_sheet
from .common import MAX_EXAMPLES_PER_FIGURE, as_images_or_none, image_tiles, numbered_names

if TYPE_CHECKING:
    from ...box import Box

SIMILARITY_NAME_BY_KIND = {
    "signed": "rank correlation", "absolute": "rank correlation of magnitudes", "ssim": "SSIM of magnitudes",
    "hog": "correlation of HOG features",
}  # fmt: skip
SIMILARITY_AXIS_LABEL = "similarity (1: the same map)"
MAX_TEXTS_IN_FIGURE = 3  # each with the maps of the controls
MAX_EXAMPLES_WITH_SEPARATE_LINE = 8  # examples whose curves are drawn beside the mean


@figures.register(MapSimilarity)
def _similarity_figures(result: MapSimilarity, box: Box | None = None, *, data: Any = None) -> Figures:
    return {"similarity": _similarity_bar_chart({"": result}, "Similarity of maps")}


@figures.register(Randomization)
def _randomization_figures(result: Randomization, box: Box | None = None, *, data: Any = None) -> Figures:
    """The similarities layer by layer, averaged over the examples; and the maps, where they were kept."""
    lines = {
        words: (range(len(result.layers)), getattr(result, name).nanmean(1))
        for name, words in SIMILARITY_NAME_BY_KIND.items()
    }
    title = f"Randomization of the layers, {result.mode}"
    chart = line_chart(lines, title=title, y_label=SIMILARITY_AXIS_LABEL, y_range=(-0.2, 1), ticks=result.layers)
    if result.maps is None or as_images_or_none(result.original) is None:
        return {"randomization": chart}
    rows = [result.original, *result.maps]
    grid = [_tiles_on_own_scale(m[:MAX_EXAMPLES_PER_FIGURE]) for m in rows]
    sheet = contact_sheet(
        grid, title=title, names=["the model", *(f"{name} randomized" for name in result.layers)], side=84
    )
    return {"randomization": chart, "maps": sheet}


@figures.register(LabelRandomization)
def _label_randomization_figures(result: LabelRandomization, box: Box | None = None, *, data: Any = None) -> Figures:
    names = ["true labels", "random labels"]
    bars = _similarity_bar_chart({"": result}, "Maps of models with true and with random labels")
    return {"similarity": bars, **_map_sheet_figures(names, [result.true_maps, result.random_maps])}


@figures.register(RandomInput)
def _random_input_figures(result: RandomInput, box: Box | None = None, *, data: Any = None) -> Figures:
    both = {"shuffled pixels": result.shuffled, "noise": result.noise}
    return {"similarity": _similarity_bar_chart(both, "Maps of inputs without evidence, against those of the inputs")}


@figures.register(ConstantModel)
def _constant_model_figures(result: ConstantModel, box: Box | None = None, *, data: Any = None) -> Figures:
    """The spread of the maps where nothing can be explained (0 is right), and those maps."""
    spread = {"constant input": result.constant_input, "constant output": result.constant_output}
    names = numbered_names(min(len(result.constant_input), MAX_EXAMPLES_PER_FIGURE))
    chart = bar_chart({k: v[: len(names)] for k, v in spread.items()}, names, title="Maps of a constant model",
                      label="spread relative to the model's maps (0 is right)")  # fmt: skip
    return {
        "spread": chart,
        **_map_sheet_figures(list(spread), [result.maps_constant_input, result.maps_constant_output]),
    }


@figures.register(EdgeSimilarity)
def _edge_similarity_figures(result: EdgeSimilarity, box: Box | None = None, *, data: Any = None) -> Figures:
    """How similar the maps, and the plain gradient, are to the edges of the inputs."""
    both = {"map": result.map, "gradient": result.gradient}
    bars = _similarity_bar_chart(both, "Similarity to the edges of the input", ("absolute", "ssim", "hog"))
    return {
        "similarity": bars,
        "edges": contact_sheet([image_tiles(result.edges[:MAX_EXAMPLES_PER_FIGURE])], title="Edges (Sobel)", side=84),
    }


@figures.register(PerturbationCurve)
def _perturbation_curve_figures(result: PerturbationCurve, box: Box | None = None, *, data: Any = None) -> Figures:
    title = f"Mean area under the curve {float(result.auc.mean()):.3g}"
    label = "fraction of the pixels changed, most important first"
    return {"curve": _mean_score_chart(result.fractions, result.curve, title, label)}


@figures.register(Road)
def _road_figures(result: Road, box: Box | None = None, *, data: Any = None) -> Figures:
    """The score, and the accuracy where there are classes, while pixels are removed and imputed."""
    x_label = "fraction of the pixels removed"
    scores = _mean_score_chart(result.removed_fractions, result.scores, "Remove and debias (ROAD)", x_label)
    if result.correct is None:
        return {"scores": scores}
    lines = {"": (result.removed_fractions, result.accuracy)}
    chart = line_chart(lines, title="Remove and debias (ROAD)", x_label=x_label, y_label="accuracy", y_range=(0, 1))
    return {"accuracy": chart, "scores": scores}


@figures.register(SensitivityN)
def _sensitivity_figures(result: SensitivityN, box: Box | None = None, *, data: Any = None) -> Figures:
    lines = {"mean over examples": (result.sizes, result.mean)}
    chart = line_chart(
        lines, title="Sensitivity-n", x_label="pixels removed at once", y_label="correlation", y_range=(-1, 1)
    )
    return {"correlation": chart}


@figures.register(Infidelity)
def _infidelity_figures(result: Infidelity, box: Box | None = None, *, data: Any = None) -> Figures:
    rows = zip(result.infidelity.tolist(), result.standard_error.tolist(), strict=True)
    bars = {f"example {i} (± {e:.2g})": v for i, (v, e) in enumerate(rows)}
    return {
        "infidelity": bar_chart(
            bars, title="Infidelity (0 is best)", label="squared error, in squared units of the score"
        )
    }


@figures.register(Verdict)
def _verdict_figures(result: Verdict, box: Box | None = None, *, data: Any = None) -> Figures:
    """The interval of each test against its bound; maps beside those of the controls; the removal curves."""
    if not result.tests:
        return {}
    title = f"{result.method}: {result.badge} ({result.reason})"
    tests = {
        _test_outcome_text(test): _distance_from_bound_interval(test)
        for test in result.tests
        if test.value == test.value
    }  # without NaN
    label = "distance from the bound, in the unit of the figure (90% intervals): right of 0 passes"
    return {"tests": interval_chart(tests, title=title, label=label), **_verdict_evidence_figures(result.evidence)}


def _token_map_sheet(evidence: VerdictEvidence) -> Image.Image:
    """The first texts by the map, and by those of the controls; each text's own scale, which is its map's."""
    rows = {"map": evidence.maps, **evidence.control_maps}
    texts = []
    for i, tokens in enumerate(evidence.tokens[:MAX_TEXTS_IN_FIGURE]):
        special = (
            [True] * len(tokens) if evidence.removable is None else (~evidence.removable[i, : len(tokens)]).tolist()
        )
        own = evidence.maps[i, : len(tokens)].abs().max().clamp(min=1e-30)
        texts += [
            TextWithValues(tokens, (m[i, : len(tokens)] / own).tolist(), special, name) for name, m in rows.items()
        ]
    return text_sheet(texts, unit="of the text's largest value")


def _test_outcome_text(test: TestOutcome) -> str:
    bounds = "above" if test.passes_above else "below"
    return f"{test.name}: {test.value:.2f} [{test.low:.2f}, {test.high:.2f}], passes {bounds} {test.bound:g}"


def _distance_from_bound_interval(test: TestOutcome) -> tuple[float, float, float]:
    """The mean, the lower and the upper end of the distance from the bound, positive where the test passes."""
    if test.passes_above:
        return test.value - test.bound, test.low - test.bound, test.high - test.bound
    return test.bound - test.value, test.bound - test.high, test.bound - test.low


def _verdict_evidence_figures(evidence: VerdictEvidence | InfluenceEvidence | None) -> Figures:
    if evidence is None:
        return {}
    if isinstance(evidence, InfluenceEvidence):
        return {} if evidence.retraining is None else figures(evidence.retraining)
    curves = evidence.removal
    used = ~curves.gain.isnan().all(0)  # the fills that change the score
    if not used.any():
        return {}
    lines = {name: (curves.fractions[used].mean(0), scores[:, used].mean((0, 1))) for name, scores in
             (("most relevant first", curves.morf), ("least relevant first", curves.lerf))}  # fmt: skip
    chart = line_chart(
        lines, title="Removal", x_label="fraction removed", y_label="score, mean over examples and fills"
    )
    if evidence.tokens:
        return {"words": _token_map_sheet(evidence), "removal": chart}
    if as_images_or_none(evidence.x) is None or as_images_or_none(evidence.maps) is None:
        return {"removal": chart}
    rows = {"map": evidence.maps, **evidence.control_maps}
    grid = [
        image_tiles(evidence.x[:MAX_EXAMPLES_PER_FIGURE]),
        *(_tiles_on_own_scale(m[:MAX_EXAMPLES_PER_FIGURE]) for m in rows.values()),
    ]
    return {"maps": contact_sheet(grid, names=["input", *rows], side=84), "removal": chart}


@figures.register(ShortcutReport)
def _shortcut_figures(result: ShortcutReport, box: Box | None = None, *, data: Any = None) -> Figures:
    return {"maps": shortcut_maps(result), "images": shortcut_images(result)}


@figures.register(PlantedDataset)
def _planted_dataset_figures(result: PlantedDataset, box: Box | None = None, *, data: Any = None) -> Figures:
    """The first examples with a trigger and their labels."""
    rows = result.has_trigger.nonzero()[:MAX_EXAMPLES_PER_FIGURE, 0].tolist()
    captions = [
        f"label {int(result.labels[i])}\n{'poisoned' if result.is_poisoned[i] else 'own trigger'}" for i in rows
    ]
    return {"examples": contact_sheet([image_tiles(result.images[rows], captions)], side=112)}


def _similarity_bar_chart(
    results: Mapping[str, MapSimilarity], title: str, kinds: Sequence[str] = tuple(SIMILARITY_NAME_BY_KIND)
) -> Image.Image:
    names = [SIMILARITY_NAME_BY_KIND[kind] for kind in kinds]
    values = {name: [float(getattr(r, kind).nanmean()) for kind in kinds] for name, r in results.items()}
    return bar_chart(values, names, title=title, label=SIMILARITY_AXIS_LABEL)


def _mean_score_chart(x: Tensor, scores: Tensor, title: str, x_label: str) -> Image.Image:
    """The mean score (S,) of all examples; with few examples, each one's too."""
    lines = {"mean": (x, scores.mean(0))}
    if 1 < len(scores) <= MAX_EXAMPLES_WITH_SEPARATE_LINE:
        lines |= {f"example {i}": (x, row) for i, row in enumerate(scores)}
    return line_chart(lines, title=title, x_label=x_label, y_label="score")


def _map_sheet_figures(names: Sequence[str], rows: Sequence[Tensor]) -> Figures:
    if as_images_or_none(rows[0]) is None:
        return {}
    grid = [_tiles_on_own_scale(m[:MAX_EXAMPLES_PER_FIGURE]) for m in rows]
    return {"maps": contact_sheet(grid, names=names, side=84)}


def _tiles_on_own_scale(maps: Tensor) -> list[Tile | None]:
    images = as_images_or_none(maps)
    return [] if images is None else [Tile(*map_to_rgb_and_range_text(m)) for m in images]
