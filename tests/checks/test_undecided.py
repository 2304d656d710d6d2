"""The legend of undecided verdicts: which tests, what they ask, and how many examples would decide them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import unboxed as ub
from unboxed.checks.ranking import MethodRanking
from unboxed.checks.undecided import UNDECIDED_MEANING, undecided_legend
from unboxed.checks.verdict import Grade, TestOutcome, Verdict, examples_needed_to_decide
from unboxed.checks.verdict_tests import VERDICT_TESTS
from unboxed.engine.intervals import Interval
from unboxed.report.explanation_page import write_explanation_page


def outcome(name: str, grade: Grade, value: float, half: float, n: int = 4) -> TestOutcome:
    test = next(t for t in VERDICT_TESTS if t.name == name)
    return TestOutcome(
        name, grade, test.figure, value, value - half, value + half, test.bound, test.passes_above, n, 1, ""
    )


def judged(method: str, *outcomes: TestOutcome, grade: Grade = "inconclusive") -> Verdict:
    return Verdict(method, grade, "", "", outcomes, 4)


def test_every_test_has_a_question() -> None:
    assert all(test.question.endswith("?") for test in VERDICT_TESTS)
    assert len({test.question for test in VERDICT_TESTS}) == len(VERDICT_TESTS)


@pytest.mark.parametrize(("half", "needed"), [(0.19, 15), (0.09, 5), (0.39, 61), (1.9, None)])
def test_the_number_is_that_at_which_the_interval_leaves_the_bound(half: float, needed: int | None) -> None:
    """The half width of n examples is that of 4 times sqrt(4 / n); it is 0.1 from the bound."""
    found = examples_needed_to_decide(Interval(0.5, 0.5 - half, 0.5 + half, 4, 1), 0.6)
    if needed is None:
        assert found is None  # more than 100 times as many
        return
    assert found == needed
    assert half * (4 / found) ** 0.5 <= 0.1 + 1e-9
    assert found == 5 or half * (4 / (found - 1)) ** 0.5 > 0.1


def test_an_unknown_spread_takes_those_that_measure_it() -> None:
    assert examples_needed_to_decide(Interval(0.5, -float("inf"), float("inf"), 1, 1), 0.6) == 8


def test_the_legend_has_each_undecided_test_once() -> None:
    verdicts = [
        judged("A", outcome("randomization", "pass", 0.1, 0.1), outcome("removal", "inconclusive", 0.15, 0.19)),
        judged("B", outcome("removal", "inconclusive", 0.15, 0.29), outcome("own example", "inconclusive", 0.0, 0.3)),
        judged("C", outcome("edges", "inconclusive", 0.6, 0.2)),
        judged("D", outcome("map", "fail", 1.0, 0.0), outcome("learned", "inconclusive", 0.1, 0.3), grade="fail"),
    ]
    legend = undecided_legend(verdicts)
    assert legend.startswith(UNDECIDED_MEANING)
    assert "removal (relevance gain above 0.05): does removing what it marks" in legend
    assert "About 15 to 34 examples would decide, in place of 4." in legend
    assert "edges (share explained by edges and brightness below 0.7): is it more than edges" in legend
    assert legend.count("removal (") == 1
    assert "own example (" in legend  # all that are undecided are the verdict's reason
    assert "learned" not in legend  # of a map that fails
    assert undecided_legend(verdicts[3:]) == ""
    near = undecided_legend([judged("E", outcome("removal", "inconclusive", 0.06, 0.5))])
    assert near.endswith("It is too near its bound to be decided.")
    both = undecided_legend([verdicts[0], judged("E", outcome("removal", "inconclusive", 0.06, 0.5))])
    assert both.endswith("About 15 examples would decide, in place of 4; some methods are too near the bound.")


def test_it_stands_below_rankings_and_explanations(tmp_path: Path) -> None:
    open_verdict = judged("A", outcome("removal", "inconclusive", 0.15, 0.19))
    passed = replace(open_verdict, grade="pass", tests=(outcome("removal", "pass", 0.5, 0.1),))
    assert "in place of 4" in str(MethodRanking({"a": open_verdict}))
    assert UNDECIDED_MEANING not in str(MethodRanking({"a": passed}))
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    why = ub.explain(box, ub.data.digits("test").first(1)[0], methods=["gradient"])
    for verdict, is_there in ((open_verdict, True), (passed, False)):
        page = write_explanation_page(replace(why, verdicts={"gradient": verdict}), tmp_path / "why.html")
        text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
        assert (UNDECIDED_MEANING in text) is is_there
