"""Why this prediction: the maps of one input by several methods, and which of them can be trusted."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from .argument_names import naming_arguments
from .box import Box
from .cards import Card, card_of, cards
from .checks.control_boxes import sharing_control_boxes
from .checks.methods import AttributionMethodFn, compute_attribution, resolve_target, with_baseline
from .checks.ranking import MethodsOrNames, candidates, first_choices, max_draws_of, methods_by_name
from .checks.verdict import Verdict, method_display_name
from .checks.verdict_cache import VerdictCache
from .engine.attribution_result import Attribution, fields_of_inputs
from .engine.perturb.baselines import Baseline
from .engine.perturb.baselines import baseline as baseline_of
from .engine.read.class_labels import box_with_names_of_data, readable_output_names
from .engine.read.examples import open_image_folder
from .engine.results import ResultMixin
from .errors import InputError, UnboxedError
from .inputs.labels import readable_class_names
from .inputs.tokens import Tokens
from .objectives import Objective, mean_over_positions
from .validation import valid_seed

N_TOP_OUTPUTS = 3  # that are shown
LARGE_MODEL_MIN_FLOPS, LARGE_MODEL_MAX_DRAWS = 1e8, 1  # of a forward pass, from which methods are compared with few
MethodChoice = MethodsOrNames | Literal["all"] | None


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ResultMixin):
    """The maps of one input and the verdicts on their methods, the most trustworthy first."""

    returns: ClassVar[str] = "attribution"

    target: str  # the class, or output, that is explained
    versus: str | None  # the class in whose place it is; None where the target alone is explained
    top_outputs: Mapping[str, float]  # the largest probabilities (of regression, outputs)
    is_regression: bool
    names: Mapping[str, str]  # {method: its written name}
    maps: Mapping[str, Attribution]  # {method: (1, C or 1, H, W) or as the input}, of those that could be made
    verdicts: Mapping[str, Verdict]  # {method: verdict}, of those that are judged
    input: Any = field(repr=False)  # (1, ...), in the box's units
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)  # with others than a method's own
    side_maps: Mapping[str, Mapping[str, Attribution]] = field(
        default_factory=dict, repr=False
    )  # {class: maps}, of two
    columns: tuple[str, ...] = field(default=(), repr=False)  # of a table
    is_mean_over_positions: bool = field(default=False, repr=False)  # of the outputs of a label map
    has_labels: bool = field(default=False, repr=False)  # yes/no labels, of which an input has any number
    interrupted: bool = False

    def __repr__(self) -> str:
        why = f"why {self.target}{f', not {self.versus}' if self.versus else ''}"
        badges = ", ".join(f"{self.names[name]} {v.badge}" for name, v in [*self.verdicts.items()][:3])
        rest = ", ..." * (len(self.verdicts) > 3)
        return f"Explanation({why}: {badges}{rest})"

    @property
    def question(self) -> str:
        """ "Why cat?", "Why cat and not dog?"."""
        return f"Why {self.target}{f' and not {self.versus}' if self.versus else ''}?"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "question": self.question,
            "of": self.target,
            "versus": self.versus,
            "outputs": dict(self.top_outputs),
            "interrupted": self.interrupted,
            "methods": {n: self._method_dict(n) for n in self.names if n in self.verdicts or n in self.maps},
        }

    def _method_dict(self, name: str) -> dict[str, Any]:
        verdict = self.verdicts.get(name)
        judged = {"method": self.names[name], "grade": None} if verdict is None else verdict.to_dict()
        return {**judged, "settings": self.settings.get(name, "")}


@naming_arguments
def explain(
    box: Box,
    x: Any,
    target: Any = None,
    *,
    versus: Any = None,
    methods: MethodChoice = None,
    baseline: Baseline = None,
    seed: int = 0,
    verdict_cache: VerdictCache | None = None,
    on_progress: Callable[[Explanation], None] | None = None,
    quiet: bool = True,
) -> Explanation:
    """Explain the prediction for one input by several methods, and rank the methods by their verdicts.

    Use a method of `ub.attribution` for many inputs, and `ub.checks.rank_methods` to judge methods on more than one:
    of one input, only what is clear is decided. The result shows itself; `.save("why.html")` is a page to send.

    Args:
        box: The opened model.
        x: One input (1, ...) in the box's units: an image (1, C, H, W) in [0, 1], its path, or a row of a table.
        target: The class to explain, by name or number. None is the predicted one.
        versus: Another class: the maps then show what speaks for the target and against this one.
        methods: Methods or their names; "all"; or {name: function (box, x, target)}. None takes five well-known ones.
        baseline: What those methods compare x with that take a baseline (`Baseline`): for a table whose model
            normalizes the data's mean row, `frame.mean()`. Removed columns become it, too. None is each method's own.
        seed: Seed of all random draws: same seed, same result.
        verdict_cache: Verdicts that are known already. None starts without any.
        on_progress: Called with what there is after each map and each verdict.
        quiet: No progress bar.

    Returns:
        An `Explanation`: `maps` and `verdicts` by method, the most trustworthy first. Ctrl-C keeps what there is.

    Raises:
        InputError: for more than one input, a class or method that does not exist, or a baseline that does not fit x.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(1)
        >>> why = ub.explain(box, x, methods=["gradient", "guided_backprop"], versus=8)
        >>> why.question, sorted(why.maps), why.interrupted
        ('Why 6 and not 8?', ['gradient', 'guided_backprop'], False)
    """
    x = open_image_folder(box, x)
    box = box_with_names_of_data(box, x)
    x, seed = box.validate_inputs(x), valid_seed(seed)
    if len(x) != 1:
        raise InputError(f"x must be one input (1, ...); got {len(x)} inputs")
    if baseline is not None:
        baseline_of(box, x, baseline)  # refused here, once, and not by each method
    chosen = _with_baseline(resolve_methods(box, methods), baseline)
    run = _ExplanationBuilder(box, x, target, versus, chosen, seed, verdict_cache or VerdictCache(), baseline)
    run.run(None if on_progress is None else lambda: on_progress(run.explanation()), quiet=quiet)
    return run.explanation()


def resolve_methods(box: Box, methods: MethodChoice) -> Mapping[str, AttributionMethodFn]:
    """{name: method} of a choice of methods. Raises InputError with the nearest names."""
    if methods is None:
        return first_choices(box)
    if methods == "all":
        return candidates(box)
    return methods_by_name(box, methods)


def _with_baseline(methods: Mapping[str, AttributionMethodFn], baseline: Any) -> Mapping[str, AttributionMethodFn]:
    """The methods, with the baseline where one is given. Raises InputError where none of them takes one."""
    if baseline is None:
        return methods
    changed = with_baseline(methods, baseline)
    if all(changed[name] is method for name, method in methods.items()):
        raise InputError(f"none of these methods takes a baseline: {', '.join(methods)}")
    return changed


class MethodRun:
    """The maps of several methods for inputs (N, ...) and the verdicts on them, in the making."""

    def __init__(
        self, box: Box, x: Tensor, score: Any, methods: Mapping[str, AttributionMethodFn], seed: int,
        verdict_cache: VerdictCache, baseline: Baseline = None,
    ) -> None:  # fmt: skip
        self.box, self.x, self.score, self.methods = box, x, score, methods
        self.seed, self.verdict_cache, self.baseline = seed, verdict_cache, baseline
        self.names = {name: _card_or_display_name(method) for name, method in methods.items()}
        self.maps: dict[str, Attribution] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.interrupted = False

    def run(self, on_progress: Callable[[], None] | None = None, *, quiet: bool) -> None:
        """All maps, then all verdicts. Ctrl-C keeps what there is."""
        try:
            with (
                sharing_control_boxes(self.box),
                tqdm(total=2 * len(self.methods), disable=quiet, file=sys.stderr, leave=False) as bar,
            ):
                for step in (self.add_map, self.add_verdict):  # all maps first: they are seen at once
                    for name in self.methods:
                        bar.set_description(f"{self.names[name]}: {step.__doc__}")
                        step(name)
                        bar.update()
                        if on_progress is not None:
                            on_progress()
        except KeyboardInterrupt:
            self.interrupted = True

    @property
    def judged(self) -> list[str]:
        """The methods that are judged, the most trustworthy first."""
        return sorted(self.verdicts, key=lambda name: self.verdicts[name].rank)

    def add_map(self, name: str) -> None:
        """its map"""
        with suppress(UnboxedError):  # its verdict says why
            self.maps[name] = compute_attribution(self.box, self.methods[name], self.x, self.score)

    def add_verdict(self, name: str) -> None:
        """can it be trusted?"""
        method = self.methods[name]
        self.verdicts[name] = self.verdict_cache.verdict(
            self.box, self.x, method, self.score, max_draws=max_draws_for_one_input(self.box, method),
            map_=self.maps.get(name), baseline=self.baseline, seed=self.seed,
        )  # fmt: skip


class _ExplanationBuilder(MethodRun):
    """An explanation in the making."""

    def __init__(
        self, box: Box, x: Tensor, target: Any, versus: Any, methods: Mapping[str, AttributionMethodFn], seed: int,
        verdict_cache: VerdictCache, baseline: Baseline,
    ) -> None:  # fmt: skip
        super().__init__(box, x, None, methods, seed, verdict_cache, baseline)
        self.classes = [int(resolve_target(box, x, target)[0])]
        if versus is not None:
            self.classes.append(int(resolve_target(box, x, versus)[0]))
            if self.classes[0] == self.classes[1]:
                raise InputError(f"target and versus are both {box.classes[self.classes[0]]!r}: give another class")
        self.score, self.top_outputs = self._score(), _top_outputs(box, x, self.classes)
        self.side_maps: dict[str, dict[str, Attribution]] = {
            readable_class_names(box.classes)[k]: {} for k in self.classes[1:] and self.classes
        }

    def _score(self) -> Any:
        """The class (1,), or the difference of two classes' scores."""
        if len(self.classes) == 1:
            return torch.tensor(self.classes, device=self.box.device)
        target, versus = (self.box.objective(k, 1) for k in self.classes)
        difference: Objective = target - versus
        return difference

    def add_map(self, name: str) -> None:
        """its map"""
        super().add_map(name)
        with suppress(UnboxedError):
            for k in self.classes[1:] and self.classes:
                one = torch.tensor([k], device=self.box.device)
                self.side_maps[readable_class_names(self.box.classes)[k]][name] = compute_attribution(
                    self.box, self.methods[name], self.x, one
                )

    def _restored(self, maps: Mapping[str, Attribution]) -> dict[str, Attribution]:
        """Packed maps in the structure of the inputs, with them: as their methods give them."""
        known = {**fields_of_inputs(self.box, self.x), "target": self.score}
        is_text = isinstance(self.box.inputs, Tokens)  # whose maps are (1, T)
        return {
            name: Attribution(
                m.map, **vars(m) | known | ({} if is_text else {"map": self.box.restore_structure(m.map)})
            )
            for name, m in maps.items()
        }

    def explanation(self) -> Explanation:
        """What there is so far, the most trustworthy first; methods that are not judged yet come last."""
        judged = self.judged
        order = [*judged, *(name for name in self.methods if name not in self.verdicts)]
        target, *rest = (readable_output_names(self.box)[k] for k in self.classes)
        return Explanation(
            target=target, versus=rest[0] if rest else None, top_outputs=self.top_outputs,
            is_regression=self.box.outputs == "regression", names={n: self.names[n] for n in order},
            maps=self._restored({n: self.maps[n] for n in order if n in self.maps}),
            verdicts={n: self.verdicts[n] for n in judged}, input=self.box.restore_structure(self.x),
            side_maps={c: self._restored(m) for c, m in self.side_maps.items()},
            settings={n: partial_settings_text(self.methods[n]) for n in order}, interrupted=self.interrupted,
            columns=tuple(map(str, getattr(self.box.inputs, "names", ()))),
            is_mean_over_positions=bool(self.box.output_map_shape), has_labels=self.box.outputs == "multilabel",
        )  # fmt: skip


