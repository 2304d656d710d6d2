"""Does the order of methods depend on what removed parts are filled with?

Fills outside the data's distribution are known to reorder methods (Bluecher et al. 2024, arXiv:2401.06654). Where fills
of its own range disagree as well, an order is worth as much as their agreement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

from ..engine.rank_correlation import kendall_tau
from .verdict import Verdict

MIN_AGREEMENT_KENDALL_TAU = 0.8  # Kendall's tau, from which on the fills give nearly the same order


def method_orders_by_fill(verdicts: Mapping[str, Verdict]) -> dict[str, list[str]]:
    """{fill: the methods by their relevance gain with it, the largest first}, of methods that all fills measured."""
    return {
        fill: sorted(gains, key=lambda name: -gains[name]) for fill, gains in _relevance_gains_by_fill(verdicts).items()
    }


def fill_agreement(verdicts: Mapping[str, Verdict]) -> tuple[float, tuple[str, str]]:
    """Kendall's tau between the orders of the two fills that agree the least, and these fills; NaN for fewer than two
    methods or fills."""
    columns = {fill: [*gains.values()] for fill, gains in _relevance_gains_by_fill(verdicts).items() if len(gains) > 1}
    pairs = [(kendall_tau(columns[a], columns[b]), (a, b)) for a, b in combinations(columns, 2)]
    return min(pairs, default=(math.nan, ("", "")))


def fill_dependence_sentence(verdicts: Mapping[str, Verdict]) -> str:
    """Whether the order of the methods depends on the fill, in a sentence; empty where that cannot be told."""
    agreement, (a, b) = fill_agreement(verdicts)
    if math.isnan(agreement):
        return ""
    orders = method_orders_by_fill(verdicts)
    if agreement > 1 - 1e-9:
        return "All fills give the same order by relevance gain."
    if agreement >= MIN_AGREEMENT_KENDALL_TAU:
        return f"The order by relevance gain hardly depends on the fill (Kendall's tau {agreement:.2f} or more)."
    first, other = (verdicts[orders[fill][0]].method for fill in (a, b))
    leaders = f"{first} leads with both" if first == other else f"{first} leads with {a!r}, {other} with {b!r}"
    return f"The order depends on what removed parts are filled with (Kendall's tau {agreement:.2f}): {leaders}."


def _relevance_gains_by_fill(verdicts: Mapping[str, Verdict]) -> dict[str, dict[str, float]]:
    """{fill: {method: its relevance gain}}, of the methods with a number for each fill."""
    measured = {
        name: v.gain_by_fill for name, v in verdicts.items() if all(map(math.isfinite, v.gain_by_fill.values()))
    }
    measured = {name: gains for name, gains in measured.items() if gains}
    fills = next(iter(measured.values()), {})
    return {fill: {name: gains[fill] for name, gains in measured.items()} for fill in fills}
