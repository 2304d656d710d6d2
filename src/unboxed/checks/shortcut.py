"""The planted shortcut: a model that goes by a mark in a corner. Which methods show it?

The acceptance test of every family. A twin of the model that learned from clean images is the control: what a method
draws there has nothing to do with the shortcut, for that model has none.
After Adebayo et al. 2020, "Debugging Tests for Model Explanations", arXiv:2011.05429.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .. import activations, synthesis
from ..box import Box
from ..cards import Card, cards
from ..errors import InputError, UnboxedError
from ..validation import check_int, check_seed
from .methods import Method, compute_map
from .planting import Trigger
from .pointing import energy_inside, pointing_game
from .shortcut_report import MIN_RELATIVE_PEAK, TOLERANCE_PIXELS, ShortcutReport
from .shortcut_trial import (
    ShortcutFinding,
    ShortcutTrial,
    check_shortcut_learned,
    fraction_true,
    grade_shortcut,
    trigger_rates,
)

N_TOP, TRIGGER_EVERY = 9, 5  # top examples, of data of which each fifth is marked
IMAGES_PER_CLASS = 4  # class images of a class
METHOD_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "rise": {"n_samples": 1000},
    "shapley": {"segments": ("squares", 10)},
}
"""Of methods whose defaults take longer than so small an image needs."""
REQUIRED_ARGUMENTS: Mapping[str, Callable[[ShortcutTrial], Any]] = {"references": lambda trial: trial.x}
"""What a method that takes it by this name is given: references that all bear the mark would hide it."""


ShortcutTest = Callable[[ShortcutTrial], Iterator[ShortcutFinding]]


def shortcut(
    model: Box,
    control: Box,
    x: Tensor,
    y: Tensor,
    trigger: Trigger,
    *,
    methods: Mapping[str, Method] | None = None,
    tests: Sequence[ShortcutTest] | None = None,
    n_examples: int = 12,
    seed: int = 0,
    callback: Callable[[ShortcutFinding], object] | None = None,
) -> ShortcutReport:
    """Judge which methods show that `model` goes by the mark, which `control` has never seen.

    `x` (N, C, H, W) and `y` (N,) are held-out images without marks. Attribution explains the mark's class on as many
    falsely as rightly marked images, `examples` each, by `methods` {name: method(box, x, target)} (None: all that have
    a card). `judges` are by default one a family; `watch(finding)` is called after each finding. On Ctrl-C what was
    found so far is returned, `interrupted`.
    Raises InputError where the model did not learn the shortcut, or the control did: then nothing can be judged.
    """
    _check_models(model, control, trigger)
    x, y = control.validate_inputs(x).cpu(), control.class_labels(y, len(x)).cpu()
    trial = ShortcutTrial(
        model, control, x, y, trigger, methods, check_int("n_examples", n_examples, minimum=2), check_seed(seed)
    )
    if not len(trial.mismatched[0]) or not len(trial.matched[0]):
        raise InputError(
            f"wanted images of the marked classes {trigger.classes} and of others; those of y are not both"
        )
    model_rates, control_rates = (trigger_rates(box, trial) for box in trial.boxes)
    check_shortcut_learned(model_rates, control_rates)
    findings, interrupted = list[ShortcutFinding](), False
    try:
        for test in SHORTCUT_TESTS if tests is None else tests:
            for finding in test(trial):
                findings.append(finding)
                if callback is not None:
                    callback(finding)
    except KeyboardInterrupt:
        interrupted = True
    images, classes, labels = (part[trial.figure_rows] for part in (*trial.explained_images, trial.explained_labels))
    predicted = model.predict(images).cpu(), control.predict(images).cpu()
    return ShortcutReport(
        trigger, model_rates, control_rates, tuple(findings), images, classes, labels, predicted, interrupted
    )


def _check_models(model: Box, control: Box, trigger: Trigger) -> None:
    """Raise InputError unless both models take the marked images and know the marked classes."""
    for box in (model, control):
        box.require_class_scores("the planted shortcut")
        if tuple(box.inputs.shape) != tuple(trigger.shape):
            raise InputError(f"the mark is for images {trigger.shape}; the model takes {tuple(box.inputs.shape)}")
        box.class_labels(trigger.classes, len(trigger.classes))


# -- one judge a family ----------------------------------------------------------------------------------------------


def occlusion_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Does the answer change with the mark alone? Covered where it is false, and put on where there is none."""
    rows, classes = trial.mismatched
    clean, triggered = trial.x[rows], trial.apply_trigger(rows, classes)
    covered_rates, applied_rates = list[float](), list[float]()
    for box in trial.boxes:
        clean_classes, triggered_classes = box.predict(clean).cpu(), box.predict(triggered).cpu()
        covered_classes = box.predict(trial.trigger.cover(triggered, classes)).cpu()
        covered_rates.append(fraction_true((triggered_classes == classes) & (covered_classes != classes)))
        applied_rates.append(fraction_true((clean_classes != classes) & (triggered_classes == classes)))
    score, control = (min(pair) for pair in zip(covered_rates, applied_rates, strict=True))
    sentence = (
        "covering the mark takes its class's answer from "
        f"{covered_rates[0]:.0%} of falsely marked images, and putting it on "
        f"gives that answer to {applied_rates[0]:.0%} of others (the "
        f"control model: {covered_rates[1]:.0%} and {applied_rates[1]:.0%})"
    )
    figures = {
        "covered": covered_rates[0],
        "covered_control": covered_rates[1],
        "put_on": applied_rates[0],
        "put_on_control": applied_rates[1],
    }
    images = (trial.trigger.cover(*trial.explained_images)[trial.figure_rows],) * 2
    yield ShortcutFinding(
        "answers",
        "occluding",
        "Occluding the mark",
        grade_shortcut(score, control),
        sentence,
        "answers that follow it",
        score,
        control,
        figures,
        images,
    )


