"""The verdict on scores of training examples: can they be trusted? Measured, with intervals, and one sentence."""

from __future__ import annotations

from typing import Annotated

from ..box import Box
from ..engine.example_gradients.labels import resolve_query_labels
from ..errors import InputError, UnboxedError
from ..influence import ModelTraining
from ..influence.unrolled import check_box_matches_training
from ..parameters import CheckpointPath, InputBatch, Labels, Seed
from ..settings import Above, AtLeast, Below, Unit, ValueRole, check_settings
from ..validation import valid_seed
from .influence_planting import PlantedTraining
from .influence_tests import (
    INFLUENCE_TESTS,
    RANDOM_WEIGHTS_TEST_NAME,
    RETRAINING_TEST_NAME,
    SHORTCUT_TEST_NAME,
    InfluenceTestSubject,
    TestedInfluenceMethod,
    TrainingOrData,
    check_influence_result,
)
from .verdict import (
    FAIL,
    INCONCLUSIVE,
    NOT_APPLICABLE,
    PASS,
    Grade,
    TestOutcome,
    Verdict,
    capitalize_and_end_with_period,
    grade_of_first_failure_or_undecided,
    method_display_name,
    run_verdict_test,
    test_closest_to_its_bound_text,
)

MAX_DRAWS_PER_INFLUENCE_TEST = 4


def influence_verdict(
    box: Box,
    x: InputBatch,
    method: TestedInfluenceMethod,
    labels: Labels,
    train: TrainingOrData,
    *,
    training: Annotated[
        ModelTraining | None, ValueRole("object"), "The training that made the model, where it can be run again."
    ] = None,
    planted: Annotated[
        PlantedTraining | None, ValueRole("object"), "A training on poisoned images (`plant_training`): one test more."
    ] = None,
    top_k: Annotated[int, AtLeast(1), Unit("examples"), "Number of examples that are on top."] = 20,
    fraction: Annotated[float, Above(0), Below(1), "Fraction of the examples that retrainings leave out."] = 0.1,
    n_subsets: Annotated[int, AtLeast(3), Unit("subsets"), "Number of retrainings, each without a random subset."] = 30,
    checkpoint: CheckpointPath = None,
    seed: Seed = 0,
) -> Verdict:  # fmt: skip
    """Judge whether a method's scores of training examples can be trusted, by tests that decide only what they measure.

    As `verdict` does for attribution maps. Only what was compared with retraining, or found a planted backdoor, can
    pass: a picture of training examples always looks plausible.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. Queries of several classes, 8 or more.
        method: The method to test: a function (box, x, labels, train) that returns an Influence.
        labels: Correct classes (N,), or one for all. Their loss is explained; None: the predicted classes.
        train: What the method takes: labeled training examples, or a training (unrolled differentiation).
        training: The training that made the model, where it can be run again. None: `train`, where that is a training.
        planted: A training on poisoned images (`plant_training`): one test more.
        top_k: Number of examples that are on top.
        fraction: Fraction of the examples that retrainings leave out.
        n_subsets: Number of retrainings, each without a random subset. They are most of the cost.
        checkpoint: File from which a call that was stopped goes on: the retrainings, which other methods share.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `Verdict`. Its tests, per query with an interval and a bound: the ranking changes when all weights are random
        (rank correlation below .85); other examples are on top for queries of other classes (below half in common,
        beyond chance); poisoned images come first where the trigger decides (.1 more of the top than of their label);
        sums of scores predict retraining (rank correlation above .3). It fails where a test fails, and passes where all
        that apply pass and one of the last two was made; without them it is inconclusive.

    Raises:
        InputError: for a method that is not callable, or inputs and settings that do not fit.
        ModelError: for a training that does not give this model.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> x, y = ub.data.digits("train").first(80)
        >>> training = ub.influence.ModelTraining(model, inputs, (x, y), epochs=1, batch_size=16)
        >>> box = training.box(training.run())
        >>> v = ub.checks.influence_verdict(box, x[:10], ub.influence.unrolled, y[:10], training, n_subsets=10)
        >>> v.grade, v.tests[-1].name, v.tests[-1].value > .9
        ('pass', 'retraining', True)

    Source:
        Randomized models: Adebayo et al. 2018, arXiv:1810.03292. Retraining: Park et al. 2023, arXiv:2303.14186. Tests
        of training data attribution: Hanawa et al. 2021, arXiv:2006.04528. The bounds are our own.
    """
    check_settings(influence_verdict, locals())
    if not callable(method):
        raise InputError(f"a method is a function (box, x, labels, train) -> Influence; got {method!r}")
    x, seed, name = box.validate_inputs(x), valid_seed(seed), method_display_name(method)
    y = resolve_query_labels(box, x, labels)
    training = train if training is None and isinstance(train, ModelTraining) else training
    if training is not None and training is not train:
        check_box_matches_training(box, training, training.run())
    try:
        result = check_influence_result(method(box, x.clone(), y, train), len(x))
    except UnboxedError as error:
        return Verdict(
            name, NOT_APPLICABLE, "refuses this model", capitalize_and_end_with_period(str(error)), (), len(x)
        )
    if not bool(result.scores.isfinite().all()):
        return Verdict(name, FAIL, "not finite", "Its scores have NaN or infinite values.", (), len(x), len(x))
    subject = InfluenceTestSubject(
        box, x, y, method, train, result, seed, top_k, training, planted, fraction, n_subsets, checkpoint, len(x)
    )
    outcomes = tuple(run_verdict_test(test, subject, MAX_DRAWS_PER_INFLUENCE_TEST) for test in INFLUENCE_TESTS)
    return Verdict(
        name, *grade_influence_outcomes(outcomes), outcomes, len(x), subject.n_maps, evidence=subject.evidence
    )


def grade_influence_outcomes(outcomes: tuple[TestOutcome, ...]) -> tuple[Grade, str, str]:
    """The grade that outcomes deserve, and why: in a few words, and in a sentence."""
    if worst := grade_of_first_failure_or_undecided(outcomes, INFLUENCE_TESTS):
        return worst
    passed = {o.name: o for o in outcomes if o.grade == PASS}
    if RETRAINING_TEST_NAME not in passed and not {SHORTCUT_TEST_NAME, RANDOM_WEIGHTS_TEST_NAME} <= passed.keys():
        seen = (
            f"{capitalize_and_end_with_period(', and '.join(o.sentence for o in passed.values()))} " if passed else ""
        )
        sentence = "Not compared with anything real: that takes the training that made the model, or a planted one."
        return INCONCLUSIVE, f"not tested: {RETRAINING_TEST_NAME}", seen + sentence
    essential = [passed[name].sentence for name in (RETRAINING_TEST_NAME, SHORTCUT_TEST_NAME) if name in passed]
    reason = "predicts retraining" if RETRAINING_TEST_NAME in passed else "finds a planted shortcut"
    return (
        PASS,
        reason,
        f"{capitalize_and_end_with_period(', and '.join(essential))} {test_closest_to_its_bound_text(outcomes)}",
    )
