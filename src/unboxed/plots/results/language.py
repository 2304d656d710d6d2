"""The figures of words: association tests on their null bands, bias before and after, maps of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...language import WEAT, Debiased, RemainingBias, WEATs, WordMap
from ..charts import bar_chart, null_band_chart
from ..figures import Figures, figures
from ..labels import labeled_scatter

if TYPE_CHECKING:
    from ...box import Box

NULL_BAND_AXIS_TEXT = "95 % of the partitions of the targets"


@figures.register(WEATs)
def _weats_figures(result: WEATs, box: Box | None = None, *, data: Any = None) -> Figures:
    """The effect size of each test, on the band of partitions of its targets."""
    return {"weat": _effect_size_chart(list(result), "Word association tests")} if len(result) else {}


@figures.register(WEAT)
def _weat_figures(result: WEAT, box: Box | None = None, *, data: Any = None) -> Figures:
    """The effect size on its null band."""
    return {"weat": _effect_size_chart([result], result.name or "Word association test")}


def _effect_size_chart(results: list[WEAT], title: str) -> Any:
    rows = {_weat_row_name(r): (r.effect_size, *r.null_band) for r in results}
    label = f"effect size (ddof={results[0].ddof}): right, the first targets are nearer to the first attributes"
    return null_band_chart(rows, title=title, label=label, band_label=NULL_BAND_AXIS_TEXT)


def _weat_row_name(result: WEAT) -> str:
    n_missing = sum(map(len, result.missing.values()))
    missing = f", {n_missing} missing" * bool(n_missing)
    name = f"{result.name}: " * bool(result.name)
    p = f"p = {result.p_value:.1g}"
    return f"{name}{' / '.join(result.targets)}\nby {' / '.join(result.attributes)} ({p}{missing})"


@figures.register(RemainingBias)
def _remaining_bias_figures(result: RemainingBias, box: Box | None = None, *, data: Any = None) -> Figures:
    return {"bias": _remaining_bias_chart(result, "What remains of the bias")}


@figures.register(Debiased)
def _debiased_figures(result: Debiased, box: Box | None = None, *, data: Any = None) -> Figures:
    """The bias before and after, and what it is by chance."""
    return {"bias": _remaining_bias_chart(result.bias, f"{result.method.capitalize()}: what remains of the bias")}


def _remaining_bias_chart(bias: RemainingBias, title: str) -> Any:
    names, before, after, chance = zip(*bias.rows(), strict=True)
    series = {"before": before, "after": after, "by chance": chance}
    return bar_chart(series, names, title=title, label=f"{bias.n_words:,} neutral words; more is more bias")


@figures.register(WordMap)
def _word_map_figures(result: WordMap, box: Box | None = None, *, data: Any = None) -> Figures:
    """The map, with the words that fit."""
    note = f"it keeps {result.neighbors_preserved:.0%} of the {result.k} nearest words ({result.chance:.0%} by chance)"
    title = f"t-SNE map of {result.name}" if result.name else "t-SNE map"
    return {"map": labeled_scatter(result.points, result.words, title=title, note=note)}
