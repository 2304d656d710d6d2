"""What the sections share: the box, the data as seen by it, the page's pictures, and what is found on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..box import Box
from ..checks.methods import Method
from ..checks.ranking import candidates, flops
from ..checks.remembered import Remembered
from ..checks.verdict import Verdict
from ..engine.read.channel_axes import channels_first
from ..inputs.pixels import Pixels
from ..plots import colors
from .blocks import Block, Figure
from .kinds import Kind, kind_of
from .pictures import Pictures
from .source import Source
from .survey import Survey
from .untrained import untrained
from .words import p_of, prob

JUDGED = 6  # examples on which methods are judged, at most
SMALL = 6e7  # FLOPs of one look at all of them
CALL = 2e6  # FLOPs that one CPU core does while a module is called
WORK = 1e9  # FLOPs that a map of one of them may take, before a method is asked with fewer samples


@dataclass
class Context:
    box: Box
    source: Source
    survey: Survey
    pictures: Pictures
    judge: Box | None = None
    seed: int = 0
    command: str | None = None
    answer: str = ""  # the page's first words
    headline: list[str] = field(default_factory=list)  # the sentences after them
    cover: list[Figure] = field(default_factory=list)  # the pictures beside them
    facts: dict[str, object] = field(default_factory=dict)  # for report.json
    interrupted: bool = False  # set by a section that got only a part of what it asked for
    remembered: Remembered = field(default_factory=Remembered)  # verdicts, of an earlier report too

    @property
    def images(self) -> bool:
        return isinstance(self.box.inputs, Pixels)

    @property
    def kind(self) -> Kind:
        """The nouns for this box's inputs."""
        return kind_of(self.box.inputs)

    @cached_property
    def untrained(self) -> Box:
        """The same architecture without its training; raises what copying the model raises."""
        return untrained(self.box, self.seed)

    @cached_property
    def channels_first(self) -> frozenset[str]:
        """The layers whose units are on axis 1."""
        return frozenset(row.path for row in channels_first(self.box))

    @cached_property
    def candidates(self) -> dict[str, Method]:
        """The methods of attribution that can be asked of this model."""
        return candidates(self.box, WORK)

    @cached_property
    def examples(self) -> list[int]:
        """Places of examples that differ in what became of them: a mistake, an undecided one, typical ones."""
        s = self.survey
        return list(dict.fromkeys([*s.mistakes[:1], *s.undecided[:1], *s.typical]))

    @cached_property
    def evidence(self) -> Tensor:
        """The inputs on which methods are judged."""
        most = max(1, min(JUDGED, int(SMALL / flops(self.box))))
        return self.inputs(self.examples[:most])

    def verdict(self, name: str) -> Verdict:
        """On a method of attribution, found once, and read again where an earlier report found it."""
        return self.remembered.verdict(self.box, self.evidence, self.candidates[name], seed=self.seed)

    def knows(self, name: str) -> bool:
        """Whether the verdict on a method was found by an earlier report."""
        return self.remembered.knows(self.box, self.evidence, self.candidates[name], seed=self.seed)

    def work(self, n: int) -> float:
        """FLOPs of one forward pass of n examples; a module's call counts as many as fit in its overhead.

        Budgets are in these, never in seconds: the same seed gives the same page on a busy machine.
        """
        calls = sum(row.calls for row in self.box.layers.leaves)
        return n * flops(self.box) + CALL * calls

    def inputs(self, places: Sequence[int]) -> Tensor:
        """The inputs (n, ...) at these places of the survey."""
        return self.source.take([self.survey.rows[p] for p in places]).x

    def name(self, k: int) -> str:
        return self.survey.classes[k]

    def says(self, place: int) -> str:
        """What the model answers, and how surely."""
        k = int(self.survey.answers[place])
        if self.number:
            return self.value(place, k)
        return f"{self.name(k)}, {self.value(place, k)}"

    @property
    def number(self) -> bool:
        """Whether the model gives one number, which names nothing."""
        return self.box.outputs == "regression" and len(self.survey.classes) == 1

    def told(self, place: int) -> str:
        return f"gives {self.says(place)}" if self.number else f"says {self.says(place)}"

    def title(self, place: int) -> str:
        """What the model answers, as the first line below an example."""
        if self.number:
            return f"gives {self.value(place, 0)}"
        return f"says {self.name(int(self.survey.answers[place]))}"

    def target_name(self, k: int) -> str:
        """The name of an output whose gradient is shown: where the answers are no and yes, there is one, of yes."""
        return "yes" if self.source.binary else self.name(k)

    def value(self, place: int, k: int) -> str:
        """The probability of class k, or the output where there is none."""
        value = float(self.survey.outputs[place, k])
        if self.box.outputs == "regression":
            return f"{value:.3g}"
        return f"p\u00a0of\u00a0yes {prob(float(self.survey.outputs[place, 1]))}" if self.source.binary else p_of(value)

    def facts_of(self, place: int, *, second: bool = False) -> tuple[str, ...]:
        """The small lines below an example: how sure, what it is, what else it might be, which it is."""
        s, label = self.survey, self.label(place)
        lines = [] if self.number else [self.value(place, int(s.answers[place]))]
        if label is not None:
            lines.append(f"label {label}")
        if second and len(s.classes) > 1 and not self.source.binary:
            k = int(s.seconds[place])
            lines.append(f"or {self.name(k)}, {self.value(place, k)}")
        return (*lines, f"example {s.rows[place]}")

    def tone(self, place: int) -> str:
        return "" if self.survey.right is None else ("good" if bool(self.survey.right[place]) else "bad")

    def label(self, place: int) -> str | None:
        labels = self.survey.labels
        if labels is None or not self.survey.named:
            return None
        return self.name(int(labels[place]))

    def example(self, place: int, x: Tensor, side: int = 112, *, second: bool = False) -> Figure:
        """An input (C, H, W) with what the model says of it and what it is."""
        row = self.survey.rows[place]
        label = self.label(place)
        alt = f"input, example {row}: the model {self.told(place)}"
        alt += f"; label {label}" if label is not None else ""
        picture = self.pictures.inline(colors.image(x), alt, side)
        return Figure(picture, self.title(place), self.facts_of(place, second=second), self.tone(place))


@dataclass(frozen=True)
class Section:
    """A part of the page. `build` gives its blocks; what it raises is told in its place.

    `needs`: "pixels" (inputs that are images), "classes" (outputs that exclude one another).
    """

    title: str
    slug: str
    build: Callable[[Context], Sequence[Block]]
    needs: tuple[str, ...] = ()

    def unfit(self, context: Context) -> str | None:
        """Why this section can't be for this box, if so."""
        if "pixels" in self.needs and not context.images:
            return f"This section is for models of images alone; this one takes {context.kind.takes}."
        if "classes" in self.needs and context.box.outputs == "regression":
            return "This section is about classes; this model gives numbers (regression)."
        if "classes" in self.needs and len(context.box.classes) < 2:
            return "This section compares classes; this model has one output."
        return None


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
