"""Bounds by a stated procedure: what the tuning models alone would choose, and what that does to the held-out ones.

Each test's bound in turn takes the value of its grid with the largest sum of two shares, right maps that pass and wrong
maps that do not, over the tuning models (Youden's J); of equal ones the middle. Repeated until no bound moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unboxed.checks.verdict_tests import ESSENTIAL, TESTS

Record = dict[str, Any]
Bounds = dict[str, float]
GRIDS = {
    "randomization": np.arange(0.5, 1.0, 0.05),
    "other class": np.arange(0.7, 1.0, 0.05),
    "constant model": np.arange(0.3, 1.0, 0.1),
    "edges": np.arange(0.5, 1.0, 0.05),
    "removal": np.arange(0.0, 0.31, 0.05),
    "own example": np.arange(0.0, 0.06, 0.01),
}
IN_USE: Bounds = {test.name: test.bound for test in TESTS}


def passes(record: Record, bounds: Bounds) -> bool:
    """Whether a pair would pass with these bounds: the whole interval of each test on the good side."""
    intervals = record.get("intervals", {})
    if not all(name in intervals for name in ESSENTIAL):
        return False
    sides = {test.name: test.passes_above for test in TESTS}
    return all(
        low > bounds[name] if sides[name] else high < bounds[name] or low == high == 0
        for name, (low, high) in intervals.items()
    )


def youden(pairs: list[Record], bounds: Bounds) -> float:
    """The share of right maps that pass, plus that of wrong ones that do not, less 1."""
    known = [r for r in pairs if r.get("truth") in ("right", "wrong") and "grade" in r]
    passed = {truth: [passes(r, bounds) for r in known if r["truth"] == truth] for truth in ("right", "wrong")}
    return float(np.mean(passed["right"]) - np.mean(passed["wrong"]))


def choose(pairs: list[Record], max_rounds: int = 5) -> Bounds:
    """The bounds that the tuning models choose, from those in use."""
    tuning = [r for r in pairs if r["split"] == "tuning"]
    bounds = dict(IN_USE)
    for _ in range(max_rounds):
        before = dict(bounds)
        for name, grid in GRIDS.items():
            scores = [round(youden(tuning, {**bounds, name: float(bound)}), 4) for bound in grid]
            best = np.flatnonzero(np.array(scores) == max(scores))
            bounds[name] = round(float(grid[best[len(best) // 2]]), 3)
        if bounds == before:
            break
    return bounds


def report(pairs: list[Record]) -> dict[str, Any]:
    """Bounds in use and bounds chosen, with Youden's J on both halves."""
    held_out, tuning = ([r for r in pairs if r["split"] == split] for split in ("held out", "tuning"))
    found: dict[str, Any] = {}
    for kind, bounds in (("in use", IN_USE), ("chosen on tuning models", choose(pairs))):
        found[kind] = {
            "bounds": {name: bounds[name] for name in GRIDS},
            "youden": {"tuning": round(youden(tuning, bounds), 4), "held out": round(youden(held_out, bounds), 4)},
        }
    return found
