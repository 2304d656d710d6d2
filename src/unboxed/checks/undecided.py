"""What undecided tests of verdicts ask, and about how many examples would decide them."""

from __future__ import annotations

from collections.abc import Iterable

from ..engine.intervals import Interval
from .verdict import INCONCLUSIVE, TestOutcome, Verdict, examples_needed_to_decide
from .verdict_tests import VERDICT_TESTS

UNDECIDED_MEANING = "Undecided: the interval of the figure contains its bound, so that more examples must decide."
QUESTION_BY_TEST = {test.name: test.question for test in VERDICT_TESTS}


def undecided_legend(verdicts: Iterable[Verdict]) -> str:
    """What the undecided tests among these verdicts ask, and what would decide them; "" where none is undecided."""
    by_test: dict[str, list[TestOutcome]] = {}
    for verdict in verdicts:
        for outcome in _undecided_outcomes(verdict):
            by_test.setdefault(outcome.name, []).append(outcome)
    return " ".join([UNDECIDED_MEANING, *map(_test_text, by_test.values())]) if by_test else ""


def _undecided_outcomes(verdict: Verdict) -> list[TestOutcome]:
    """The tests that make a verdict inconclusive, none where none does."""
    return [test for test in verdict.tests if test.grade == INCONCLUSIVE and verdict.grade == INCONCLUSIVE]


def _test_text(outcomes: list[TestOutcome]) -> str:
    """What a test asks of a map, and how many examples it takes, by the outcomes of the methods that it left open."""
    test = outcomes[0]
    side = "above" if test.passes_above else "below"
    question = f": {asked}" if (asked := QUESTION_BY_TEST.get(test.name)) else "."
    return f"{test.name} ({test.figure} {side} {test.bound:g}){question} {_examples_text(outcomes)}"


def _examples_text(outcomes: list[TestOutcome]) -> str:
    needed = [
        examples_needed_to_decide(Interval(o.value, o.low, o.high, o.n_examples, o.n_draws), o.bound) for o in outcomes
    ]
    known = sorted(n for n in needed if n is not None)
    if not known:
        return "It is too near its bound to be decided."
    span = f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    rest = "; some methods are too near the bound" if len(known) < len(needed) else ""
    return f"About {span} examples would decide, in place of {outcomes[0].n_examples}{rest}."
