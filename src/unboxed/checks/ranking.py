"""Which methods can explain this model's predictions, and which of them can be trusted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from ..argument_names import naming_arguments
from ..box import Box
from ..cards import Card, card_of, cards, find_card
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from ..parameters import InputBatch, Seed, Target
from ..settings import Above, Unit, check_settings, takes_texts
from ..table_views import TableViewsMixin
from ..validation import valid_seed
from .control_boxes import sharing_control_boxes
from .fill_agreement import fill_dependence_sentence, method_orders_by_fill
from .methods import AttributionMethodFn
from .undecided import undecided_legend
from .verdict import MAX_DRAWS_PER_TEST, Verdict, method_display_name, verdict

MethodsOrNames = Mapping[str, AttributionMethodFn] | Sequence[AttributionMethodFn | str] | AttributionMethodFn | str

DEFAULT_MAX_FLOPS_PER_MAP = 1e10  # per input; a method that takes more is given fewer samples
EXPENSIVE_METHOD_MIN_FORWARDS, EXPENSIVE_METHOD_MAX_DRAWS = 100, 2
MIN_SAMPLES_OF_LIMITED_METHOD, ALWAYS_ALLOWED_METHOD_FORWARDS = (
    100,
    200,
)  # samples of a method that samples; model runs of one that does not


@takes_texts
def candidates(
    box: Box,
    max_flops: Annotated[
        float, Above(0), Unit("FLOPs"), "Largest cost of one input's map, before samples are reduced."
    ] = DEFAULT_MAX_FLOPS_PER_MAP,
) -> dict[str, AttributionMethodFn]:
    """All attribution methods that can explain this model's scores, with settings that its size allows.

    Args:
        box: The opened model.
        max_flops: Largest cost of one input's map, before samples are reduced. Samples are never below 100; a method
            that cannot do with so few is left out.

    Returns:
        {name: method}, each called as `method(box, x, target)`. Left out are methods that need more than inputs and a
        target (`expected_gradients` needs references) and, for several inputs, those that explain images alone.

    Raises:
        InputError: for `max_flops` that is not above 0.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> methods = ub.checks.candidates(box)
        >>> "gradient" in methods, "expected_gradients" in methods
        (True, False)
    """
    check_settings(candidates, locals())
    card_by_name = attribution_cards()
    max_runs = max(MIN_SAMPLES_OF_LIMITED_METHOD, int(max_flops / forward_flops(box)))
    methods = {
        name: method
        for name, method in _methods_with_limited_samples(max_runs).items()
        if estimated_forwards_per_input(method) <= max(max_runs, ALWAYS_ALLOWED_METHOD_FORWARDS)
    }
    return {name: method for name, method in methods.items() if _covers_all_model_inputs(box, card_by_name[name])}


def first_choices(box: Box) -> dict[str, AttributionMethodFn]:
    """The few well-known candidates that a first look takes: those whose cards say so and that this model can have.

    Where some of them need what the model lacks, the next in order take their places.
    """
    card_by_name = attribution_cards()
    available = {name: m for name, m in candidates(box).items() if _may_apply(box, card_by_name[name])}
    by_choice = sorted(available, key=lambda name: not card_by_name[name].first_choice)
    n = sum(card.first_choice for card in card_by_name.values())
    chosen = {*by_choice[:n]}
    return {name: method for name, method in available.items() if name in chosen}


def _may_apply(box: Box, card: Card) -> bool:
    """Whether the card's needs rule the model out: images of a table, the attention of a convolutional model."""
    has_images = isinstance(box.inputs, Pixels) and len(box.inputs.shape) > 2
    return not ({"images", "pixels"} & {*card.needs} and not has_images) and "attention" not in card.needs


def _covers_all_model_inputs(box: Box, card: Card) -> bool:
    """Whether a map covers all inputs: of an image and a table row, methods for images leave out the row; of texts,
    whether the method takes them."""
    if isinstance(box.inputs, Tokens):
        return card.texts
    return not (isinstance(box.inputs, MultiInput) and {"images", "pixels"} & {*card.needs})


def _methods_with_limited_samples(max_samples: int) -> dict[str, AttributionMethodFn]:
    """The methods with cards that need no more than a box, inputs and a target."""
    methods = {name: method_with_limited_samples(card, max_samples) for name, card in attribution_cards().items()}
    return {name: method for name, method in methods.items() if not _needs_more_arguments(method)}


def estimated_forwards_per_input(method: AttributionMethodFn) -> int:
    """About how many model runs a method takes per input; without a card, its `n_samples`."""
    parameters = inspect.signature(method).parameters.values()
    settings = {p.name: p.default for p in parameters if p.default is not p.empty}
    card = card_of(method)
    return max(1, int(card.n_model_runs(**settings) if card else settings.get("n_samples", 1)))


def max_draws_of(method: AttributionMethodFn) -> int:
    """How many randomized models a method is compared with at most: few, where each takes many model runs."""
    is_cheap = estimated_forwards_per_input(method) < EXPENSIVE_METHOD_MIN_FORWARDS
    return MAX_DRAWS_PER_TEST if is_cheap else EXPENSIVE_METHOD_MAX_DRAWS


