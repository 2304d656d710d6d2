"""The figures of probes: accuracy by layer with its controls, and what erasing the attribute costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...concepts import LayerProbe, Probing
from ...engine.intervals import Interval
from ..charts import line_chart
from ..figures import Figures, figures

if TYPE_CHECKING:
    from ...box import Box

MAX_CLASSES_LISTED_BY_NAME = 4
PROBE_NAME_BY_KIND = {"linear": "Linear", "mlp": "MLP"}
RANDOM_DRAWS_BAND_QUANTILES = 0.05, 0.95  # of the random draws, shaded


@figures.register(Probing)
def _probe_figures(result: Probing, box: Box | None = None, *, data: Any = None) -> Figures:
    """Accuracy by layer; where directions were erased, the change of the outputs by layer, too."""
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
    controlled = _interval_ends_per_layer(layers, lambda p: p.probe.control)
    bands = {
        "probe": _interval_ends_per_layer(layers, lambda p: p.probe.accuracy),
        f"control ({result.types})": controlled,
    }
    return line_chart(
        lines,
        bands=bands,
        title=f"{PROBE_NAME_BY_KIND[result.kind]} probes of {class_names_or_count_text(result)}: {result.verdict}",
        y_label="accuracy on held-out examples",
        y_range=(0, 1),
        ticks=[p.layer for p in layers],
    )


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
