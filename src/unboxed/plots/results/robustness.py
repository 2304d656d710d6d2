"""The figures of robustness evaluations: reliability diagrams, corruptions, certified radii, robust accuracy curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...robustness import Calibration, Corruptions, OutputCorruptions, OutputRobustness, Robustness, Smoothed
from ...robustness.output_metrics import ERROR_METRICS
from ..charts import bar_chart, line_chart, matrix_plot
from ..figures import Figures, figures
from .common import labels_of_data_pair

if TYPE_CHECKING:
    from ...box import Box

N_CERTIFIED_CURVE_RADII = 60  # points of a curve over radii


@figures.register(Calibration)
def _calibration_figures(result: Calibration, box: Box | None = None, *, data: Any = None) -> Figures:
    """The reliability diagram, before and after temperature scaling; with the number of examples of each bin."""
    lines, counts = {}, {}
    for name, r in (("as it is", result.uncalibrated), (f"temperature {result.temperature:.2g}", result.scaled)):
        filled = r.bin_counts > 0
        lines[line := f"{name}: ECE {r.ece:.1%}"] = (r.bin_confidence[filled], r.bin_accuracy[filled])
        if r is result.uncalibrated:
            counts[line] = [f"{n:,}" for n in r.bin_counts[filled].tolist()]
    answers = "examples" if result.error_position is None else "answers"
    x_label = f"confidence (numbers: {answers} of each bin, as it is)"
    chart = line_chart(
        lines, title="Reliability", x_label=x_label, y_label="accuracy", y_range=(0, 1), diagonal=True,
        point_texts=counts,
    )  # fmt: skip
    return {"reliability": chart}


@figures.register(Corruptions)
def _corruption_figures(result: Corruptions, box: Box | None = None, *, data: Any = None) -> Figures:
    title = f"Accuracy under corruptions ({result.clean_accuracy:.1%} without)"
    columns = [f"severity {s}" for s in result.severities]
    return {"accuracy": matrix_plot(result.accuracy, result.kinds, columns, title=title, unit="accuracy", vmax=1)}


@figures.register(OutputCorruptions)
def _output_corruption_figures(result: OutputCorruptions, box: Box | None = None, *, data: Any = None) -> Figures:
    columns = [f"severity {s}" for s in result.severities]
    return {
        metric: matrix_plot(
            values, result.kinds, columns, title=f"{metric} under corruptions ({result.clean[metric]:.3g} without)",
            unit=metric, vmax=None if metric in ERROR_METRICS else 1,
        )
        for metric, values in result.metrics.items()
    }  # fmt: skip


@figures.register(Smoothed)
def _smoothed_figures(result: Smoothed, box: Box | None = None, *, data: Any = None) -> Figures:
    """Certified accuracy over radii where the labels are known, else the share of examples that have a certificate."""
    largest = float(result.radius.max()) if len(result.radius) else 0.0
    radii = [largest * i / (N_CERTIFIED_CURVE_RADII - 1) for i in range(N_CERTIFIED_CURVE_RADII)]
    y = labels_of_data_pair(data, len(result.classes))
    if y is None:
        y_label, values = "share certified", [float((result.radius >= r).double().mean()) for r in radii]
    else:
        y_label, values = "certified accuracy", result.certified_accuracy(y, radii).tolist()
    title = f"Randomized smoothing, sigma {result.sigma:g}"
    return {
        "certified": line_chart(
            {"": (radii, values)}, title=title, x_label="L2 radius", y_label=y_label, y_range=(0, 1)
        )
    }


@figures.register(Robustness)
def _robustness_figures(result: Robustness, box: Box | None = None, *, data: Any = None) -> Figures:
    """Robust accuracy over eps, per attack and for the worst of all; and per class at the largest eps."""
    eps = [0.0, *result.eps]
    attacks = {"all attacks": None, **({name: name for name in result.attacks} if len(result.all_attacks) > 1 else {})}
    lines = {
        name: (eps, [result.clean_accuracy.value, *(result.robust_accuracy(e, attack).value for e in result.eps)])
        for name, attack in attacks.items()
    }
    chart = line_chart(
        lines, title="Robust accuracy", x_label=f"eps ({result.norm})", y_label="robust accuracy", y_range=(0, 1)
    )
    by_class = result.accuracy_by_class(result.eps[-1])
    bars = {kind: [pair[i].value for pair in by_class.values()] for i, kind in enumerate(("clean", "robust"))}
    title = f"Accuracy by class at eps {result.eps[-1]:g}"
    classes = bar_chart(bars, list(by_class), title=title, label="accuracy", value_range=(0, 1))
    return {"robust accuracy": chart, "by class": classes}


@figures.register(OutputRobustness)
def _output_robustness_figures(result: OutputRobustness, box: Box | None = None, *, data: Any = None) -> Figures:
    """Each metric over eps, per attack and for the worst of all."""
    names = list(result.attacked) if len(result.attacks) > 1 else list(result.attacks)
    return {
        metric: line_chart(
            {
                name: ([0.0, *result.eps], [clean.mean, *(i.mean for i in result.attacked[name][metric])])
                for name in names
            },
            title=f"{metric} under attack",
            x_label=f"eps ({result.norm})",
            y_label=metric,
            y_range=None if metric in ERROR_METRICS else (0, 1),
        )
        for metric, clean in result.clean.items()
    }
