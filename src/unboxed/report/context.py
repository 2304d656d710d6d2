"""What `find` of each section is given: the box, the data as the model predicts them, and what sections share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor

from ..box import Box
from ..checks.methods import AttributionMethodFn
from ..checks.ranking import candidates, estimated_verdict_flops, forward_flops
from ..checks.verdict import MAX_DRAWS_PER_TEST, NOT_APPLICABLE, Verdict
from ..checks.verdict_cache import VerdictCache
from ..engine.randomized import randomize_all_layers
from ..engine.read.channel_axes import channels_first_layers
from ..inputs.features import Features
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from ..model.output_advice import class_scores_problem_text
from .blocks import Block
from .chapters import MORE, Chapter
from .example_texts import ExampleTextsMixin
from .finding import Example, Finding
from .input_nouns import InputNouns, input_nouns_for
from .mean_row import MAX_ROWS_OF_MEAN, with_mean_as_baseline
from .source import ReportData
from .survey import Survey, evenly_spaced_indices, map_score_text
from .verdict_notes import verdict_or_failure
from .word_effects import require_text_inputs, word_effects

TRAINING_DATA_NEED, TEXTS_NEED, OUTPUT_VALUES_NEED = "training data", "texts", "or output values"  # of a section
GIVE_OUTPUT_VALUES_TEXT = "or data that say what the outputs should be: ub.report(box, (x, y), out)"
N_VERDICT_EXAMPLES, N_VERDICT_EXAMPLES_OF_LARGE_MODEL = 8, 4  # examples on which methods are judged
MAX_DRAWS_OF_LARGE_MODEL = 2  # per test of a verdict
N_TEXTS_TRIED_TO_FOLLOW = 8  # of which the one that shows most is followed
N_VERDICT_TEXTS = 12  # a text has few words, so that more of them decide
N_FOLLOWED_EXAMPLES, N_FOLLOWED_EXAMPLES_OF_LARGE_MODEL, MAX_FOLLOWED_ERRORS = 6, 3, 3  # that a reader can follow
MAX_FLOPS_OF_VERDICT_ON_ALL_EXAMPLES = 5e11  # of one verdict, above which the model counts as large
FLOPS_PER_ACTIVATION_BYTE = 20  # that one CPU core does while it reads and writes a byte of an activation
MODULE_CALL_OVERHEAD_FLOPS = 2e6  # FLOPs that one CPU core does while a module is called
MAX_FLOPS_PER_REPORT_MAP = 1e9  # FLOPs of a map of one of them, above which a method runs with fewer samples


class _VerdictSettings(TypedDict):
    seed: int
    max_draws: int


@dataclass
class ReportContext(ExampleTextsMixin):
    """What `Section.find` is given."""

    box: Box
    data: ReportData
    survey: Survey
    judge: Box | None = None
    seed: int = 0
    command: str | None = None
    training: Any = None  # labeled training data, or the `ModelTraining` that made the model
    verdict_cache: VerdictCache = field(default_factory=VerdictCache)  # verdicts, of an earlier report too
    example: int | None = None  # the index in the data of the example that is followed; None: the worst error
    verdict_flops_spent: float = 0.0  # by this report
    has_ranges_of_data: bool = False  # the bounds of columns are those of the data, as none are given

    @property
    def has_images(self) -> bool:
        return isinstance(self.box.inputs, Pixels)

    @property
    def has_texts(self) -> bool:
        return isinstance(self.box.inputs, Tokens)

    @property
    def input_nouns(self) -> InputNouns:
        """The nouns for this box's inputs."""
        return input_nouns_for(self.box.inputs)

    @cached_property
    def untrained(self) -> Box:
        """The same architecture without its training; raises what copying the model raises."""
        return randomize_all_layers(self.box, self.seed)

    @cached_property
    def channels_first(self) -> frozenset[str]:
        """The layers whose units are on axis 1."""
        return frozenset(row.path for row in channels_first_layers(self.box))

    @cached_property
    def candidates(self) -> dict[str, AttributionMethodFn]:
        """The attribution methods that can explain this model, with the data's mean row as the baseline of a table
        whose mean is not known otherwise."""
        methods = candidates(self.box, MAX_FLOPS_PER_REPORT_MAP)
        return with_mean_as_baseline(
            methods, self.box, lambda: self.inputs(evenly_spaced_indices(len(self.survey.rows), MAX_ROWS_OF_MEAN))
        )

    @cached_property
    def followed_index(self) -> int:
        """The index of the example that every section shows: the one asked for, else the most confident error, else the
        lowest margin, of texts that whose answer depends most on single words."""
        s = self.survey
        if self.example is not None:
            return s.rows.index(self.example)
        if self.has_texts and not s.misclassified and s.exclusive_classes:
            return self._clearest_text_index()
        return (s.misclassified or s.indices_by_margin)[0]

    def _clearest_text_index(self) -> int:
        """Of the lowest margin and typical texts, the one in which a single word counts most."""
        indices = list(dict.fromkeys([*self.survey.indices_by_margin[:1], *self.survey.typical_indices]))
        indices = indices[:N_TEXTS_TRIED_TO_FOLLOW]
        x = self.box.validate_inputs(self.inputs(indices))
        effects = word_effects(self.box, require_text_inputs(self.box), x, self.survey.predicted[indices].to(x.device))
        return indices[int(effects.clearness.argmax())]

    @cached_property
    def followed_indices(self) -> list[int]:
        """The examples that a reader can follow: that one, then errors, the lowest margin, and typical ones."""
        n = N_FOLLOWED_EXAMPLES_OF_LARGE_MODEL if self.is_large else N_FOLLOWED_EXAMPLES
        s = self.survey
        by_error = s.indices_by_margin if s.has_output_values else s.misclassified
        errors, typical = by_error[1:MAX_FOLLOWED_ERRORS], s.typical_indices[:N_FOLLOWED_EXAMPLES]
        return list(dict.fromkeys([*self.example_indices[:3], *errors, *typical]))[:n]

    @cached_property
    def example_indices(self) -> list[int]:
        """Indices of different examples: the followed one, the worst error, the lowest margin, typical ones."""
        s = self.survey
        first = [self.followed_index, *s.misclassified[:1], *s.indices_by_margin[:1]]
        return list(dict.fromkeys([*first, *s.typical_indices]))

    def typical_and_ambiguous_indices(self, max_examples: int) -> list[int]:
        """The indices of a typical example and of the one with the lowest margin, if they differ."""
        s = self.survey
        return list(dict.fromkeys([*s.typical_indices[:1], *s.indices_by_margin[:1]]))[:max_examples]

    @property
    def _n_verdict_examples(self) -> int:
        return N_VERDICT_TEXTS if self.has_texts else N_VERDICT_EXAMPLES

    @cached_property
    def is_large(self) -> bool:
        """Whether verdicts, and what is made of each followed example, must do with few examples."""
        flops = (estimated_verdict_flops(self.box, m, self._n_verdict_examples) for m in self.candidates.values())
        return min(flops, default=0.0) > MAX_FLOPS_OF_VERDICT_ON_ALL_EXAMPLES

    @cached_property
    def verdict_indices(self) -> list[int]:
        """The examples on which methods are judged: the report's examples, then others from all over the data."""
        n = self._n_verdict_examples
        others = evenly_spaced_indices(len(self.survey.rows), 2 * n)
        n = N_VERDICT_EXAMPLES_OF_LARGE_MODEL if self.is_large else n
        return list(dict.fromkeys([*self.example_indices[:n], *others]))[:n]

    @cached_property
    def verdict_inputs(self) -> Tensor:
        return self.inputs(self.verdict_indices)

    def verdict_flops(self, name: str) -> float:
        """About what the verdict on a method takes, in FLOPs; none where it is known. Layers of few FLOPs on large
        activations, such as depthwise convolutions, take as long as their memory does."""
        if self.is_verdict_cached(name):
            return 0.0
        n, max_draws = len(self.verdict_inputs), self._verdict_settings["max_draws"]
        return estimated_verdict_flops(self.box, self.candidates[name], n, max_draws) * self.memory_cost_factor

    @property
    def memory_cost_factor(self) -> float:
        """How many times as much a forward pass costs as its FLOPs: layers write and read their activations."""
        return 1 + FLOPS_PER_ACTIVATION_BYTE * self.box.profile.bytes_per_example / forward_flops(self.box)

    def verdict(self, name: str) -> Verdict:
        """The verdict on an attribution method, read from the cache where an earlier report has it."""
        flops, method, x = self.verdict_flops(name), self.candidates[name], self.verdict_inputs
        judge = partial(self.verdict_cache.verdict, self.box, x, method, **self._verdict_settings)
        found = verdict_or_failure(judge, name, len(x))
        self.verdict_flops_spent += flops if found.grade != NOT_APPLICABLE else 0.0
        return found

    def is_verdict_cached(self, name: str) -> bool:
        """Whether the verdict on a method is in the cache."""
        method = self.candidates[name]
        return self.verdict_cache.contains(self.box, self.verdict_inputs, method, **self._verdict_settings)

    @cached_property
    def _verdict_settings(self) -> _VerdictSettings:
        return {"seed": self.seed, "max_draws": MAX_DRAWS_OF_LARGE_MODEL if self.is_large else MAX_DRAWS_PER_TEST}

    def forward_flops(self, n_examples: int) -> float:
        """FLOPs of one forward pass of n examples; a module's call counts as many as fit in its overhead.

        Budgets are in these, never in seconds: the same seed gives the same page on a busy machine.
        """
        calls = sum(row.n_calls for row in self.box.layers.leaves)
        return n_examples * forward_flops(self.box) + MODULE_CALL_OVERHEAD_FLOPS * calls

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """The inputs (n, ...) at these indices of the survey."""
        return self.data.read([self.survey.rows[p] for p in indices]).x

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """The examples at these indices of the survey, with what the model predicts of them."""
        s, inputs = self.survey, self.inputs(indices) if len(indices) else ()
        texts = self.data.texts([s.rows[i] for i in indices]) if self.has_texts else [""] * len(indices)
        return [
            Example(
                s.rows[i],
                x,
                "" if self.is_regression else self.predicted_class_text(i),
                self.largest_output_text(i),
                self.label_name(i),
                self.runner_up_text(i),
                None if s.is_correct is None else bool(s.is_correct[i]),
                text,
                self.data.file_name(s.rows[i]),
                map_score_text(s, i),
                ("true value" + "s" * (len(s.classes) > 1)) if self.is_regression else "label",
            )
            for i, x, text in zip(indices, inputs, texts, strict=True)
        ]


