"""What the sections share: the box, the data as seen by it, the page's pictures, and what is found on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..box import Box
from ..checks.methods import Method
from ..checks.ranking import candidates, forward_flops
from ..checks.verdict import Verdict
from ..checks.verdict_cache import VerdictCache
from ..engine.read.channel_axes import channels_first_layers
from ..inputs.pixels import Pixels
from ..plots import colors
from .blocks import Block, Figure
from .input_nouns import InputNouns, nouns_for
from .pictures import PictureStore
from .source import ReportData
from .survey import Survey
from .untrained import randomize_all_layers
from .words import format_p, format_prob

MAX_EVIDENCE = 6  # examples on which methods are judged, at most
MAX_EVIDENCE_FLOPS = 6e7  # FLOPs of one look at all of them
FLOPS_PER_CALL = 2e6  # FLOPs that one CPU core does while a module is called
MAX_FLOPS_PER_MAP = 1e9  # FLOPs that a map of one of them may take, before a method is asked with fewer samples


@dataclass
class ReportContext:
    box: Box
    data: ReportData
    survey: Survey
    pictures: PictureStore
    judge: Box | None = None
    seed: int = 0
    command: str | None = None
    title_text: str = ""  # the page's first words
    headline: list[str] = field(default_factory=list)  # the sentences after them
    cover: list[Figure] = field(default_factory=list)  # the pictures beside them
    facts: dict[str, object] = field(default_factory=dict)  # for report.json
    interrupted: bool = False  # set by a section that got only a part of what it asked for
    verdict_cache: VerdictCache = field(default_factory=VerdictCache)  # verdicts, of an earlier report too

    @property
    def has_images(self) -> bool:
        return isinstance(self.box.inputs, Pixels)

    @property
    def input_nouns(self) -> InputNouns:
        """The nouns for this box's inputs."""
        return nouns_for(self.box.inputs)

    @cached_property
    def untrained(self) -> Box:
        """The same architecture without its training; raises what copying the model raises."""
        return randomize_all_layers(self.box, self.seed)

    @cached_property
    def channels_first(self) -> frozenset[str]:
        """The layers whose units are on axis 1."""
        return frozenset(row.path for row in channels_first_layers(self.box))

    @cached_property
    def candidates(self) -> dict[str, Method]:
        """The methods of attribution that can be asked of this model."""
        return candidates(self.box, MAX_FLOPS_PER_MAP)

    @cached_property
    def example_indices(self) -> list[int]:
        """Places of examples that differ in what became of them: a mistake, an undecided one, typical ones."""
        s = self.survey
        return list(dict.fromkeys([*s.misclassified[:1], *s.by_margin[:1], *s.typical]))

    @cached_property
    def evidence(self) -> Tensor:
        """The inputs on which methods are judged."""
        n_inputs = max(1, min(MAX_EVIDENCE, int(MAX_EVIDENCE_FLOPS / forward_flops(self.box))))
        return self.inputs(self.example_indices[:n_inputs])

    def verdict(self, name: str) -> Verdict:
        """On a method of attribution, found once, and read again where an earlier report found it."""
        return self.verdict_cache.verdict(self.box, self.evidence, self.candidates[name], seed=self.seed)

    def has_verdict(self, name: str) -> bool:
        """Whether the verdict on a method was found by an earlier report."""
        return self.verdict_cache.contains(self.box, self.evidence, self.candidates[name], seed=self.seed)

    def forward_flops(self, n: int) -> float:
        """FLOPs of one forward pass of n examples; a module's call counts as many as fit in its overhead.

        Budgets are in these, never in seconds: the same seed gives the same page on a busy machine.
        """
        calls = sum(row.n_calls for row in self.box.layers.leaves)
        return n * forward_flops(self.box) + FLOPS_PER_CALL * calls

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """The inputs (n, ...) at these places of the survey."""
        return self.data.read([self.survey.rows[p] for p in indices]).x

    def class_name(self, k: int) -> str:
        return self.survey.classes[k]

    def answer_text(self, index: int) -> str:
        """What the model answers, and how surely."""
        k = int(self.survey.answers[index])
        if self.is_single_number:
            return self.output_text(index, k)
        return f"{self.class_name(k)}, {self.output_text(index, k)}"

    @property
    def is_single_number(self) -> bool:
        """Whether the model gives one number, which names nothing."""
        return self.box.outputs == "regression" and len(self.survey.classes) == 1

    def answer_sentence(self, index: int) -> str:
        return f"gives {self.answer_text(index)}" if self.is_single_number else f"says {self.answer_text(index)}"

    def answer_title(self, index: int) -> str:
        """What the model answers, as the first line below an example."""
        if self.is_single_number:
            return f"gives {self.output_text(index, 0)}"
        return f"says {self.class_name(int(self.survey.answers[index]))}"

    def target_name(self, k: int) -> str:
        """The name of an output whose gradient is shown: where the answers are no and yes, there is one, of yes."""
        return "yes" if self.data.binary else self.class_name(k)

    def output_text(self, index: int, k: int) -> str:
        """The probability of class k, or the output where there is none."""
        value = float(self.survey.outputs[index, k])
        if self.box.outputs == "regression":
            return f"{value:.3g}"
        return (
            f"p\u00a0of\u00a0yes {format_prob(float(self.survey.outputs[index, 1]))}"
            if self.data.binary
            else format_p(value)
        )

    def example_lines(self, index: int, *, show_runner_up: bool = False) -> tuple[str, ...]:
        """The small lines below an example: how sure, what it is, what else it might be, which it is."""
        s, label = self.survey, self.label_name(index)
        lines = [] if self.is_single_number else [self.output_text(index, int(s.answers[index]))]
        if label is not None:
            lines.append(f"label {label}")
        if show_runner_up and len(s.classes) > 1 and not self.data.binary:
            k = int(s.runner_up[index])
            lines.append(f"or {self.class_name(k)}, {self.output_text(index, k)}")
        return (*lines, f"example {s.rows[index]}")

    def correctness_tone(self, index: int) -> str:
        return "" if self.survey.is_correct is None else ("good" if bool(self.survey.is_correct[index]) else "bad")

    def label_name(self, index: int) -> str | None:
        labels = self.survey.labels
        if labels is None or not self.survey.exclusive_classes:
            return None
        return self.class_name(int(labels[index]))

    def example_figure(self, index: int, x: Tensor, side: int = 112, *, show_runner_up: bool = False) -> Figure:
        """An input (C, H, W) with what the model says of it and what it is."""
        row = self.survey.rows[index]
        label = self.label_name(index)
        alt = f"input, example {row}: the model {self.answer_sentence(index)}"
        alt += f"; label {label}" if label is not None else ""
        picture = self.pictures.inline(colors.image_to_rgb(x), alt, side)
        return Figure(
            picture,
            self.answer_title(index),
            self.example_lines(index, show_runner_up=show_runner_up),
            self.correctness_tone(index),
        )


@dataclass(frozen=True)
class Section:
    """A part of the page. `build` gives its blocks; what it raises is told in its place.

    `needs`: "pixels" (inputs that are images), "classes" (outputs that exclude one another).
    """

    title: str
    slug: str
    build: Callable[[ReportContext], Sequence[Block]]
    needs: tuple[str, ...] = ()

    def reason_unfit(self, context: ReportContext) -> str | None:
        """Why this section can't be for this box, if so."""
        if "pixels" in self.needs and not context.has_images:
            return f"This section is for models of images alone; this one takes {context.input_nouns.inputs}."
        if "classes" in self.needs and context.box.outputs == "regression":
            return "This section is about classes; this model gives numbers (regression)."
        if "classes" in self.needs and len(context.box.classes) < 2:
            return "This section compares classes; this model has one output."
        return None


def tensors_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
