"""The figures of probes: accuracy by layer with its controls, and what erasing the attribute costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...concepts import LayerProbe, Probing
from ...engine.intervals import Interval
from ...language import SentenceProbing
from ..charts import bar_chart, line_chart
from ..figures import Figures, figures

if TYPE_CHECKING:
    from ...box import Box

MAX_CLASSES_LISTED_BY_NAME = 4
PROBE_NAME_BY_KIND = {"linear": "Linear", "mlp": "MLP"}
RANDOM_DRAWS_BAND_QUANTILES = 0.05, 0.95  # of the random draws, shaded


@figures.register(Probing)
def _probe_figures(result: Probing, box: Box | None = None, *, data: Any = None) -> Figures:
    """Accuracy by layer; where directions were erased, the change of the outputs by layer, too."""
    if isinstance(result, SentenceProbing) and len(result.layers) == 1:
        images = {"accuracy": _one_vector_chart(result)}
    else:
        images = {"accuracy": probe_accuracy_chart(result)}
    if any(p.erasure is not None for p in result.layers):
        images["erased"] = erasure_effect_chart(result)
    return images


def probe_accuracy_chart(result: Probing) -> Any:
    """The probe, the control task and the most frequent class by layer, with intervals at 90 %."""
    at, layers = range(len(result.layers)), result.layers
    lines = {
        "probe": (at, [p.probe.accuracy.mean for p in layers]),
        f"control ({result.types})": (at, [p.probe.control.mean for p in layers]),
        "most frequent class": (at, [p.probe.majority for p in layers]),
    }
    if isinstance(result, SentenceProbing):
        lines["bag of words"] = (at, [result.bag_of_words.accuracy.mean] * len(layers))
    controlled = _interval_ends_per_layer(layers, lambda p: p.probe.control)
    bands = {
        "probe": _interval_ends_per_layer(layers, lambda p: p.probe.accuracy),
        f"control ({result.types})": controlled,
    }
    return line_chart(
        lines,
        bands=bands,
        title=_accuracy_title(result),
        y_label="accuracy on held-out examples (90% intervals)",
        y_range=(0, 1),
        ticks=[p.layer for p in layers],
    )


def _accuracy_title(result: Probing) -> str:
    subject = f"{result.task} by {result.encoder}" if isinstance(result, SentenceProbing) else None
    return (
        f"{PROBE_NAME_BY_KIND[result.kind]} probes of {subject or class_names_or_count_text(result)}: {result.verdict}"
    )


def _one_vector_chart(result: SentenceProbing) -> Any:
    """The probe of an encoder without layers beside the bag of words, the control task and the most frequent class."""
    read, words = result.layers[0].probe, result.bag_of_words.accuracy
    bars = {
        result.layers[0].layer: read.accuracy,
        "bag of words": words,
        f"control ({result.types})": read.control,
        "most frequent class": Interval(read.majority, read.majority, read.majority, read.accuracy.n_examples, 1),
    }
    ends = [i.low for i in bars.values()], [i.high for i in bars.values()]
    means = [i.mean for i in bars.values()]
    return bar_chart(
        {"accuracy": means}, list(bars), title=_accuracy_title(result),
        label="accuracy on held-out examples (90% intervals)", intervals={"accuracy": ends}, value_range=(0, 1.1),
    )  # fmt: skip


def _interval_ends_per_layer(
    layers: Sequence[LayerProbe], interval: Callable[[LayerProbe], Interval]
) -> tuple[list[float], list[float]]:
    intervals = [interval(p) for p in layers]
    return [i.low for i in intervals], [i.high for i in intervals]


def erasure_effect_chart(result: Probing) -> Any:
    """The change of the outputs by layer: the attribute erased, random directions, the model's own outputs."""
    tested = [(p, p.erasure) for p in result.layers if p.erasure is not None]
    at = range(len(tested))
    random = [e.random_change.double().mean(0) for _, e in tested]  # (R,) each
    name = f"{random[0].numel()} sets of random directions (5 to 95 %)"
    lines = {
        "attribute erased": (at, [float(e.change.double().mean()) for _, e in tested]),
        name: (at, [float(r.mean()) for r in random]),
        "model's own outputs erased": (at, [float(e.own_change.double().mean()) for _, e in tested]),
    }
    low, high = ([float(r.quantile(q)) for r in random] for q in RANDOM_DRAWS_BAND_QUANTILES)
    title = f"Change of the outputs with {class_names_or_count_text(result)} erased"
    ticks = [f"{p.layer}: {p.verdict}" for p, _ in tested]
    return line_chart(lines, bands={name: (low, high)}, title=title, y_label=result.unit, ticks=ticks)


def class_names_or_count_text(result: Probing) -> str:
    """The classes' names, or how many there are."""
    names = result.names
    return " / ".join(names) if len(names) <= MAX_CLASSES_LISTED_BY_NAME else f"{len(names)} classes"
