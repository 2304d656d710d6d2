"""Which methods can be asked why this model answers so, and which of them to believe."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..box import Box
from ..cards import Card, cards
from ..errors import InputError
from ..inputs.multi import MultiInput
from ..validation import check_seed
from .methods import Method, Target
from .verdict import N_STEPS, PAIRS, Verdict, name_of, verdict

WORK = 1e10  # FLOPs that the map of one input may take before a method is asked with fewer samples
LEAST, MOST = 100, 200  # samples of a method that draws any; runs of one that draws none
SUBSETS = 512  # that exact Shapley values take
ROWS = {"n_samples": 0, "window": 200, "n_steps": 100, "segments": 100}  # about how often they run it
FIRST = ("gradient", "grad_cam", "integrated_gradients", "smoothgrad", "lrp", "guided_backprop", "deep_lift",
         "occlusion", "lime", "kernel_shap", "gradient_x_input", "rise", "layer_cam", "guided_grad_cam")  # fmt: skip
"""Methods in the order in which they are asked, where not all can be: those that most people know."""


def candidates(box: Box, work: float = WORK) -> dict[str, Method]:
    """{name: method} of all attribution methods that explain a score, with settings that this model's size allows.

    A large model is asked with fewer samples: as many as `work` FLOPs allow, never below 100; a method that can't do
    with so few is left out, and so is one that takes more than inputs and a target (as expected gradients takes
    references), or, for a model of several inputs, one that marks only an image.
    """
    affordable = max(LEAST, int(work / flops(box)))
    found = {name: method for name, method in _fitted(affordable).items() if runs(method) <= max(affordable, MOST)}
    return {name: found[name] for name in sorted(found, key=_place) if _marks_all(box, known()[name])}


def _marks_all(box: Box, card: Card) -> bool:
    """Whether a map marks all that the model takes: of an image and a row, maps of images leave out the row."""
    return not (isinstance(box.inputs, MultiInput) and {"images", "pixels"} & {*card.needs})


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _fitted(affordable: int) -> dict[str, Method]:
    """The known methods that need no more than a box, inputs and a target."""
    found = {name: fitted(card, affordable) for name, card in known().items()}
    return {name: method for name, method in found.items() if not _more(method)}


def runs(method: Method) -> int:
    """About how often a method runs the model for the map of one input."""
    settings = inspect.signature(method).parameters
    samples = settings["n_samples"].default if "n_samples" in settings else 0
    every = SUBSETS if name_of(method) == "Shapley values" else 0
    return max([1, int(samples), every, *(n for name, n in ROWS.items() if name in settings and not samples)])


def cost(box: Box, method: Method, n: int) -> float:
    """About how many FLOPs the verdict on a method takes, by n inputs."""
    maps = n + max(n, PAIRS) + 2  # of the model, of models with random weights, of constant models
    return flops(box) * (2 * maps * runs(method) + 4 * N_STEPS * n)


def known() -> dict[str, Card]:
    """The cards of the methods that explain a score, by the methods' names."""
    own = {card.method.__name__: card for card in cards() if card.family == "attribution"}
    return {name: card for name, card in own.items() if "target" in inspect.signature(card.method).parameters}


def named(box: Box, names: list[str]) -> dict[str, Method]:
    """The methods of these names, or of their cards' names. Raises InputError with the nearest ones."""
    every = _fitted(max(LEAST, int(WORK / flops(box))))
    spelled = {_plain(word): name for name in every for word in (name, known()[name].name)}
    if wrong := [name for name in names if _plain(name) not in spelled]:
        raise InputError(f"no method {wrong[0]!r} explains an answer; {_near(wrong[0], spelled)}")
    return {name: every[name] for name in dict.fromkeys(spelled[_plain(name)] for name in names)}


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().replace("+", "plus") if c.isalnum())


def _near(name: str, spelled: Mapping[str, str]) -> str:
    near = dict.fromkeys(spelled[word] for word in difflib.get_close_matches(_plain(name), spelled, n=3))
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(dict.fromkeys(spelled.values()))}"


def fitted(card: Card, affordable: int) -> Method:
    """The method, with fewer samples than by default where those are more than affordable."""
    defaults = {name: p.default for name, p in inspect.signature(card.method).parameters.items()}
    samples = defaults.get("n_samples")
    return (
        partial(card.method, n_samples=affordable) if isinstance(samples, int) and samples > affordable else card.method
    )


def _more(method: Method) -> bool:
    """Whether a method needs more than a box, inputs and a target."""
    wanted = inspect.signature(method).parameters.values()
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in wanted) > 2


def flops(box: Box) -> float:
    """Of one input's way through the model; 1 where none are counted."""
    return max(1.0, box.flops)


def ranked(
    box: Box,
    x: Any,
    methods: Mapping[str, Method] | None = None,
    target: Target = None,
    *,
    seed: int = 0,
    judge: Callable[..., Verdict] = verdict,
) -> dict[str, Verdict]:
    """The verdict on each of {name: method} (default: all candidates), the most believable first.

    By grade; within one, by how little of the score is left when what the method marks is removed. `judge` may be
    `Remembered(...).verdict`.
    """
    methods, seed = candidates(box) if methods is None else methods, check_seed(seed)
    found = {name: judge(box, x, method, target, seed=seed) for name, method in methods.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].rank))
