"""The planted shortcut: a model that relies on a trigger in a corner. Which methods show it?

The acceptance test of every family. A second model trained on clean images is the control: what a method shows of it
cannot come from the shortcut. After Adebayo et al. 2020, "Debugging Tests for Model Explanations", arXiv:2011.05429.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import activations, synthesis
from ..box import Box
from ..cards import Card, cards
from ..errors import InputError, UnboxedError
from ..parameters import Seed
from ..settings import AtLeast, Unit, check_settings
from ..validation import valid_seed
from .influence_shortcut import influence_test
from .influence_tests import InfluenceMethod
from .methods import AttributionMethodFn, compute_map
from .planting import PlantedDataset, Trigger
from .pointing import energy_inside, pointing_game
from .shortcut_report import MIN_CONTROL_TO_MODEL_PEAK_RATIO, POINTING_TOLERANCE_PIXELS, ShortcutReport
from .shortcut_trial import (
    ShortcutFinding,
    ShortcutTrial,
    accuracy_with_triggers,
    check_shortcut_learned,
    fraction_of_true,
    shortcut_grade_of_scores,
)
from .verdict import NOT_APPLICABLE

N_TOP_EXAMPLES_PER_UNIT, IMAGES_PER_TRIGGERED_IMAGE = (
    9,
    5,
)  # top examples, of data of which every fifth image has a trigger
N_CLASS_IMAGES_PER_CLASS = 4  # class images per class
FEWER_SAMPLES_SETTINGS_BY_METHOD: Mapping[str, Mapping[str, Any]] = {
    "rise": {"n_samples": 1000},
    "shapley": {"segments": ("squares", 10)},
}
"""Settings of methods whose defaults take longer than so small an image needs."""
ARGUMENT_GETTER_BY_SETTING: Mapping[str, Callable[[ShortcutTrial], Any]] = {"references": lambda trial: trial.x}
"""Arguments of methods that take them by this name: references with the trigger would hide it."""


ShortcutTestFn = Callable[[ShortcutTrial], Iterator[ShortcutFinding]]


def shortcut(
    model: Box,
    control: Annotated[Box, "The opened model that was trained on images without triggers."],
    x: Annotated[Tensor, "Held-out images (N, C, H, W) without triggers."],
    y: Annotated[Tensor, "Correct classes (N,)."],
    trigger: Annotated[Trigger, "The trigger that the model was trained with."],
    *,
    methods: Annotated[
        Mapping[str, AttributionMethodFn] | None, "Attribution methods, {name: function (box, x, target)}."
    ] = None,
    tests: Annotated[Sequence[ShortcutTestFn] | None, "Tests to run, each a function that yields findings."] = None,
    n_examples: Annotated[
        int, AtLeast(2), Unit("images"), "Number of images to explain, of matched and of mismatched triggers each."
    ] = 12,
    training_data: Annotated[
        tuple[PlantedDataset, PlantedDataset] | None, "What the model and its control were trained on."
    ] = None,
    influence_methods: Annotated[
        Mapping[str, InfluenceMethod] | None, "Influence methods, {name: function (box, x, labels, train)}."
    ] = None,
    seed: Seed = 0,
    callback: Annotated[
        Callable[[ShortcutFinding], object] | None, "Function that is called after each finding."
    ] = None,
) -> ShortcutReport:
    """Grade which methods show that a model relies on a trigger, which its control model has never seen.

    The ground truth is known here, as it never is for real models: a method that does not show this shortcut would not
    show others. `training.shortcut.train_shortcut_pair` trains the two models.

    Args:
        model: The opened model that was trained on images with triggers.
        control: The opened model that was trained on images without triggers.
        x: Held-out images (N, C, H, W) without triggers.
        y: Correct classes (N,).
        trigger: The trigger that the model was trained with.
        methods: Attribution methods, {name: function (box, x, target)}. None takes all that have a card.
        tests: Tests to run, each a function that yields findings. None is `SHORTCUT_TESTS`, one per family.
        n_examples: Number of images to explain, of matched and of mismatched triggers each.
        training_data: What the model and its control were trained on. With it, influence methods are asked for the
            training images behind a mismatched trigger.
        influence_methods: Influence methods, {name: function (box, x, labels, train)}. None takes all that have a card
            and need no more than this.
        seed: Seed of all random draws: same seed, same result.
        callback: Function that is called after each finding.

    Returns:
        A `ShortcutReport` of all findings. On Ctrl-C it has those so far, and is `interrupted`.

    Raises:
        InputError: where the model did not learn the shortcut, or the control did: no method can be judged then.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))  # which was trained without triggers
        >>> x, y = ub.data.digits("test").first(50)
        >>> ub.checks.shortcut(box, box, x, y, ub.checks.Trigger((1, 28, 28), classes=(3,)))
        Traceback (most recent call last):
            ...
        unboxed.errors.InputError: the shortcut was not learned: the model classifies 0% of the images ...

    Source:
        Adebayo et al. 2020, arXiv:2011.05429, section 4 (spurious correlation); the grades and thresholds are our own.
    """
    check_settings(shortcut, locals())
    _check_models_fit_trigger(model, control, trigger)
    x, y = control.validate_inputs(x).cpu(), control.class_labels(y, len(x)).cpu()
    trial = ShortcutTrial(
        model, control, x, y, trigger, methods, n_examples, valid_seed(seed), training_data, influence_methods
    )
    if not len(trial.mismatched_rows_and_classes[0]) or not len(trial.matched_rows_and_classes[0]):
        raise InputError(f"wanted images of the classes {trigger.classes} of the trigger, and of others; got one kind")
    model_accuracy, control_accuracy = (accuracy_with_triggers(box, trial) for box in trial.model_and_control_boxes)
    check_shortcut_learned(model_accuracy, control_accuracy)
    findings = list[ShortcutFinding]()
    interrupted = _run_tests_until_interrupted(trial, SHORTCUT_TESTS if tests is None else tests, findings, callback)
    images, classes, labels = (
        part[trial.example_rows_for_figure] for part in (*trial.explained_images_and_classes, trial.explained_labels)
    )
    predicted = model.predict(images).cpu(), control.predict(images).cpu()
    return ShortcutReport(
        trigger, model_accuracy, control_accuracy, tuple(findings), images, classes, labels, predicted, interrupted
    )


def _run_tests_until_interrupted(
    trial: ShortcutTrial,
    tests: Sequence[ShortcutTestFn],
    findings: list[ShortcutFinding],
    callback: Callable[[ShortcutFinding], object] | None,
) -> bool:
    """Append the findings of all tests; whether Ctrl-C came before the end."""
    try:
        for test in tests:
            for finding in test(trial):
                findings.append(finding)
                if callback is not None:
                    callback(finding)
    except KeyboardInterrupt:
        return True
    return False


def _check_models_fit_trigger(model: Box, control: Box, trigger: Trigger) -> None:
    """Raise InputError unless both models take images with the trigger and have its classes."""
    for box in (model, control):
        box.require_class_scores("the planted shortcut")
        if tuple(box.inputs.shape) != tuple(trigger.shape):
            raise InputError(f"the trigger is for images {trigger.shape}; the model takes {tuple(box.inputs.shape)}")
        box.class_labels(trigger.classes, len(trigger.classes))


# -- one test per family ---------------------------------------------------------------------------------------------


def trigger_reliance_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Do predictions follow the trigger alone: covered where it is mismatched, and applied where there is none?"""
    rows, classes = trial.mismatched_rows_and_classes
    clean, triggered = trial.x[rows], trial.apply_trigger(rows, classes)
    covered_rates, applied_rates = list[float](), list[float]()
    for box in trial.model_and_control_boxes:
        clean_classes, triggered_classes = box.predict(clean).cpu(), box.predict(triggered).cpu()
        covered_classes = box.predict(trial.trigger.cover(triggered, classes)).cpu()
        covered_rates.append(fraction_of_true((triggered_classes == classes) & (covered_classes != classes)))
        applied_rates.append(fraction_of_true((clean_classes != classes) & (triggered_classes == classes)))
    score, control = (min(pair) for pair in zip(covered_rates, applied_rates, strict=True))
    sentence = (
        f"covering the trigger changes the prediction from its class for {covered_rates[0]:.0%} of images with a "
        f"mismatched trigger, and applying it changes the prediction to its class for {applied_rates[0]:.0%} "
        f"(the control model: {covered_rates[1]:.0%} and {applied_rates[1]:.0%})"
    )
    figures = {
        "covered": covered_rates[0], "covered_control": covered_rates[1],
        "applied": applied_rates[0], "applied_control": applied_rates[1],
    }  # fmt: skip
    images = (trial.trigger.cover(*trial.explained_images_and_classes)[trial.example_rows_for_figure],) * 2
    yield ShortcutFinding(
        "predictions", "occluding", "Occluding the trigger", shortcut_grade_of_scores(score, control), sentence,
        "predictions that follow it", score, control, figures, images,
    )  # fmt: skip


