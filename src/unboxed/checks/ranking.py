"""Which methods can be asked why this net answers so, and which of them to believe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..box import Box
from ..cards import Card, cards
from ..errors import InputError
from ..net.layers import Flops
from .methods import Method, Target
from .verdict import Verdict, name_of, verdict

WORK = 1e10  # FLOPs that the map of one input may take before a method is asked with fewer samples
LEAST, MOST = 100, 200  # samples of a method that draws any; runs of one that draws none
SUBSETS = 512  # that exact Shapley values take
ROWS = {"n_samples": 0, "window": 200, "n_steps": 100, "segments": 100}  # about how often such a method runs the net


def candidates(box: Box, work: float = WORK) -> dict[str, Method]:
    """{name: method} of all attribution methods that explain a score, with settings that this net's size allows.

    A large net is asked with fewer samples: as many as `work` FLOPs allow, never below 100; a method that can't do with
    so few is left out, and so is one that takes more than inputs and a target (as expected gradients takes references).
    Those come first that run the net least.
    """
    affordable = max(LEAST, int(work / flops(box)))
    found = _fitted(affordable)
    return {
        name: found[name]
        for name in sorted(found, key=lambda n: runs(found[n]))
        if runs(found[name]) <= max(affordable, MOST)
    }


def _fitted(affordable: int) -> dict[str, Method]:
    """The known methods that need no more than a box, inputs and a target."""
    found = {name: fitted(card, affordable) for name, card in known().items()}
    return {name: method for name, method in found.items() if not _more(method)}


def runs(method: Method) -> int:
    """About how often a method runs the net for the map of one input."""
    settings = inspect.signature(method).parameters
    samples = settings["n_samples"].default if "n_samples" in settings else 0
    every = SUBSETS if name_of(method) == "Shapley values" else 0
    return max([1, int(samples), every, *(n for name, n in ROWS.items() if name in settings and not samples)])


def known() -> dict[str, Card]:
    """The cards of the methods that explain a score, by the methods' names."""
    own = {card.method.__name__: card for card in cards() if card.family == "attribution"}
    return {name: card for name, card in own.items() if "target" in inspect.signature(card.method).parameters}


def named(box: Box, names: list[str]) -> dict[str, Method]:
    """The candidates of these names. Raises InputError that lists them."""
    every = _fitted(max(LEAST, int(WORK / flops(box))))
    if wrong := [name for name in names if name not in every]:
        raise InputError(f"there is no method {wrong[0]!r} to explain an answer; there are {', '.join(every)}")
    return {name: every[name] for name in names}


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
    """Of one input's way through the net; 1 where none are counted."""
    counter = Flops()  # type: ignore[no-untyped-call]
    x = box.inputs.sample(1, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    with counter:
        box(x)
    return float(max(1, counter.total))


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
    methods = candidates(box) if methods is None else methods
    found = {name: judge(box, x, method, target, seed=seed) for name, method in methods.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].rank))