def max_draws_for_one_input(box: Box, method: AttributionMethodFn) -> int:
    """How many randomized models a method's map of one input is compared with: few where that takes long."""
    return LARGE_MODEL_MAX_DRAWS if box.flops_per_example >= LARGE_MODEL_MIN_FLOPS else max_draws_of(method)


def card_of_method(explanation: Explanation, name: str) -> Card | None:
    """The card of one of its methods, where that has one."""
    return next((card for card in cards("attribution") if card.name == explanation.names[name]), None)


def _card_or_display_name(method: AttributionMethodFn) -> str:
    card = card_of(method)
    return card.name if card else method_display_name(method)


def partial_settings_text(method: AttributionMethodFn) -> str:
    """The settings of a `functools.partial`."""
    keywords = method.keywords if isinstance(method, partial) else {}
    settings = ", ".join(f"{name}={_setting_text(value)}" for name, value in keywords.items())
    return f" (with {settings})" if settings else ""


def _setting_text(value: Any) -> str:
    """The value, cut short; of an array its shape."""
    if shape := getattr(value, "shape", ()):
        return f"values {tuple(shape)}"
    return value if isinstance(value, str) else reprlib.repr(value)


def _top_outputs(box: Box, x: Tensor, explained: Sequence[int]) -> dict[str, float]:
    """The largest outputs, and those that are explained."""
    logits = box(x)
    values = mean_over_positions(logits if box.outputs == "regression" else box.probs_from_logits(logits))[0]  # (K,)
    largest = values.topk(min(N_TOP_OUTPUTS, len(values))).indices.tolist()
    names = readable_output_names(box)
    return {names[k]: float(values[k]) for k in dict.fromkeys([*largest, *explained])}