def attribution_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Does the map of the mark's class point at the mark? On the control model too, and as strongly?"""
    attribution_cards = {c.method.__name__: c for c in cards() if c.family == "attribution"}
    methods = trial.methods
    for name, method in (
        {n: _with_defaults(c, trial) for n, c in attribution_cards.items()} if methods is None else methods
    ).items():
        title = attribution_cards[name].name if name in attribution_cards else name
        try:
            yield _pointing_finding(trial, name, title, method)
        except UnboxedError as error:
            yield ShortcutFinding("attribution", name, title, "refused", str(error))


def _with_defaults(card: Card, trial: ShortcutTrial) -> Method:
    """A method with its own defaults; where it has none for something, as in its card's example."""
    parameters = signature(card.method).parameters
    settings = [p for p in list(parameters.values())[2:] if p.name != "target"]
    required = [p.name for p in settings if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if "target" not in parameters or any(name not in REQUIRED_ARGUMENTS for name in required):
        return partial(card.example, card.method)
    kwargs = {name: make_argument(trial) for name, make_argument in REQUIRED_ARGUMENTS.items() if name in parameters}
    return partial(card.method, **kwargs, **METHOD_SETTINGS.get(card.method.__name__, {}))


def _pointing_finding(trial: ShortcutTrial, name: str, title: str, method: Method) -> ShortcutFinding:
    x, classes = trial.explained_images
    masks, mismatched = (
        trial.trigger.masks(classes, TOLERANCE_PIXELS),
        slice(0, min(trial.n_examples, len(trial.mismatched[0]))),
    )
    maps = [
        _subtract_minimum(compute_map(box, method, box.validate_inputs(x), classes.to(box.device)).float().cpu())
        for box in trial.boxes
    ]
    hits = [pointing_game(m, masks) for m in maps]
    is_high = maps[1].amax((1, 2, 3)) >= MIN_RELATIVE_PEAK * maps[0].amax((1, 2, 3))
    energy = [energy_inside(m, masks).nan_to_num(0) for m in maps]
    score, control, control_any_height = (fraction_true(h[mismatched]) for h in (hits[0], hits[1] * is_high, hits[1]))
    figures = {
        "control_of_any_height": control_any_height,
        "rightly": fraction_true(hits[0][mismatched.stop :]),
        "rightly_control": fraction_true((hits[1] * is_high)[mismatched.stop :]),
        "energy": fraction_true(energy[0][mismatched]),
        "energy_control": fraction_true(energy[1][mismatched]),
        "area": fraction_true(masks),
    }
    sentence = (
        f"its peak lies at the mark in {score:.0%} of falsely marked images, with {figures['energy']:.0%} of what is "
        f"positive; on the control model in {control:.0%}, and at under "
        f"half the height in {control_any_height - control:.0%} more"
    )
    images = maps[0][trial.figure_rows], maps[1][trial.figure_rows]
    quantity = "peaks at a false mark"
    return ShortcutFinding(
        "attribution", name, title, grade_shortcut(score, control), sentence, quantity, score, control, figures, images
    )


def _subtract_minimum(maps: Tensor) -> Tensor:
    """Maps (N, 1, H, W), summed over channels; one that is above zero everywhere (RISE) is taken from its least on."""
    if maps.ndim != 4:
        raise InputError(f"the planted shortcut wants maps (N, C, H, W); got {tuple(maps.shape)}")
    maps = maps.sum(1, keepdim=True)
    return maps - maps.amin((2, 3), keepdim=True).clamp(min=0)


def class_image_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Does the image of a marked class have its mark?"""
    classes = torch.tensor(trial.trigger.classes).repeat_interleave(IMAGES_PER_CLASS)
    images = [
        _require_complete(synthesis.class_image(box, classes, seed=trial.seed)).images.float().cpu()
        for box in trial.boxes
    ]
    score, control = (fraction_true(_mean_brightness(im, trial.trigger.masks(classes))) for im in images)
    others = [k for k in range(trial.model.n_outputs) if k not in trial.trigger.classes]
    figures, others_text = {}, ""
    if others:
        other_images = (
            _require_complete(synthesis.class_image(trial.model, others, seed=trial.seed)).images.float().cpu()
        )
        brightness = [
            fraction_true(_mean_brightness(other_images, trial.trigger.mask(k).expand(len(others), -1, -1)))
            for k in trial.trigger.classes
        ]
        figures["other_classes"] = sum(brightness) / len(brightness)
        others_text = f"; images of classes without a mark: {figures['other_classes']:.0%}"
    sentence = (
        f"at the mark's place its image is {score:.0%} as bright as "
        f"the mark (the control model: {control:.0%}{others_text})"
    )
    yield ShortcutFinding(
        "synthesis",
        "class_image",
        "Class image",
        grade_shortcut(score, control),
        sentence,
        "brightness at its place",
        score,
        control,
        figures,
        (images[0][:IMAGES_PER_CLASS], images[1][:IMAGES_PER_CLASS]),
    )


def _mean_brightness(images: Tensor, masks: Tensor) -> Tensor:
    """The mean brightness (N,) of images (N, C, H, W) within regions (N, H, W)."""
    return (images.mean(1) * masks).sum((1, 2)) / masks.sum((1, 2))


def top_examples_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Are the top examples of a marked class's logit falsely marked? A fifth of the other classes' images are."""
    (rows, classes), trigger_classes = (part[::TRIGGER_EVERY] for part in trial.mismatched), trial.trigger.classes
    trigger_of_row = torch.full((len(trial.x),), -1)
    trigger_of_row[rows] = classes
    data = trial.x.clone()
    data[rows] = trial.apply_trigger(rows, classes)
    tops = [_top_examples(box, data, "logits") for box in trial.boxes]
    has_own_trigger = [
        torch.stack([trigger_of_row[top.example_index[k].cpu()] == k for k in trigger_classes]) for top in tops
    ]  # (marks, TOP)
    score, control = map(fraction_true, has_own_trigger)
    layer = tops[0].features
    n_detectors = (
        [_count_detectors(box, data, trigger_of_row, layer) for box in trial.boxes]
        if layer not in (None, "logits")
        else []
    )
    figures = {"base": fraction_true(trigger_of_row >= 0) / len(trigger_classes)}
    figures |= {"units": n_detectors[0], "units_control": n_detectors[1]} if n_detectors else {}
    sentence = (
        f"{score:.0%} of the top {N_TOP} of the class's logit bear the mark falsely (control model: {control:.0%}; of "
        f"all images {figures['base']:.0%})"
    )
    if n_detectors:
        sentence += (
            f"; {n_detectors[0]:.0f} units of {layer} have nothing else "
            f"at the top (the control model: {n_detectors[1]:.0f})"
        )
    top_images = [data[top.example_index[trigger_classes[0]].cpu()] for top in tops]
    yield ShortcutFinding(
        "activations",
        "top_examples",
        "Top examples",
        grade_shortcut(score, control),
        sentence,
        f"falsely marked in top {N_TOP}",
        score,
        control,
        figures,
        (top_images[0], top_images[1]),
    )


def _top_examples(box: Box, data: Tensor, layer: str) -> activations.TopExamples:
    (top,) = activations.top_examples(box, data, layer, N_TOP)
    _require_complete(top.statistics)
    return top


def _count_detectors(box: Box, data: Tensor, trigger_of_row: Tensor, layer: str) -> float:
    """How many units of a layer that are ever active have but marked images, of one class, among their top."""
    top = _top_examples(box, data, layer)
    triggers = trigger_of_row[top.example_index.cpu()]  # (U, TOP)
    is_detector = (triggers >= 0).all(1) & (triggers == triggers[:, :1]).all(1) & ~top.dead.cpu()
    return float(is_detector.sum())


def _require_complete(result: Any) -> Any:
    """A result, if it was not cut short: methods keep Ctrl-C to themselves."""
    if getattr(result, "interrupted", False):
        raise KeyboardInterrupt
    return result


SHORTCUT_TESTS: tuple[ShortcutTest, ...] = (occlusion_test, attribution_test, class_image_test, top_examples_test)
"""A family more is a line more: influence is to find the marked training images, TCAV to name the mark."""