def estimated_verdict_flops(
    box: Box, method: AttributionMethodFn, n_examples: int, max_draws: int = MAX_DRAWS_PER_TEST
) -> float:
    """About how many FLOPs the verdict on a method takes with `n_examples` inputs."""
    n_maps_per_example = 10  # of the tests of a verdict, with their first draws
    n_removals_per_example = 120 + 20 * min(max_draws, 4)  # of the map's own curves; of each other example's map
    return (
        n_examples
        * forward_flops(box)
        * (2 * n_maps_per_example * estimated_forwards_per_input(method) + n_removals_per_example)
    )


def attribution_cards() -> dict[str, Card]:
    """The cards of the methods that explain a score, by method name."""
    by_name = {card.method.__name__: card for card in cards() if card.family == "attribution"}
    return {name: card for name, card in by_name.items() if "target" in card.settings}


def find_attribution_methods_by_name(box: Box, names: list[str]) -> dict[str, AttributionMethodFn]:
    """The methods of these names, or of their cards' names. Raises InputError with the nearest names."""
    methods = _methods_with_limited_samples(
        max(MIN_SAMPLES_OF_LIMITED_METHOD, int(DEFAULT_MAX_FLOPS_PER_MAP / forward_flops(box)))
    )
    among = [card for name, card in attribution_cards().items() if name in methods]
    keys = dict.fromkeys(find_card(name, among).key for name in names)
    return {key: methods[key] for key in keys}


def methods_by_name(box: Box, methods: MethodsOrNames) -> Mapping[str, AttributionMethodFn]:
    """{name: method} of what a user gives: that, or methods and names of some. Raises InputError with the nearest
    names."""
    if isinstance(methods, Mapping):
        return methods
    found = dict[str, AttributionMethodFn]()
    for method in [methods] if isinstance(methods, str) or callable(methods) else methods:
        if not callable(method):
            found |= find_attribution_methods_by_name(box, [method])
            continue
        card = card_of(method)
        found[card.key if card else method_display_name(method)] = method
    return found


def method_with_limited_samples(card: Card, max_samples: int) -> AttributionMethodFn:
    """The method, with at most `max_samples` samples where its default is more."""
    defaults = {name: p.default for name, p in inspect.signature(card.method).parameters.items()}
    samples = defaults.get("n_samples")
    return (
        partial(card.method, n_samples=max_samples)
        if isinstance(samples, int) and samples > max_samples
        else card.method
    )


def _needs_more_arguments(method: AttributionMethodFn) -> bool:
    """Whether a method needs more than a box, inputs and a target."""
    parameters = inspect.signature(method).parameters.values()
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) > 2


def forward_flops(box: Box) -> float:
    """FLOPs of one input's forward pass; 1 where none are counted."""
    return max(1.0, box.flops_per_example)


class MethodRanking(dict[str, Verdict], TableViewsMixin):
    """Verdicts by method, the most trustworthy first. Each verdict has its own pictures."""

    @property
    def method_orders_by_fill(self) -> dict[str, list[str]]:
        """{fill: the methods by their relevance gain with it, the largest first}."""
        return method_orders_by_fill(self)

    def notes(self) -> list[str]:
        """What is to be said of the order, and of verdicts that are undecided."""
        return [note for note in (fill_dependence_sentence(self), undecided_legend(self.values())) if note]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the evidence."""
        return {name: v.to_dict() for name, v in self.items()}

    def __str__(self) -> str:
        return "\n".join([*(f"{v.method}: {v.badge} ({v.reason})" for v in self.values()), *self.notes()])


@takes_texts
@naming_arguments
def rank_methods(
    box: Box,
    x: InputBatch,
    methods: Annotated[
        MethodsOrNames | None, "Methods to rank, {name: function (box, x, target)}, or a list of functions and names."
    ] = None,
    target: Target = None,
    *,
    seed: Seed = 0,
    verdict_fn: Annotated[Callable[..., Verdict], "Function that judges a method, called like `verdict`."] = verdict,
) -> MethodRanking:
    """The verdict on each of several methods, the most trustworthy first.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        methods: Methods to rank, {name: function (box, x, target)}, or a list of functions and names. None takes all
            `candidates`.
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        seed: Seed of all random draws: same seed, same result.
        verdict_fn: Function that judges a method, called like `verdict`. `VerdictCache(...).verdict` reuses verdicts.

    Returns:
        A `MethodRanking`: a dict {name: verdict}, by grade, then by the relevance gain of removal. Printed, it also
        says whether the order depends on what removed parts are filled with (`method_orders_by_fill`).

    Raises:
        InputError: for inputs or a target that do not fit, and a method that does not exist.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(8)
        >>> methods = {"constant": lambda box, x, target: 0 * x, "gradient": ub.attribution.gradient}
        >>> verdicts = ub.checks.rank_methods(box, x, methods)
        >>> print(verdicts)
        Gradient: passes (depends on the model; marks what matters)
        <lambda>: fails (constant map)
        All fills give the same order by relevance gain.
    """
    chosen, seed = candidates(box) if methods is None else methods_by_name(box, methods), valid_seed(seed)
    with sharing_control_boxes(box):
        verdicts = {name: verdict_fn(box, x, method, target, seed=seed) for name, method in chosen.items()}
    return MethodRanking(sorted(verdicts.items(), key=lambda item: item[1].rank))
