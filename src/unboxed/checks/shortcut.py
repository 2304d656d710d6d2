"""The planted shortcut: a model that goes by a mark in a corner. Which methods show it?

The acceptance test of every family. A twin of the model that learned from clean images is the control: what a method
draws there has nothing to do with the shortcut, for that model has none.
After Adebayo et al. 2020, "Debugging Tests for Model Explanations", arXiv:2011.05429.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .. import activations, synthesis
from ..box import Box
from ..cards import Card, cards
from ..errors import InputError, UnboxedError
from ..validation import check_seed, whole
from .methods import Method, drawn
from .planting import Mark
from .pointing import energy_inside, pointing_game
from .trial import APART, FAINT, SURE, Answers, Finding, Trial, answered, share, told_apart, verdict

HIGH = 0.5  # of the height of the peak on the model: a lower one on the control tells nothing of the mark
NEAR = 2  # pixels around the mark that still count as pointing at it: maps are as fine as their method
TOP, EVERY = 9, 5  # top examples, of data of which each fifth is marked
DRAWS = 4  # class images of a class
SETTINGS: Mapping[str, Mapping[str, Any]] = {"rise": {"n_samples": 1000}, "shapley": {"segments": ("squares", 10)}}
"""Of methods whose defaults take longer than so small an image needs."""
GIVEN: Mapping[str, Callable[[Trial], Any]] = {"references": lambda trial: trial.x}
"""What a method that takes it by this name is given: references that all bear the mark would hide it."""


@dataclass(frozen=True, eq=False)
class Shortcut:
    """All findings; `images` (S, C, H, W) with the marks of `classes` (S,) are what the first maps shown are of."""

    mark: Mark
    answers: Answers
    control: Answers
    findings: tuple[Finding, ...]
    images: Tensor
    classes: Tensor
    labels: Tensor  # (S,) what they are in truth
    predicted: tuple[Tensor, Tensor]  # (S,) each: what the model and the control say
    interrupted: bool

    def figures(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON takes it."""
        rows = [{k: v for k, v in vars(f).items() if k != "shown"} for f in self.findings]
        thresholds = {"sure": SURE, "faint": FAINT, "apart": APART, "near": NEAR, "high": HIGH}
        both = {"model": asdict(self.answers), "control": asdict(self.control)}
        return {
            "mark": asdict(self.mark), "answers": both, "thresholds": thresholds, "findings": rows,
            "interrupted": self.interrupted,
        }  # fmt: skip


Judge = Callable[[Trial], Iterator[Finding]]


def shortcut(
    model: Box,
    control: Box,
    x: Tensor,
    y: Tensor,
    mark: Mark,
    *,
    methods: Mapping[str, Method] | None = None,
    judges: Sequence[Judge] | None = None,
    examples: int = 12,
    seed: int = 0,
    watch: Callable[[Finding], object] | None = None,
) -> Shortcut:
    """Judge which methods show that `model` goes by the mark, which `control` has never seen.

    `x` (N, C, H, W) and `y` (N,) are held-out images without marks. Attribution explains the mark's class on as many
    falsely as rightly marked images, `examples` each, by `methods` {name: method(box, x, target)} (None: all that have
    a card). `judges` are by default one a family; `watch(finding)` is called after each finding. On Ctrl-C what was
    found so far is returned, `interrupted`.
    Raises InputError where the model did not learn the shortcut, or the control did: then nothing can be judged.
    """
    _alike(model, control, mark)
    x, y = control.accept(x).cpu(), control.labels(y, len(x)).cpu()
    trial = Trial(model, control, x, y, mark, methods, whole("examples", examples, least=2), check_seed(seed))
    if not len(trial.false[0]) or not len(trial.right[0]):
        raise InputError(f"wanted images of the marked classes {mark.classes} and of others; those of y are not both")
    answers, of_control = (answered(box, trial) for box in trial.both)
    told_apart(answers, of_control)
    findings, interrupted = list[Finding](), False
    try:
        for judge in JUDGES if judges is None else judges:
            for finding in judge(trial):
                findings.append(finding)
                if watch is not None:
                    watch(finding)
    except KeyboardInterrupt:
        interrupted = True
    images, classes, labels = (part[trial.shown] for part in (*trial.explained, trial.labels))
    predicted = model.predict(images).cpu(), control.predict(images).cpu()
    return Shortcut(mark, answers, of_control, tuple(findings), images, classes, labels, predicted, interrupted)


