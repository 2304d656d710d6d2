"""How good other bounds would be: correct decisions on the tuning models, each bound moved by itself.

The score of a set of bounds is the share of right maps that pass plus the share of wrong maps that fail, less 1: what
is undecided counts against both. Held-out models take no part; `report` says what the bounds do there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unboxed.checks.verdict_tests import REQUIRED_TEST_NAMES, VERDICT_TESTS

Record = dict[str, Any]
Bounds = Mapping[str, float]
GRIDS = {
    "randomization": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "other class": (0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "constant model": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "edges": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "removal": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    "own example": (0.0, 0.01, 0.02, 0.03, 0.04, 0.05),
}
IN_USE: Bounds = {test.name: test.bound for test in VERDICT_TESTS}
PASSES_ABOVE = {test.name: test.passes_above for test in VERDICT_TESTS}
PLATEAU = 0.01  # scores so near to the best are as good: about three pairs


def grade(record: Record, bounds: Bounds) -> str:
    """The grade that a pair's intervals would have with these bounds."""
    intervals: dict[str, list[float]] = record.get("intervals", {})
    if any(_is_beyond(name, interval, bounds, good=False) for name, interval in intervals.items()):
        return "fail"
    all_pass = all(_is_beyond(name, interval, bounds, good=True) for name, interval in intervals.items())
    return "pass" if all_pass and intervals.keys() >= set(REQUIRED_TEST_NAMES) else "inconclusive"


def _is_beyond(name: str, interval: list[float], bounds: Bounds, *, good: bool) -> bool:
    """Whether the whole interval lies on the good side of the bound, or on the bad one."""
    low, high = interval
    return low > bounds[name] if PASSES_ABOVE[name] == good else high < bounds[name]


def score(pairs: list[Record], bounds: Bounds) -> float:
    """The share of right maps that pass, plus that of wrong maps that fail, less 1."""
    correct: dict[str, list[bool]] = {"right": [], "wrong": []}
    for record in pairs:
        if "grade" in record and record["truth"] in correct:
            expected = {"right": "pass", "wrong": "fail"}[record["truth"]]
            correct[record["truth"]].append(grade(record, bounds) == expected)
    return round(float(np.mean(correct["right"]) + np.mean(correct["wrong"]) - 1), 4)


def report(pairs: list[Record]) -> dict[str, Any]:
    """For each test the bound in use, and those as good as the best on the tuning models; scores on both halves."""
    halves = {split: [r for r in pairs if r["split"] == split] for split in ("tuning", "held out")}
    tests = {name: _plateau(halves["tuning"], name) for name in GRIDS}
    return {"score": {split: score(rows, IN_USE) for split, rows in halves.items()}, "tests": tests}


def _plateau(tuning: list[Record], name: str) -> dict[str, Any]:
    scores = {bound: score(tuning, {**IN_USE, name: bound}) for bound in GRIDS[name]}
    best = max(scores.values())
    as_good = [bound for bound, s in scores.items() if s >= best - PLATEAU]
    return {"in use": IN_USE[name], "as good as the best": as_good, "best score": best}
