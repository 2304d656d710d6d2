"""How often verdicts are right: shares with intervals, and how far each figure parts right maps from wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unboxed.engine.proportion import Proportion

Record = dict[str, Any]
PASS, FAIL = "pass", "fail"  # the grades that decide; any other is not decided
BOOTSTRAP, SEED = 1000, 0


def summary(pairs: list[Record]) -> dict[str, Any]:
    """Sensitivity, specificity and the share decided, per split and over all."""
    judged = [r for r in pairs if "grade" in r]
    splits = {"all": judged} | {s: [r for r in judged if r["split"] == s] for s in ("tuning", "held out")}
    return {name: _summary(rows) for name, rows in splits.items() if rows}


def _summary(rows: list[Record]) -> dict[str, Any]:
    real = [r for r in rows if not r["nonsense"]]
    all_nonsense = [r for r in rows if r["nonsense"]]
    nonsense = [r for r in all_nonsense if r["truth"] == "wrong"]
    right, wrong = ([r for r in real if r["truth"] == t] for t in ("right", "wrong"))
    return {
        "models": len({r["model"] for r in rows}),
        "methods": {"right": len(right), "wrong": len(wrong), "undetermined": len(real) - len(right) - len(wrong)},
        "nonsense": {"wrong": len(nonsense), "undetermined": len(all_nonsense) - len(nonsense)},
        "sensitivity": proportion(_decided(right), lambda r: r["grade"] == PASS),
        "specificity": proportion(_decided(wrong + nonsense), lambda r: r["grade"] == FAIL),
        "specificity_methods": proportion(_decided(wrong), lambda r: r["grade"] == FAIL),
        "specificity_nonsense": proportion(_decided(nonsense), lambda r: r["grade"] == FAIL),
        "decided": proportion(right + wrong + nonsense, _is_decided),
        "decided_right": proportion(right, _is_decided),
        "decided_wrong": proportion(wrong + nonsense, _is_decided),
        "right_that_pass": proportion(right, lambda r: r["grade"] == PASS),
        "wrong_that_pass": proportion(wrong + nonsense, lambda r: r["grade"] == PASS),
        "nonsense_that_passes": proportion(all_nonsense, lambda r: r["grade"] == PASS),
        "right_among_passes": proportion([r for r in right + wrong + nonsense if r["grade"] == PASS], _is_right),
        "grades": {
            kind: {g: sum(r["grade"] == g for r in group) for g in sorted({r["grade"] for r in group})}
            for kind, group in (("right", right), ("wrong", wrong), ("nonsense", nonsense))
        },
    }


def _is_decided(r: Record) -> bool:
    return r["grade"] in (PASS, FAIL)


def _is_right(r: Record) -> bool:
    return bool(r["truth"] == "right")


def _decided(rows: list[Record]) -> list[Record]:
    return [r for r in rows if _is_decided(r)]


def proportion(rows: list[Record], holds: Callable[[Record], bool]) -> dict[str, Any] | None:
    """The share of rows, its Wilson interval, and one by a bootstrap over models: pairs of one model are alike."""
    if not rows:
        return None
    count = sum(map(holds, rows))
    low, high = Proportion(count, len(rows)).wilson_interval
    return {
        "share": round(count / len(rows), 4),
        "count": count,
        "of": len(rows),
        "wilson": [round(low, 4), round(high, 4)],
        "over_models": _bootstrap(rows, holds),
    }


def _bootstrap(rows: list[Record], holds: Callable[[Record], bool]) -> list[float]:
    names = sorted({r["model"] for r in rows})
    table = np.array(
        [[sum(holds(r) for r in rows if r["model"] == m), sum(r["model"] == m for r in rows)] for m in names]
    )
    drawn = table[np.random.default_rng(SEED).integers(0, len(names), (BOOTSTRAP, len(names)))].sum(1)  # (B, 2)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return [round(float(low), 4), round(float(high), 4)]


def auc_by_figure(pairs: list[Record]) -> dict[str, dict[str, float]]:
    """For each figure of the verdict the area under its ROC curve, per split: .5 does not part right from wrong.

    Below .5 small values speak for right. Where a figure is missing the pair is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for split in ("tuning", "held out"):
        rows = [r for r in pairs if r["split"] == split and "figures" in r and r["truth"] != "undetermined"]
        for name in sorted({k for r in rows for k in r["figures"]}):
            values = [(_number(r["figures"].get(name)), _is_right(r)) for r in rows]
            right, wrong = (np.array([v for v, t in values if t == truth and v is not None]) for truth in (True, False))
            if len(right) and len(wrong):
                found.setdefault(name, {})[split] = round(_auc(right, wrong), 3)
    return found


def _number(value: Any) -> float | None:
    """A figure's number: of a mapping its value or mean, of three numbers (an interval and its center) the middle."""
    if isinstance(value, dict):
        return next((_number(value[k]) for k in ("value", "mean", "estimate") if k in value), None)
    if isinstance(value, list):
        numbers = sorted(n for n in map(_number, value) if n is not None)
        return numbers[1] if len(numbers) == 3 else None
    return float(value) if isinstance(value, (int, float)) and value == value else None


def _auc(right: np.ndarray, wrong: np.ndarray) -> float:
    difference = right[:, None] - wrong[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
