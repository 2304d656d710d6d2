"""The verdict on a method's maps of one model: can they be trusted? Measured, with intervals, and one sentence.

Each test of `verdict_tests` gives a figure per example and draw; its mean has an interval, and it passes or fails only
where the whole interval lies on one side of its bound. How often verdicts are right is measured on planted models whose
reasons are known (`benchmarks/verdict_roc.py`, `docs/verdicts.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, Final, Literal

import torch
from torch import Tensor

from ..argument_names import naming_arguments
from ..box import Box
from ..cards import card_of, cards
from ..engine.intervals import GRADING_LEVEL, Interval, bootstrap_mean_interval
from ..engine.results import ResultMixin
from ..errors import InputError, UnboxedError
from ..inputs.tokens import Tokens
from ..parameters import BatchSize, InputBatch, Seed, Target
from ..settings import AtLeast, Unit, ValueRole, check_settings, takes_texts
from ..validation import nearest_names, normalized_name, valid_seed
from .influence_evidence import InfluenceEvidence
from .labels import check_same_inputs_and_outputs
from .methods import OptionalPrecomputedMap, TestedMethod, compute_map, resolve_target
from .perturbing import align_maps
from .relevance_gain import RemovalCurves
from .verdict_subject import VerdictSubject
from .verdict_tests import REQUIRED_TEST_NAMES, VERDICT_TESTS, VerdictTest

PASS: Final = "pass"
INCONCLUSIVE: Final = "inconclusive"
FAIL: Final = "fail"
NOT_APPLICABLE: Final = "not applicable"
Grade = Literal["pass", "inconclusive", "fail", "not applicable"]
GRADES: tuple[Grade, ...] = (PASS, INCONCLUSIVE, FAIL, NOT_APPLICABLE)  # the best first

ASSUMED_EXAMPLE_STD_BY_TEST = {test.name: test.spread for test in VERDICT_TESTS}
MIN_STD_FOR_MARGIN = 0.05
ShuffledBox = Annotated[
    Box | None,
    "A model of the same architecture trained on shuffled labels (`train_twice`), where there is one: one test more.",
]
RemovalBaseline = Annotated[
    Any,
    ValueRole("str"),
    "What removed columns of a table become (`Baseline`); None is their mean, of one row without a known mean zeros. "
    "Images and texts have their own fills.",
]
MIN_EXAMPLES_FOR_MEASURED_SPREAD = 8  # below which most tests stay undecided
MAX_FACTOR_OF_EXAMPLES_TO_DECIDE = 100  # more are not advised: the figure is too near its bound
MAX_DRAWS_PER_TEST = 8
MAX_TESTS_IN_REASON = 3  # undecided tests that a reason names


@dataclass(frozen=True)
class TestOutcome:
    """What one test of a verdict measured: its grade, its figure with the interval, and the bound they were held to."""

    __test__ = False  # of pytest's

    name: str
    grade: Grade
    figure: str  # what the value is
    value: float
    low: float
    high: float
    bound: float
    passes_above: bool
    n_examples: int
    n_draws: int
    sentence: str

    @property
    def margin(self) -> float:
        """How far the interval is from the bound, in standard deviations between examples; negative where it fails or
        contains the bound."""
        side = self.low - self.bound if self.passes_above else self.bound - self.high
        return side / max(ASSUMED_EXAMPLE_STD_BY_TEST.get(self.name, 0.0), MIN_STD_FOR_MARGIN)

    def __str__(self) -> str:
        if self.grade == NOT_APPLICABLE:
            return f"{self.name:15} {self.grade}"
        side = "above" if self.passes_above else "below"
        interval = f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.name:15} {self.grade:15} {interval:22} passes {side} {self.bound:g}"


@dataclass(frozen=True, eq=False)
class VerdictEvidence:
    """What a verdict was made from: inputs, maps and curves, for its figures."""

    x: Tensor  # (N, ...)
    maps: Tensor  # (N, ...)
    control_maps: Mapping[str, Tensor]  # {control: maps (N, ...)}: upper half randomized, another class
    removal: RemovalCurves
    tokens: tuple[tuple[str, ...], ...] = ()  # of texts
    removable: Tensor | None = None  # (N, T), of texts: the tokens that are their own


@dataclass(frozen=True, repr=False)
class Verdict(ResultMixin):
    """The verdict on one method's maps of one model: a grade, its reason, and the tests it follows from."""

    method: str
    grade: Grade
    reason: str  # in a few words
    sentence: str
    tests: tuple[TestOutcome, ...] = ()
    n_examples: int = 0
    n_maps: int = 0  # maps computed for it, one per example: nearly all of its cost
    gain_by_fill: Mapping[str, float] = field(default_factory=dict)  # {fill: relevance gain}: do the fills agree?
    # What it was made from; None where it was read from a file
    evidence: VerdictEvidence | InfluenceEvidence | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        tests = "".join(f"\n  {test}" for test in self.tests)
        tests = f"\n  tests, with {GRADING_LEVEL:.0%} intervals:{tests}" if tests else ""
        gains = ", ".join(f"{fill} {gain:.2f}" for fill, gain in self.gain_by_fill.items())
        fills = f"\n  relevance gain by fill: {gains}" if gains else ""
        return f"{self.method}: {self.badge} ({self.reason}). {self.sentence}{tests}{fills}"

    @property
    def badge(self) -> str:
        """The grade as a label: "passes"."""
        return {PASS: "passes", FAIL: "fails"}.get(self.grade, self.grade)

    @property
    def figures(self) -> dict[str, float]:
        """{test: the mean that it measured}."""
        return {test.name: test.value for test in self.tests}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the evidence."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tests", "evidence")}
        return plain | {"tests": [asdict(test) for test in self.tests]}

    @property
    def rank(self) -> tuple[int, float]:
        """The sorting key: by grade, then by the relevance gain, the largest first."""
        gain = self.figures.get("removal", math.nan)
        return GRADES.index(self.grade), math.inf if math.isnan(gain) else -gain


