"""The verdict's bounds, each on both sides, and how outcomes become one grade."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import gradient
from unboxed.checks import verdict_tests
from unboxed.checks.verdict import (
    FAIL,
    INCONCLUSIVE,
    NOT_APPLICABLE,
    PASS,
    TestOutcome,
    _mean_interval_of_test,
    grade,
    grade_of_interval,
)
from unboxed.checks.verdict_subject import VerdictSubject
from unboxed.checks.verdict_tests import REQUIRED_TEST_NAMES, VERDICT_TESTS, VerdictTest
from unboxed.engine.intervals import Interval, bootstrap_mean_interval
from unboxed.engine.randomized import randomize_layers

BOUNDS = {
    "map": 0.5, "learned": 0.1, "randomization": 0.85, "shuffled labels": 0.85, "other class": 0.95,
    "constant model": 0.7, "edges": 0.7, "removal": 0.05, "own example": 0.01,
}  # fmt: skip
PASSES_ABOVE = {"learned", "removal", "own example"}


def test_the_bounds() -> None:
    assert {t.name: t.bound for t in VERDICT_TESTS} == BOUNDS
    assert {t.name for t in VERDICT_TESTS if t.passes_above} == PASSES_ABOVE


def test_few_examples_are_as_wide_as_examples_usually_are() -> None:
    one = Interval(0.5, -math.inf, math.inf, 1, 2)
    wide = one.widened_to_assumed_std(0.2)
    assert (wide.low, wide.high) == (
        pytest.approx(0.5 - 1.645 * 0.2, abs=1e-3),
        pytest.approx(0.5 + 1.645 * 0.2, abs=1e-3),
    )
    four = Interval(0.5, 0.49, 0.9, 4, 2).widened_to_assumed_std(0.2)
    assert four.low == pytest.approx(0.5 - 1.645 * 0.1, abs=1e-3)
    assert four.high == 0.9


def test_draws_of_an_example_are_averaged_where_no_other_shares_them() -> None:
    """Each example has its own other example: what differs between them is noise of the mean, not a common effect."""
    tests = {t.name: t for t in VERDICT_TESTS}
    assert [t.name for t in VERDICT_TESTS if not t.shares_draws] == ["own example"]
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double()
    own = _mean_interval_of_test(values, tests["own example"], 0)
    expected = bootstrap_mean_interval(values.mean(1, keepdim=True), 0)
    assert (own.low, own.high, own.n_examples, own.n_draws) == (expected.low, expected.high, 8, 6)
    shared = _mean_interval_of_test(values, tests["randomization"], 0)
    assert shared == bootstrap_mean_interval(values, 0)
    assert shared.high - shared.low > own.high - own.low


def test_intervals_stay_in_the_range_of_the_figure() -> None:
    assert Interval(0.0, -0.1, 0.1, 4, 2).clamped_to_range(0, 1) == Interval(0.0, 0, 0.1, 4, 2)
    assert Interval(0.9, 0.8, 1.4, 4, 2).clamped_to_range(-1, 1) == Interval(0.9, 0.8, 1, 4, 2)
    unknown = Interval(0.9, -math.inf, math.inf, 1, 2)
    assert unknown.clamped_to_range(-1, 1) == unknown
    assert all(t.limits[0] < t.bound < t.limits[1] for t in VERDICT_TESTS)


@pytest.mark.parametrize("test", VERDICT_TESTS, ids=lambda t: t.name)
def test_each_bound_on_both_sides(test: VerdictTest) -> None:
    below, above = (math.nextafter(test.bound, toward) for toward in (-math.inf, math.inf))
    good, bad = (PASS, FAIL) if test.passes_above else (FAIL, PASS)
    assert grade_of_interval(Interval(above, above, above, 8, 1), test) == good
    assert grade_of_interval(Interval(below, below, below, 8, 1), test) == bad
    assert grade_of_interval(Interval(above, below, 1.0, 8, 1), test) == INCONCLUSIVE
    assert grade_of_interval(Interval(below, -1.0, above, 8, 1), test) == INCONCLUSIVE
    assert grade_of_interval(Interval(above, -math.inf, math.inf, 1, 1), test) == INCONCLUSIVE
    assert grade_of_interval(Interval(math.nan, -math.inf, math.inf, 0, 1), test) == NOT_APPLICABLE


def outcome(test: VerdictTest, kind: Any) -> TestOutcome:
    value = test.bound + (0.2 if test.passes_above == (kind == PASS) else -0.2)
    return TestOutcome(
        test.name,
        kind,
        test.figure,
        value,
        value - 0.1,
        value + 0.1,
        test.bound,
        test.passes_above,
        8,
        1,
        f"<{test.name}>",
    )


def outcomes(**changed: Any) -> tuple[TestOutcome, ...]:
    return tuple(outcome(t, changed.get(t.name.replace(" ", "_"), PASS)) for t in VERDICT_TESTS)


def test_all_pass() -> None:
    found, reason, sentence = grade(outcomes())
    assert (found, reason) == (PASS, "depends on the model; marks what matters")
    assert "randomization" in sentence
    assert "removal" in sentence


@pytest.mark.parametrize("test", VERDICT_TESTS, ids=lambda t: t.name)
def test_one_failure_fails_and_is_named(test: VerdictTest) -> None:
    key = test.name.replace(" ", "_")
    rest = {t.name.replace(" ", "_"): INCONCLUSIVE for t in VERDICT_TESTS}
    found, reason, sentence = grade(outcomes(**{**rest, key: FAIL}))
    assert (found, reason, sentence) == (FAIL, test.failed, f"<{test.name}>")
    found, reason, _ = grade(outcomes(**{key: INCONCLUSIVE}))
    assert (found, reason) == (INCONCLUSIVE, f"undecided: {test.name}")
    found, reason, _ = grade(outcomes(**rest))
    assert (found, reason) == (INCONCLUSIVE, "undecided: map, learned, randomization and 6 more")
    other = next(t.name for t in VERDICT_TESTS if t is not test)
    first, second = (t.name for t in VERDICT_TESTS if t.name in (test.name, other))
    _, reason, _ = grade(outcomes(**{key: INCONCLUSIVE, other.replace(" ", "_"): INCONCLUSIVE}))
    assert reason == f"undecided: {first}, {second}"


def test_what_does_not_apply_has_no_figures() -> None:
    nan = float("nan")
    outcome = TestOutcome("edges", NOT_APPLICABLE, "share", nan, -math.inf, math.inf, 0.7, False, 4, 1, "")
    assert str(outcome).split() == ["edges", "not", "applicable"]
    assert "nan" not in str(outcome)
    assert "0.12 [0.05, 0.20]  passes below 0.7" in " ".join(
        str(replace(outcome, grade=PASS, value=0.12, low=0.05, high=0.2)).split("   ")
    )


@pytest.mark.parametrize("test", VERDICT_TESTS, ids=lambda t: t.name)
def test_what_is_essential_must_apply(test: VerdictTest) -> None:
    found, reason, _ = grade(outcomes(**{test.name.replace(" ", "_"): NOT_APPLICABLE}))
    if test.name in REQUIRED_TEST_NAMES:
        assert (found, reason) == (INCONCLUSIVE, f"not tested: {test.name}")
    else:
        assert found == PASS


def test_the_weakest_pass_is_named() -> None:
    all_pass = list(outcomes())
    k = next(i for i, o in enumerate(all_pass) if o.name == "edges")
    all_pass[k] = replace(all_pass[k], value=0.65, low=0.62, high=0.69)
    assert grade(tuple(all_pass))[2].endswith("Nearest to its bound: edges (0.65, passes below 0.7).")


# ---- figures -------------------------------------------------------------------------------------------------------


def opened(outputs: Any = "logits") -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return ub.Box(model.double().eval(), ub.Pixels((1, 12, 12)), outputs=outputs), torch.rand(6, 1, 12, 12).double()


def subject(map_: Tensor | None = None, method: Any = gradient, outputs: Any = "logits") -> VerdictSubject:
    box, x = opened(outputs)
    target = box(x).argmax(1)
    return VerdictSubject(box, x, method, target, method(box, x, target).map if map_ is None else map_, 0)


def values(name: str, s: VerdictSubject, draw: int = 0) -> Tensor:
    return next(t for t in VERDICT_TESTS if t.name == name).values(s, draw)


def test_edges_with_any_scale_per_example_are_explained_whole() -> None:
    box, x = opened()
    scale = torch.tensor([1.0, 2, -3, 1e-6, 1e3, 5]).view(-1, 1, 1, 1)
    edges = ub.checks.edge_control(box, x, gradient).edges
    for h in (scale * edges, scale * (3 * edges - x + 2)):
        assert torch.allclose(values("edges", subject(h)), torch.ones(6).double(), rtol=0, atol=1e-9)
    assert values("edges", subject(torch.rand_like(x) - 0.5)).max() < 0.3


def test_another_class_is_the_next_likely_one() -> None:
    seen = []

    def method(box: ub.Box, x: Tensor, target: Any) -> Any:
        seen.append(target)
        return gradient(box, x, target)

    s = subject(method=method)
    order = s.box(s.x).argsort(1, descending=True)
    values("other class", s, 0), values("other class", s, 1)
    assert torch.equal(seen[1], order[:, 1])
    assert torch.equal(seen[2], order[:, 2])
    assert bool(values("other class", s, 2).isnan().all())  # there are three classes


def test_learned_is_confidence_in_nats_above_a_randomized_copy() -> None:
    s = subject()
    p = s.box.probs(s.x)
    copies = [randomize_layers(s.box, s.layers, k) for k in (0, 1)]
    for draw, copy in enumerate(copies):
        expected = (p.amax(1).log() - copy.probs(s.x).amax(1).log()) / math.log(3)
        assert torch.allclose(values("learned", s, draw), expected, rtol=0, atol=1e-9)


def test_copies_that_are_sure_of_everything_are_compared_by_information() -> None:
    """A randomized copy whose bias decides says the same of all examples: its confidence says nothing."""
    s = subject()
    with torch.no_grad():
        s.box.model[4].bias.copy_(torch.tensor([20.0, 0, 0]))
    copy = randomize_layers(s.box, [], 0)
    assert verdict_tests._confidence_nats(verdict_tests._log_probs(s, copy(s.x))).mean() > 0.5 * math.log(3)
    assert float(verdict_tests._kl_from_mean_probs(verdict_tests._log_probs(s, copy(s.x))).mean()) < 1e-6
    told_apart = torch.eye(3).double().repeat(2, 1).mul(30).log_softmax(1)
    assert float(verdict_tests._kl_from_mean_probs(told_apart).mean()) == pytest.approx(math.log(3), abs=1e-6)


def test_regression_has_neither_classes_nor_confidence() -> None:
    s = subject(torch.rand(6, 1, 12, 12), outputs="regression")
    assert bool(values("learned", s).isnan().all())
    assert bool(values("other class", s).isnan().all())


def test_own_gain_is_beyond_that_of_other_examples() -> None:
    s = subject()
    fills = [*s.fill_by_name.items()]
    for draw in (0, 1, 5):
        others, (name, fill) = verdict_tests._other_example_indices(s, draw), fills[draw % len(fills)]
        by_sign, by_magnitude = (
            s._compute_removal_curves(s.map_[others], signed, {name: fill}) for signed in (True, False)
        )
        other = by_sign.where(s.is_ranked_by_sign, by_magnitude).gain
        k = 2 * (draw % len(fills))  # two grids
        expected = (s.removal.gain[:, k : k + 2] - other).nanmean(1)
        assert torch.allclose(values("own example", s, draw), expected, rtol=0, atol=1e-9, equal_nan=True)
    same = subject(s.map_[:1].expand(6, -1, -1, -1).clone())
    assert torch.equal(values("own example", same).nan_to_num(), torch.zeros(6).double())
    one = subject()
    one.x, one.map_, one.target = one.x[:1], one.map_[:1], one.target[:1]
    assert bool(values("own example", one).isnan().all())


def test_each_example_is_ranked_by_its_own_choice_with_every_fill() -> None:
    s = subject()
    s.__dict__["is_ranked_by_sign"] = torch.arange(6) % 2 == 0
    by_sign, by_magnitude = (s._compute_removal_curves(s.map_, signed, s.fill_by_name) for signed in (True, False))
    expected = by_sign.where(s.is_ranked_by_sign, by_magnitude)
    assert not torch.allclose(by_sign.gain, by_magnitude.gain)
    assert s.removal.variants == expected.variants
    for name in ("fractions", "morf", "lerf"):
        assert torch.allclose(getattr(s.removal, name), getattr(expected, name), rtol=0, atol=1e-9), name


def test_shuffled_labels_take_part_where_there_is_such_a_model() -> None:
    s = subject()
    assert bool(values("shuffled labels", s).isnan().all())
    s.shuffled_box = s.box
    assert torch.allclose(values("shuffled labels", s), torch.ones(6).double())  # the same model, the same map
    s.shuffled_box = randomize_layers(s.box, s.layers, 0)
    assert bool((values("shuffled labels", s) < 0.8).any())


def test_other_examples_are_of_other_classes_first() -> None:
    s = subject()
    s.target = torch.tensor([0, 0, 1, 1, 0, 2])
    first, last = (verdict_tests._other_example_indices(s, draw) for draw in (0, 4))
    assert first.tolist() == [2, 2, 4, 4, 5, 0]
    assert last.tolist() == [4, 0, 3, 2, 1, 4]
    assert verdict_tests._other_example_indices(s, 5).tolist() == first.tolist()  # all have had their turn


def test_sign_or_magnitude_whichever_ranks_better() -> None:
    """The true contributions are right by sign; minus their helpful part's strength by magnitude alone."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(1, 1, 12, 12, generator=draw).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w.flatten(), torch.zeros(144)]))
    x = 0.5 + 0.5 * w.sign() * (1.4 * torch.rand(6, 1, 12, 12, generator=draw).double() - 0.4)  # some speak against
    box, y = ub.Box(model, ub.Pixels((1, 12, 12)), outputs="logits"), torch.zeros(6, dtype=torch.long)
    share = w * (x - 0.5)
    assert VerdictSubject(box, x, gradient, y, share, 0).is_ranked_by_sign.all()
    assert not VerdictSubject(box, x, gradient, y, -share.clamp_min(0), 0).is_ranked_by_sign.any()