FindingT = TypeVar("FindingT", bound=Finding)


@dataclass(frozen=True)
class Section(Generic[FindingT]):
    """A part of the report, in two halves: `find` computes, `show` presents.

    Args:
        title: Its heading, a question: "Why this prediction?".
        slug: Its name in the address of the page, in report.json and in `sections=`.
        find: `find(context) -> Finding`. Where there is nothing to find on this model it raises `NotApplicable` with
            the reason; any other error is printed in the section's place and costs no other section.
        show: `show(finding) -> blocks`, from the finding alone: neither the model nor the data are at hand.
        needs: "pixels" (inputs that are images), "pixels or table", "texts", "classes" (one row of class scores per
            example), "exclusive classes" (classes that exclude one another), "or output values" (in place of classes
            numbers, several labels or label maps, where the data have them), "training data". Without training data
            or texts, what needs them is left out where it is not asked for.
        objective_call: What does the same for other outputs, in Python, with {score} or {objective} in it.
        chapter: The chapter that it belongs to.
        best: `best(finding) -> blocks`: what is seen of it before it is opened, at most two rows of figures.
        texts: Whether it takes models of texts, too.

    Example:
        >>> from dataclasses import dataclass
        >>> import unboxed as ub
        >>> from unboxed.report import Finding, Section
        >>> from unboxed.report.blocks import Paragraph
        >>> @dataclass(frozen=True, eq=False, kw_only=True)
        ... class SizeFinding(Finding):
        ...     n_parameters: int
        >>> def find(context):
        ...     return SizeFinding(n_parameters=sum(p.numel() for p in context.box.model.parameters()))
        >>> def show(finding):
        ...     return [Paragraph(f"{finding.n_parameters:,} parameters.")]
        >>> size = Section("How large is it?", "size", find, show)
        >>> size.show(SizeFinding(n_parameters=1200))[0].text
        '1,200 parameters.'
    """

    title: str
    slug: str
    find: Callable[[ReportContext], FindingT]
    show: Callable[[FindingT], Sequence[Block]]
    needs: tuple[str, ...] = ()
    objective_call: str = ""
    chapter: Chapter = MORE
    best: Callable[[FindingT], Sequence[Block]] | None = None
    texts: bool = False

    def is_default_for(self, box: Box, *, has_training: bool) -> bool:
        """Whether a report on this box has it without being asked."""
        if TRAINING_DATA_NEED in self.needs and not has_training:
            return False
        return self._takes_texts if isinstance(box.inputs, Tokens) else TEXTS_NEED not in self.needs

    @property
    def _takes_texts(self) -> bool:
        return self.texts or TEXTS_NEED in self.needs

    def reason_not_applicable_or_empty(self, context: ReportContext) -> str:
        """Why this section does not apply to this box; "" where it does."""
        if TRAINING_DATA_NEED in self.needs and context.training is None:
            return "This section needs the training data: ub.report(..., training=(x, y))."
        if context.has_texts and not self._takes_texts:
            return "This section does not take texts."
        for need, what in {"pixels": "images", TEXTS_NEED: "texts"}.items():
            if need in self.needs and what != context.input_nouns.inputs:
                return f"This section needs a model that takes {what}; this one takes {context.input_nouns.inputs}."
        is_row_section = "pixels or table" in self.needs
        if is_row_section and not (context.has_images or isinstance(context.box.inputs, Features)):
            return (
                f"This section needs a model that takes images or a table; this one takes {context.input_nouns.inputs}."
            )
        takes_values = OUTPUT_VALUES_NEED in self.needs
        if takes_values and context.survey.has_output_values:
            return ""
        problem = class_scores_problem_text(
            context.box.output_reader,
            context.box.output_map_shape,
            exclusive="exclusive classes" in self.needs,
            objective_call=self.objective_call,
        )
        if problem and {"classes", "exclusive classes"} & set(self.needs):
            return f"This section {problem}{f', {GIVE_OUTPUT_VALUES_TEXT}' if takes_values else ''}."
        if "classes" in self.needs and len(context.box.classes) < 2:
            return "This section needs several classes; this model has one output."
        return ""


class _HasInterrupted(Protocol):
    @property
    def interrupted(self) -> bool: ...


InterruptibleResultT = TypeVar("InterruptibleResultT", bound=_HasInterrupted)


def require_uninterrupted(result: InterruptibleResultT) -> InterruptibleResultT:
    """The result, unless Ctrl-C cut it short: unfinished images beside finished ones would mislead."""
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def is_equal_tensor(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