@takes_texts
@naming_arguments
def verdict(
    box: Box,
    x: InputBatch,
    method: TestedMethod,
    target: Target = None,
    *,
    map_: OptionalPrecomputedMap = None,
    max_draws: Annotated[
        int, AtLeast(1), Unit("draws"), "Largest number of randomizations per test, for those that are undecided."
    ] = MAX_DRAWS_PER_TEST,
    shuffled_box: ShuffledBox = None,
    baseline: RemovalBaseline = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Verdict:
    """Judge whether a method's maps of this model can be trusted, by tests that decide only what they have measured.

    One call with one answer; for the figures layer by layer take `randomization`, for the curves `deletion`, to compare
    methods `rank_methods`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. At least 8, better more: of fewer, only
            clear figures decide.
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        map_: The method's map of x, where it is known already; None computes it.
        max_draws: Largest number of randomizations per test, for those that are undecided.
        shuffled_box: A model of the same architecture trained on shuffled labels (`train_twice`), where there is one:
            one test more.
        baseline: What removed columns of a table become (`Baseline`); None is their mean, of one row without a
            known mean zeros. Images and texts have their own fills.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The `Verdict`. Its grade is "fail" where a test fails: the whole interval of its figure is on the wrong side of
        its bound; "pass" where all tests that apply pass; "inconclusive" where an interval contains its bound, with
        what would decide it; "not applicable", with the error's text, where the method refuses the model. Its `tests`
        are the map's variation, what the model has learned, randomization, another class, constant models, edges,
        removal and another example's map.

    Raises:
        InputError: for a method that is not callable, or inputs, a target or settings that do not fit.
        ModelError: where the model cannot be copied.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(8)
        >>> v = ub.checks.verdict(box, x, ub.attribution.grad_cam_plus_plus)
        >>> v.grade, v.reason
        ('fail', 'same map for random weights')

    Source:
        Randomization: Adebayo et al. 2018, arXiv:1810.03292. Removal: Bluecher et al. 2024, arXiv:2401.06654, with
        fills of the data's own range. Another class: Sixt et al. 2020, arXiv:1912.09818. Intervals:
        `bootstrap_mean_interval`.
        The grades and bounds are our own; `benchmarks/verdict_roc.py` measures how often they are right.
    """
    check_settings(verdict, locals())
    x, seed = box.validate_inputs(x), valid_seed(seed)
    if shuffled_box is not None:
        check_same_inputs_and_outputs(box, shuffled_box)
    if not callable(method):
        raise InputError(
            f"a method is a function (box, x, target) -> map{_suggested_method_text(method)}; got {method!r}"
        )
    score, name = resolve_target(box, x, target), method_display_name(method)
    given = None if map_ is None else align_maps(box, x, map_)
    try:
        own_map, n_maps = (compute_map(box, method, x, score), len(x)) if given is None else (given, 0)
        subject = VerdictSubject(box, x, method, score, own_map, seed, batch_size, baseline, n_maps, shuffled_box)
        if not bool(subject.map_.isfinite().all()):
            return Verdict(name, FAIL, "not finite", "Its map has NaN or infinite values.", (), len(x), subject.n_maps)
        outcomes = _run_all_tests(subject, max_draws)
    except UnboxedError as error:
        return Verdict(
            name, NOT_APPLICABLE, "refuses this model", capitalize_and_end_with_period(str(error)), (), len(x)
        )
    tokens = tuple(map(tuple, box.inputs.token_texts(x))) if isinstance(box.inputs, Tokens) else ()
    maps_and_curves = subject.map_, subject.control_maps, subject.removal
    evidence = VerdictEvidence(x, *maps_and_curves, tokens, subject.removable)
    by_fill = {fill: round(gain, 4) for fill, gain in subject.removal.gain_by_fill.items()}
    return Verdict(name, *grade(outcomes), outcomes, len(x), subject.n_maps, by_fill, evidence)


def _suggested_method_text(name: object) -> str:
    """The method that a name means, as it is written in Python; empty where it means none."""
    keys = {normalized_name(word): c.key for c in cards("attribution") for word in (c.key, c.name)}
    close = nearest_names(name, keys) if isinstance(name, str) else []
    return f", such as ub.attribution.{keys[close[0]]}" if close else ""


def method_display_name(method: Callable[..., Any]) -> str:
    """The method's name: its card's, whatever settings were given with `functools.partial`."""
    card = card_of(method)
    while isinstance(method, partial):
        method = method.func
    return card.name if card else getattr(method, "__name__", type(method).__name__)


def _run_all_tests(subject: VerdictSubject, max_draws: int) -> tuple[TestOutcome, ...]:
    """The outcomes of all tests; the last ones, which cost the most, are left out for a map that has failed."""
    outcomes: list[TestOutcome] = []
    for test in VERDICT_TESTS:
        failed = any(o.grade == FAIL for o in outcomes)
        if not (failed and test.skip_when_failed):
            outcomes.append(run_verdict_test(test, subject, max_draws))
    return tuple(o for o in outcomes if o.name != "shuffled labels" or subject.shuffled_box is not None)


def run_verdict_test(test: VerdictTest, subject: Any, max_draws: int) -> TestOutcome:
    """The outcome of a test, with more draws as long as it is undecided. The subject has a `seed`."""
    columns: list[Tensor] = []
    n_draws, limit = min(test.n_draws, max_draws), min(test.max_draws, max_draws)
    while True:
        for draw in range(len(columns), n_draws):
            values = test.values(subject, draw).double().cpu()
            columns.append(values[:, None] if values.ndim == 1 else values)
        interval = _mean_interval_of_test(torch.cat(columns, 1), test, subject.seed)
        decision = grade_of_interval(interval, test)
        if decision != INCONCLUSIVE or n_draws == limit:
            return _make_outcome(test, interval, decision)
        n_draws = min(2 * n_draws, limit)


def _mean_interval_of_test(values: Tensor, test: VerdictTest, seed: int) -> Interval:
    """The interval of the mean of figures (N, draws); of few examples, as wide as examples usually differ."""
    pooled = values if test.shares_draws else values.nanmean(1, keepdim=True)
    interval = replace(bootstrap_mean_interval(pooled, seed), n_draws=values.shape[1])
    return (
        interval.widened_to_assumed_std(test.spread).clamped_to_range(*test.limits)
        if interval.n_examples < MIN_EXAMPLES_FOR_MEASURED_SPREAD
        else interval
    )


def grade_of_interval(interval: Interval, test: VerdictTest) -> Grade:
    """Pass or fail where the whole interval lies on one side of the bound."""
    if math.isnan(interval.mean):
        return NOT_APPLICABLE
    if interval.low > test.bound:
        return PASS if test.passes_above else FAIL
    if interval.high < test.bound or (interval.high == interval.low == test.bound):
        return FAIL if test.passes_above else PASS
    return INCONCLUSIVE


def _make_outcome(test: VerdictTest, interval: Interval, decision: Grade) -> TestOutcome:
    text = {
        FAIL: test.fails,
        PASS: test.passes,
        NOT_APPLICABLE: f"The test {test.name!r} does not apply",
        INCONCLUSIVE: f"The {test.figure} ({{value:.2f}}, between {{low:.2f}} and {{high:.2f}}) may be on either side "
        f"of {test.bound:g}: {_examples_needed_to_decide_text(interval, test.bound)}.",
    }[decision]
    sentence = text.format(value=interval.mean, low=interval.low, high=interval.high)
    return TestOutcome(
        test.name, decision, test.figure, interval.mean, interval.low, interval.high, test.bound, test.passes_above,
        interval.n_examples, interval.n_draws, sentence,
    )  # fmt: skip


def _examples_needed_to_decide_text(interval: Interval, bound: float) -> str:
    needed = examples_needed_to_decide(interval, bound)
    if needed is None:
        return "it is too near its bound to be decided"
    is_known = math.isfinite(interval.n_examples_needed_to_exclude(bound))
    return f"about {needed} examples would decide" if is_known else f"{needed} examples or more may decide"


def examples_needed_to_decide(interval: Interval, bound: float) -> int | None:
    """About how many examples would take the interval off the bound; None where these are more than 100 times as many.

    Where the spread of examples is not known yet, those from which on it is measured.
    """
    needed = interval.n_examples_needed_to_exclude(bound)
    if not math.isfinite(needed):
        return MIN_EXAMPLES_FOR_MEASURED_SPREAD
    if needed > MAX_FACTOR_OF_EXAMPLES_TO_DECIDE * interval.n_examples:
        return None
    return max(interval.n_examples + 1, math.ceil(needed))


def grade_of_first_failure_or_undecided(
    outcomes: tuple[TestOutcome, ...], tests: tuple[VerdictTest, ...]
) -> tuple[Grade, str, str] | None:
    """The grade by the first test that failed, or else by all that are undecided; None where there is none."""
    reasons = {test.name: test.failed for test in tests}
    for kind in (FAIL, INCONCLUSIVE):
        if weakest := [o for o in outcomes if o.grade == kind]:
            first = weakest[0]
            names = ", ".join(outcome.name for outcome in weakest[:MAX_TESTS_IN_REASON])
            more = f" and {len(weakest) - MAX_TESTS_IN_REASON} more" * (len(weakest) > MAX_TESTS_IN_REASON)
            undecided = f"undecided: {names}{more}"
            return kind, reasons[first.name] if kind == FAIL else undecided, first.sentence
    return None


def grade(outcomes: tuple[TestOutcome, ...]) -> tuple[Grade, str, str]:
    """The grade that outcomes deserve, and why: in a few words, and in a sentence that names the weakest figure."""
    if worst := grade_of_first_failure_or_undecided(outcomes, VERDICT_TESTS):
        return worst
    if missing := [o.name for o in outcomes if o.name in REQUIRED_TEST_NAMES and o.grade == NOT_APPLICABLE]:
        sentence = f"Not tested: {' and '.join(missing)}, for want of weights, of maps that vary or of a score to lose."
        return INCONCLUSIVE, f"not tested: {missing[0]}", sentence
    essential = ", and ".join(o.sentence for o in outcomes if o.name in REQUIRED_TEST_NAMES)
    return (
        PASS,
        "depends on the model; marks what matters",
        f"{capitalize_and_end_with_period(essential)} {test_closest_to_its_bound_text(outcomes)}",
    )


def test_closest_to_its_bound_text(outcomes: tuple[TestOutcome, ...]) -> str:
    """Which of the tests that passed is the nearest to its bound, in a sentence."""
    nearest = min((o for o in outcomes if o.grade == PASS), key=lambda o: o.margin)
    bound = f"{'above' if nearest.passes_above else 'below'} {nearest.bound:g}"
    return f"Nearest to its bound: {nearest.name} ({nearest.value:.2f}, passes {bound})."


def capitalize_and_end_with_period(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