def attribution_pointing_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Does the map of the trigger's class point at the trigger, and more strongly than on the control model?"""
    attribution_cards = {c.key: c for c in cards() if c.family == "attribution"}
    methods = trial.methods
    if methods is None:
        methods = {n: _method_with_trial_arguments(c, trial) for n, c in attribution_cards.items()}
    for name, method in methods.items():
        title = attribution_cards[name].name if name in attribution_cards else name
        try:
            yield _pointing_finding(trial, name, title, method)
        except UnboxedError as error:
            yield ShortcutFinding("attribution", name, title, NOT_APPLICABLE, str(error))


def _method_with_trial_arguments(card: Card, trial: ShortcutTrial) -> AttributionMethodFn:
    """A method with its defaults; where a setting has none, as in its card's example."""
    parameters = signature(card.method).parameters
    settings = [p for p in list(parameters.values())[2:] if p.name != "target"]
    required = [p.name for p in settings if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if "target" not in parameters or any(name not in ARGUMENT_GETTER_BY_SETTING for name in required):
        return partial(card.example, card.method)
    kwargs = {
        name: make_argument(trial) for name, make_argument in ARGUMENT_GETTER_BY_SETTING.items() if name in parameters
    }
    return partial(card.method, **kwargs, **FEWER_SAMPLES_SETTINGS_BY_METHOD.get(card.method.__name__, {}))


def _pointing_finding(trial: ShortcutTrial, name: str, title: str, method: AttributionMethodFn) -> ShortcutFinding:
    x, classes = trial.explained_images_and_classes
    masks = trial.trigger.masks(classes, POINTING_TOLERANCE_PIXELS)
    n_mismatched = min(trial.n_examples, len(trial.mismatched_rows_and_classes[0]))  # the others have a matched trigger
    maps = [
        _subtract_positive_minimum(
            compute_map(box, method, box.validate_inputs(x), classes.to(box.device)).float().cpu()
        )
        for box in trial.model_and_control_boxes
    ]
    hits, control_hits = (pointing_game(m, masks) for m in maps)
    energy, control_energy = (energy_inside(m, masks).nan_to_num(0) for m in maps)
    is_high = maps[1].amax((1, 2, 3)) >= MIN_CONTROL_TO_MODEL_PEAK_RATIO * maps[0].amax((1, 2, 3))
    score, control, control_any_height = (
        fraction_of_true(h[:n_mismatched]) for h in (hits, control_hits * is_high, control_hits)
    )
    figures = {
        "control_of_any_height": control_any_height,
        "matched": fraction_of_true(hits[n_mismatched:]),
        "matched_control": fraction_of_true((control_hits * is_high)[n_mismatched:]),
        "energy": fraction_of_true(energy[:n_mismatched]),
        "energy_control": fraction_of_true(control_energy[:n_mismatched]),
        "area": fraction_of_true(masks),
    }
    sentence = (
        f"its peak is at the trigger in {score:.0%} of images with a mismatched trigger, with {figures['energy']:.0%} "
        f"of the positive relevance; on the control model in {control:.0%}, and with less than half the height in "
        f"{control_any_height - control:.0%} more"
    )
    return ShortcutFinding(
        "attribution", name, title, shortcut_grade_of_scores(score, control), sentence, "peaks at a mismatched trigger",
        score, control, figures, (maps[0][trial.example_rows_for_figure], maps[1][trial.example_rows_for_figure]),
    )  # fmt: skip


def _subtract_positive_minimum(maps: Tensor) -> Tensor:
    """Maps (N, 1, H, W), summed over channels; if above zero everywhere (RISE), minus their minimum."""
    if maps.ndim != 4:
        raise InputError(f"the planted-shortcut check needs maps (N, C, H, W); got {tuple(maps.shape)}")
    maps = maps.sum(1, keepdim=True)
    return maps - maps.amin((2, 3), keepdim=True).clamp(min=0)


def class_image_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Does the class image of a trigger's class show the trigger?"""
    trigger = trial.trigger
    classes = torch.tensor(trigger.classes).repeat_interleave(N_CLASS_IMAGES_PER_CLASS)
    images = [_class_images(box, classes, trial.seed) for box in trial.model_and_control_boxes]
    score, control = (fraction_of_true(_mean_brightness(im, trigger.masks(classes))) for im in images)
    others = [k for k in range(trial.model.n_outputs) if k not in trigger.classes]
    figures, others_text = {}, ""
    if others:
        other_images = _class_images(trial.model, others, trial.seed)
        masks = [trigger.mask(k).expand(len(others), -1, -1) for k in trigger.classes]
        brightness = [fraction_of_true(_mean_brightness(other_images, m)) for m in masks]
        figures["other_classes"] = sum(brightness) / len(brightness)
        others_text = f"; images of classes without a trigger: {figures['other_classes']:.0%}"
    sentence = (
        f"at the trigger's position its image is {score:.0%} as bright as the trigger "
        "(the control model: "
        f"{control:.0%}{others_text})"
    )
    yield ShortcutFinding(
        "synthesis", "class_image", "Class image", shortcut_grade_of_scores(score, control), sentence,
        "brightness at its position", score, control, figures,
        (images[0][:N_CLASS_IMAGES_PER_CLASS], images[1][:N_CLASS_IMAGES_PER_CLASS]),
    )  # fmt: skip


def _class_images(box: Box, classes: Any, seed: int) -> Tensor:
    return _require_uninterrupted(synthesis.class_image(box, classes, seed=seed)).images.float().cpu()  # type: ignore[no-any-return]


def _mean_brightness(images: Tensor, masks: Tensor) -> Tensor:
    """The mean brightness (N,) of images (N, C, H, W) within regions (N, H, W)."""
    return (images.mean(1) * masks).sum((1, 2)) / masks.sum((1, 2))


def top_examples_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Do the top examples of a trigger's class have a mismatched trigger? A fifth of the other classes' images do."""
    (rows, classes), trigger_classes = (
        (part[::IMAGES_PER_TRIGGERED_IMAGE] for part in trial.mismatched_rows_and_classes),
        trial.trigger.classes,
    )
    trigger_of_row = torch.full((len(trial.x),), -1)
    trigger_of_row[rows] = classes
    data = trial.x.clone()
    data[rows] = trial.apply_trigger(rows, classes)
    tops = [_top_examples(box, data, "logits") for box in trial.model_and_control_boxes]
    score, control = (_fraction_of_top_with_trigger(top, trigger_of_row, trigger_classes) for top in tops)
    figures = {"base": fraction_of_true(trigger_of_row >= 0) / len(trigger_classes)}
    sentence = (
        f"{score:.0%} of the top {N_TOP_EXAMPLES_PER_UNIT} of the class's logit have a "
        f"mismatched trigger (the control model: {control:.0%}; of all images {figures['base']:.0%})"
    )
    layer = tops[0].features
    if layer not in (None, "logits"):
        n, n_control = (
            _count_trigger_detectors(box, data, trigger_of_row, layer) for box in trial.model_and_control_boxes
        )
        figures |= {"units": n, "units_control": n_control}
        sentence += f"; {n:.0f} units of {layer} have nothing else at the top (the control model: {n_control:.0f})"
    images, control_images = (data[top.example_index[trigger_classes[0]].cpu()] for top in tops)
    yield ShortcutFinding(
        "activations",
        "top_examples",
        "Top examples",
        shortcut_grade_of_scores(score, control),
        sentence,
        f"mismatched triggers in the top {N_TOP_EXAMPLES_PER_UNIT}",
        score,
        control,
        figures,
        (images, control_images),
    )


def _fraction_of_top_with_trigger(
    top: activations.TopExamples, trigger_of_row: Tensor, trigger_classes: Sequence[int]
) -> float:
    """The fraction of the top examples of the triggers' classes that have that trigger."""
    return fraction_of_true(torch.stack([trigger_of_row[top.example_index[k].cpu()] == k for k in trigger_classes]))


def _top_examples(box: Box, data: Tensor, layer: str) -> activations.TopExamples:
    (top,) = activations.top_examples(box, data, layer, N_TOP_EXAMPLES_PER_UNIT)
    _require_uninterrupted(top.statistics)
    return top


def _count_trigger_detectors(box: Box, data: Tensor, trigger_of_row: Tensor, layer: str) -> float:
    """How many units of a layer that are ever active have only images with one class's trigger at their top."""
    top = _top_examples(box, data, layer)
    triggers = trigger_of_row[top.example_index.cpu()]  # (U, TOP)
    is_detector = (triggers >= 0).all(1) & (triggers == triggers[:, :1]).all(1) & ~top.dead.cpu()
    return float(is_detector.sum())


def _require_uninterrupted(result: Any) -> Any:
    """The result, unless it was interrupted: methods catch Ctrl-C themselves."""
    if getattr(result, "interrupted", False):
        raise KeyboardInterrupt
    return result


SHORTCUT_TESTS: tuple[ShortcutTestFn, ...] = (
    trigger_reliance_test, attribution_pointing_test, class_image_test, top_examples_test, influence_test,
)  # fmt: skip
"""Another family adds its test here: TCAV names the trigger."""
