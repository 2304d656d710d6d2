"""The figures of words: association tests on their null bands, bias before and after, maps of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...language import WEAT, ContinuationAttribution, Debiased, RemainingBias, WEATs, WordMap
from .. import colors
from ..charts import bar_chart, matrix_plot, null_band_chart
from ..figures import Figures, figures
from ..labels import labeled_scatter

if TYPE_CHECKING:
    from ...box import Box

MAX_DRAWN_CONTINUATIONS = 6  # texts whose continuations are drawn
NULL_BAND_LABEL = "95 % of the partitions of the targets"


@figures.register(WEATs)
def _weats_figures(result: WEATs, box: Box | None = None, *, data: Any = None) -> Figures:
    """The effect size of each test, on the band of partitions of its targets."""
    return {"weat": _effect_size_chart(list(result), "Word association tests")} if len(result) else {}


@figures.register(WEAT)
def _weat_figures(result: WEAT, box: Box | None = None, *, data: Any = None) -> Figures:
    """The effect size on its null band."""
    return {"weat": _effect_size_chart([result], result.name or "Word association test")}


def _effect_size_chart(results: list[WEAT], title: str) -> Any:
    rows = {_chart_row_name(r): (r.effect_size, *r.null_band) for r in results}
    label = f"effect size (ddof={results[0].ddof}): right, the first targets are nearer to the first attributes"
    return null_band_chart(rows, title=title, label=label, band_label=NULL_BAND_LABEL)


def _chart_row_name(result: WEAT) -> str:
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
    """The bias before and after, and what it is for random directions and sides."""
    return {"bias": _remaining_bias_chart(result.bias, f"{result.method.capitalize()}: what remains of the bias")}


def _remaining_bias_chart(bias: RemainingBias, title: str) -> Any:
    names, before, after, chance = zip(*bias.rows(), strict=True)
    series = {"before": before, "after": after, "random": chance}
    return bar_chart(series, names, title=title, label=f"{bias.n_words:,} neutral words; more is more bias")


@figures.register(WordMap)
def _word_map_figures(result: WordMap, box: Box | None = None, *, data: Any = None) -> Figures:
    """The map, with the words that fit."""
    note = f"it keeps {result.neighbors_preserved:.0%} of the {result.k} nearest words ({result.chance:.0%} by chance)"
    title = f"t-SNE map of {result.name}" if result.name else "t-SNE map"
    return {"map": labeled_scatter(result.points, result.words, title=title, note=note)}


@figures.register(ContinuationAttribution)
def _continuation_figures(result: ContinuationAttribution, box: Box | None = None, *, data: Any = None) -> Figures:
    """A matrix for each text: its tokens across, those of the continuation with their log-probabilities down."""
    drawn: dict[str, Any] = {}
    vmax = colors.max_magnitude(result.map.masked_fill(result.special[:, None], 0))
    for i, (tokens, words) in enumerate(zip(result.tokens[:MAX_DRAWN_CONTINUATIONS], result.words, strict=False)):
        values = result.map[i, : len(words), : len(tokens)].masked_fill(result.special[i, : len(tokens)], 0)
        rows = [f"{word}  {float(p):.2f}" for word, p in zip(words, result.logprobs[i], strict=False)]
        drawn[f"continuation {i}"] = matrix_plot(
            values, rows, tokens, ("next token", "tokens before"), kind="signed", vmax=vmax,
            title=f"{result.method} of the continuation", unit="to its log-probability",
        )  # fmt: skip
    return drawn