def _alike(model: Box, control: Box, mark: Mark) -> None:
    """Raise InputError unless both models take the marked images and know the marked classes."""
    for box in (model, control):
        box.one_class_each("the planted shortcut")
        if tuple(box.inputs.shape) != tuple(mark.shape):
            raise InputError(f"the mark is for images {mark.shape}; the model takes {tuple(box.inputs.shape)}")
        box.labels(mark.classes, len(mark.classes))


# -- one judge a family ----------------------------------------------------------------------------------------------


def occluding(trial: Trial) -> Iterator[Finding]:
    """Does the answer change with the mark alone? Covered where it is false, and put on where there is none."""
    rows, says = trial.false
    clean, marked = trial.x[rows], trial.marked(rows, says)
    gone, put = list[float](), list[float]()
    for box in trial.both:
        without, bearing = box.predict(clean).cpu(), box.predict(marked).cpu()
        covered = box.predict(trial.mark.covered(marked, says)).cpu()
        gone.append(share((bearing == says) & (covered != says)))
        put.append(share((without != says) & (bearing == says)))
    found, control = (min(pair) for pair in zip(gone, put, strict=True))
    said = (
        f"covering the mark takes its class's answer from {gone[0]:.0%} of falsely marked images, and putting it on "
        f"gives that answer to {put[0]:.0%} of others (the control model: {gone[1]:.0%} and {put[1]:.0%})"
    )
    figures = {"covered": gone[0], "covered_control": gone[1], "put_on": put[0], "put_on_control": put[1]}
    shown = (trial.mark.covered(*trial.explained)[trial.shown],) * 2
    yield Finding(
        "answers", "occluding", "Occluding the mark", verdict(found, control), said, "answers that follow it",
        found, control, figures, shown,
    )  # fmt: skip


def attributing(trial: Trial) -> Iterator[Finding]:
    """Does the map of the mark's class point at the mark? On the control model too, and as strongly?"""
    known = {c.method.__name__: c for c in cards() if c.family == "attribution"}
    methods = trial.methods
    for name, method in ({n: _ready(c, trial) for n, c in known.items()} if methods is None else methods).items():
        title = known[name].name if name in known else name
        try:
            yield _pointed(trial, name, title, method)
        except UnboxedError as error:
            yield Finding("attribution", name, title, "refused", str(error))


