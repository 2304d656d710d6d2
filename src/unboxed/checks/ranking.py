"""Which methods can be asked why this model answers so, and which of them to believe."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..box import Box
from ..cards import Card, card_of, cards
from ..errors import InputError
from ..inputs.multi import MultiInput
from ..validation import check_seed
from .methods import Method, Target
from .verdict import DELETION_STEPS, MIN_RANDOMIZED_PAIRS, Verdict, verdict

MAX_FLOPS_PER_MAP = 1e10  # FLOPs that the map of one input may take before a method is asked with fewer samples
MIN_SAMPLES, MAX_RUNS = 100, 200  # samples of a method that draws any; runs of one that draws none


def candidates(box: Box, max_flops: float = MAX_FLOPS_PER_MAP) -> dict[str, Method]:
    """{name: method} of all attribution methods that explain a score, with settings that this model's size allows.

    A large model is asked with fewer samples: as many as `work` FLOPs allow, never below 100; a method that can't do
    with so few is left out, and so is one that takes more than inputs and a target (as expected gradients takes
    references), or, for a model of several inputs, one that marks only an image.
    """
    max_runs = max(MIN_SAMPLES, int(max_flops / forward_flops(box)))
    methods = {
        name: method
        for name, method in _affordable_methods(max_runs).items()
        if n_forwards(method) <= max(max_runs, MAX_RUNS)
    }
    return {name: method for name, method in methods.items() if _covers_all_inputs(box, attribution_cards()[name])}


def _covers_all_inputs(box: Box, card: Card) -> bool:
    """Whether a map marks all that the model takes: of an image and a row, maps of images leave out the row."""
    return not (isinstance(box.inputs, MultiInput) and {"images", "pixels"} & {*card.needs})


def _affordable_methods(max_runs: int) -> dict[str, Method]:
    """The known methods that need no more than a box, inputs and a target."""
    methods = {name: limit_samples(card, max_runs) for name, card in attribution_cards().items()}
    return {name: method for name, method in methods.items() if not _needs_more_arguments(method)}


def n_forwards(method: Method) -> int:
    """About how often a method runs the model for the map of one input; of one without a card, its `n_samples`."""
    parameters = inspect.signature(method).parameters.values()
    settings = {p.name: p.default for p in parameters if p.default is not p.empty}
    card = card_of(method)
    return max(1, int(card.n_runs(**settings) if card else settings.get("n_samples", 1)))


def verdict_flops(box: Box, method: Method, n: int) -> float:
    """About how many FLOPs the verdict on a method takes, by n inputs."""
    n_maps = n + max(n, MIN_RANDOMIZED_PAIRS) + 2  # of the model, of models with random weights, of constant models
    return forward_flops(box) * (2 * n_maps * n_forwards(method) + 4 * DELETION_STEPS * n)


def attribution_cards() -> dict[str, Card]:
    """The cards of the methods that explain a score, by the methods' names."""
    by_name = {card.method.__name__: card for card in cards() if card.family == "attribution"}
    return {name: card for name, card in by_name.items() if "target" in inspect.signature(card.method).parameters}


def find_methods(box: Box, names: list[str]) -> dict[str, Method]:
    """The methods of these names, or of their cards' names. Raises InputError with the nearest ones."""
    methods = _affordable_methods(max(MIN_SAMPLES, int(MAX_FLOPS_PER_MAP / forward_flops(box))))
    by_spelling = {_normalize_name(word): name for name in methods for word in (name, attribution_cards()[name].name)}
    if unknown := [name for name in names if _normalize_name(name) not in by_spelling]:
        raise InputError(f"no method {unknown[0]!r} explains an answer; {_suggest(unknown[0], by_spelling)}")
    return {name: methods[name] for name in dict.fromkeys(by_spelling[_normalize_name(name)] for name in names)}


def _normalize_name(name: str) -> str:
    return "".join(c for c in name.lower().replace("+", "plus") if c.isalnum())


def _suggest(name: str, by_spelling: Mapping[str, str]) -> str:
    matches = dict.fromkeys(
        by_spelling[word] for word in difflib.get_close_matches(_normalize_name(name), by_spelling, n=3)
    )
    return (
        f"did you mean {', '.join(matches)}?"
        if matches
        else f"there are {', '.join(dict.fromkeys(by_spelling.values()))}"
    )


def limit_samples(card: Card, max_samples: int) -> Method:
    """The method, with fewer samples than by default where those are more than affordable."""
    defaults = {name: p.default for name, p in inspect.signature(card.method).parameters.items()}
    samples = defaults.get("n_samples")
    return (
        partial(card.method, n_samples=max_samples)
        if isinstance(samples, int) and samples > max_samples
        else card.method
    )


def _needs_more_arguments(method: Method) -> bool:
    """Whether a method needs more than a box, inputs and a target."""
    parameters = inspect.signature(method).parameters.values()
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) > 2


def forward_flops(box: Box) -> float:
    """Of one input's way through the model; 1 where none are counted."""
    return max(1.0, box.flops_per_example)


def rank_methods(
    box: Box,
    x: Any,
    methods: Mapping[str, Method] | None = None,
    target: Target = None,
    *,
    seed: int = 0,
    verdict_fn: Callable[..., Verdict] = verdict,
) -> dict[str, Verdict]:
    """The verdict on each of {name: method} (default: all candidates), the most believable first.

    By grade; within one, by how little of the score is left when what the method marks is removed. `judge` may be
    `Remembered(...).verdict`.
    """
    methods, seed = candidates(box) if methods is None else methods, check_seed(seed)
    verdicts = {name: verdict_fn(box, x, method, target, seed=seed) for name, method in methods.items()}
    return dict(sorted(verdicts.items(), key=lambda item: item[1].rank))
