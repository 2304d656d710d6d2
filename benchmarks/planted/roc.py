"""The ROC of verdicts: what share of right and of wrong maps would pass if all bounds were moved together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from unboxed.checks.verdict import ASSUMED_EXAMPLE_STD_BY_TEST, MIN_STD_FOR_MARGIN
from unboxed.checks.verdict_tests import VERDICT_TESTS

Record = dict[str, Any]
COLORS = {"tuning": "#8a8f98", "held out": "#2456c7"}


def weakest_margin(figures: Mapping[str, float | None]) -> float:
    """How far the weakest test's mean is on the good side of its bound, in standard deviations between examples."""
    margins = [
        (1 if t.passes_above else -1) * (value - t.bound) / max(ASSUMED_EXAMPLE_STD_BY_TEST[t.name], MIN_STD_FOR_MARGIN)
        for t in VERDICT_TESTS
        if (value := figures.get(t.name)) is not None and t.name != "map"
    ]
    return min(margins, default=-math.inf)


def roc(pairs: list[Record]) -> dict[str, dict[str, Any]]:
    """Per split: shares of wrong and right maps that pass at each margin, the area under them, and its interval."""
    return {split: _curve([r for r in pairs if r["split"] == split]) for split in COLORS}


def _curve(pairs: list[Record]) -> dict[str, Any]:
    judged = [r for r in pairs if "figures" in r and r["truth"] != "undetermined"]
    margin = np.array([weakest_margin(r["figures"]) for r in judged])
    is_right = np.array([r["truth"] == "right" for r in judged])
    model = np.array([r["model"] for r in judged])
    thresholds = np.sort(np.unique(np.append(margin, math.inf)))[::-1]
    shares = [[float((margin[group] >= t).mean()) for t in thresholds] for group in (~is_right, is_right)]
    return {
        "false_positive_rate": [round(h, 4) for h in shares[0]],
        "true_positive_rate": [round(h, 4) for h in shares[1]],
        "auc": round(_auc(margin, is_right), 4),
        "over_models": _auc_interval(margin, is_right, model),
    }


def _auc(margin: np.ndarray, is_right: np.ndarray) -> float:
    right, wrong = margin[is_right][:, None], margin[~is_right][None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean())


def _auc_interval(margin: np.ndarray, is_right: np.ndarray, model: np.ndarray, draws: int = 500) -> list[float]:
    """The 95 % interval of a bootstrap over models."""
    generator, names = np.random.default_rng(0), np.unique(model)
    rows = {name: np.flatnonzero(model == name) for name in names}
    areas = []
    for _ in range(draws):
        drawn = np.concatenate([rows[name] for name in generator.choice(names, len(names))])
        areas.append(_auc(margin[drawn], is_right[drawn]))
    return [round(float(h), 4) for h in np.quantile(areas, (0.025, 0.975))]


def draw(curves: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    """Both curves, and as points where the verdicts themselves stand: the shares of all pairs that pass."""
    figure, axes = plt.subplots(figsize=(5.2, 4.2), dpi=140, layout="constrained")
    for split, curve in curves.items():
        low, high = curve["over_models"]
        label = f"{split}: area {curve['auc']:.3f} [{low:.3f}, {high:.3f}]"
        x, y = curve["false_positive_rate"], curve["true_positive_rate"]
        axes.step(x, y, where="post", color=COLORS[split], label=label)
        passes = summary[split]["wrong_that_pass"]["share"], summary[split]["right_that_pass"]["share"]
        axes.plot(*passes, "o", color=COLORS[split], label=f"{split}: verdicts as they are")
    axes.plot([0, 1], [0, 1], ":", color="#b0b4bb", linewidth=1)
    axes.set(
        xlabel="wrong maps that pass", ylabel="right maps that pass", xlim=(-0.01, 1), ylim=(0, 1.01),
        title="All bounds moved together, on planted models",
    )  # fmt: skip
    axes.legend(loc="lower right", frameon=False, fontsize="small")
    figure.savefig(path)
    plt.close(figure)