def _ready(card: Card, trial: Trial) -> Method:
    """A method with its own defaults; where it has none for something, as in its card's example."""
    parameters = signature(card.method).parameters
    rest = [p for p in list(parameters.values())[2:] if p.name != "target"]
    wanted = [p.name for p in rest if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if "target" not in parameters or any(name not in GIVEN for name in wanted):
        return partial(card.example, card.method)
    given = {name: make(trial) for name, make in GIVEN.items() if name in parameters}
    return partial(card.method, **given, **SETTINGS.get(card.method.__name__, {}))


def _pointed(trial: Trial, name: str, title: str, method: Method) -> Finding:
    x, classes = trial.explained
    masks, false = trial.mark.regions(classes, NEAR), slice(0, min(trial.examples, len(trial.false[0])))
    maps = [_risen(drawn(box, method, box.accept(x), classes.to(box.device)).float().cpu()) for box in trial.both]
    hits = [pointing_game(m, masks) for m in maps]
    high = maps[1].amax((1, 2, 3)) >= HIGH * maps[0].amax((1, 2, 3))
    energy = [energy_inside(m, masks).nan_to_num(0) for m in maps]
    found, control, lower = (share(h[false]) for h in (hits[0], hits[1] * high, hits[1]))
    figures = {
        "control_of_any_height": lower, "rightly": share(hits[0][false.stop :]),
        "rightly_control": share((hits[1] * high)[false.stop :]), "energy": share(energy[0][false]),
        "energy_control": share(energy[1][false]), "area": share(masks),
    }  # fmt: skip
    said = (
        f"its peak lies at the mark in {found:.0%} of falsely marked images, with {figures['energy']:.0%} of what is "
        f"positive; on the control model in {control:.0%}, and at under half the height in {lower - control:.0%} more"
    )
    shown = maps[0][trial.shown], maps[1][trial.shown]
    what = "peaks at a false mark"
    return Finding("attribution", name, title, verdict(found, control), said, what, found, control, figures, shown)


def _risen(maps: Tensor) -> Tensor:
    """Maps (N, 1, H, W), summed over channels; one that is above zero everywhere (RISE) is taken from its least on."""
    if maps.ndim != 4:
        raise InputError(f"the planted shortcut wants maps (N, C, H, W); got {tuple(maps.shape)}")
    maps = maps.sum(1, keepdim=True)
    return maps - maps.amin((2, 3), keepdim=True).clamp(min=0)


def drawing(trial: Trial) -> Iterator[Finding]:
    """Does the image of a marked class have its mark?"""
    goal = torch.tensor(trial.mark.classes).repeat_interleave(DRAWS)
    images = [_whole(synthesis.class_image(box, goal, seed=trial.seed)).images.float().cpu() for box in trial.both]
    found, control = (share(_ink(im, trial.mark.regions(goal))) for im in images)
    others = [k for k in range(trial.model.n_outputs) if k not in trial.mark.classes]
    figures, beside = {}, ""
    if others:
        drawn_others = _whole(synthesis.class_image(trial.model, others, seed=trial.seed)).images.float().cpu()
        ink = [share(_ink(drawn_others, trial.mark.region(k).expand(len(others), -1, -1))) for k in trial.mark.classes]
        figures["other_classes"] = sum(ink) / len(ink)
        beside = f"; images of classes without a mark: {figures['other_classes']:.0%}"
    said = (
        f"at the mark's place its image is {found:.0%} as bright as the mark (the control model: {control:.0%}{beside})"
    )
    yield Finding(
        "synthesis", "class_image", "Class image", verdict(found, control), said, "brightness at its place",
        found, control, figures, (images[0][:DRAWS], images[1][:DRAWS]),
    )  # fmt: skip


def _ink(images: Tensor, where: Tensor) -> Tensor:
    """The mean brightness (N,) of images (N, C, H, W) within regions (N, H, W)."""
    return (images.mean(1) * where).sum((1, 2)) / where.sum((1, 2))


def ranking(trial: Trial) -> Iterator[Finding]:
    """Are the top examples of a marked class's logit falsely marked? A fifth of the other classes' images are."""
    (rows, says), marks = (part[::EVERY] for part in trial.false), trial.mark.classes
    bears = torch.full((len(trial.x),), -1)
    bears[rows] = says
    data = trial.x.clone()
    data[rows] = trial.marked(rows, says)
    tops = [_top(box, data, "logits") for box in trial.both]
    own = [torch.stack([bears[top.index[k].cpu()] == k for k in marks]) for top in tops]  # (marks, TOP)
    found, control = map(share, own)
    hidden = tops[0].features
    units = [_detectors(box, data, bears, hidden) for box in trial.both] if hidden not in (None, "logits") else []
    figures = {"base": share(bears >= 0) / len(marks)}
    figures |= {"units": units[0], "units_control": units[1]} if units else {}
    said = (
        f"{found:.0%} of the top {TOP} of the class's logit bear the mark falsely (control model: {control:.0%}; of "
        f"all images {figures['base']:.0%})"
    )
    if units:
        said += f"; {units[0]:.0f} units of {hidden} have nothing else at the top (the control model: {units[1]:.0f})"
    best = [data[top.index[marks[0]].cpu()] for top in tops]
    yield Finding(
        "activations", "top_examples", "Top examples", verdict(found, control), said,
        f"falsely marked in top {TOP}", found, control, figures, (best[0], best[1]),
    )  # fmt: skip


def _top(box: Box, data: Tensor, layer: str) -> activations.TopExamples:
    (top,) = activations.top_examples(box, data, layer, TOP)
    _whole(top.statistics)
    return top


def _detectors(box: Box, data: Tensor, bears: Tensor, layer: str) -> float:
    """How many units of a layer that are ever active have but marked images, of one class, among their top."""
    top = _top(box, data, layer)
    said = bears[top.index.cpu()]  # (U, TOP)
    one = (said >= 0).all(1) & (said == said[:, :1]).all(1) & ~top.dead.cpu()
    return float(one.sum())


def _whole(found: Any) -> Any:
    """A result, if it was not cut short: methods keep Ctrl-C to themselves."""
    if getattr(found, "interrupted", False):
        raise KeyboardInterrupt
    return found


JUDGES: tuple[Judge, ...] = (occluding, attributing, drawing, ranking)
"""A family more is a line more: influence is to find the marked training images, TCAV to name the mark."""
