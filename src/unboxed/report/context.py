"""What the sections share: the box, the data as seen by it, the page's pictures, and what is found on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..box import Box
from ..inputs import Pixels
from ..plots import colors
from .blocks import Block, Figure
from .pictures import Pictures
from .survey import Source, Survey
from .untrained import untrained
from .words import prob


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

    @property
    def images(self) -> bool:
        return isinstance(self.box.inputs, Pixels)

    @cached_property
    def untrained(self) -> Box:
        """The same architecture without its training; raises what copying the net raises."""
        return untrained(self.box, self.seed)

    def inputs(self, places: Sequence[int]) -> Tensor:
        """The inputs (n, ...) at these places of the survey."""
        return self.source.take([self.survey.rows[p] for p in places])[0]

    def name(self, k: int) -> str:
        return self.survey.classes[k]

    def says(self, place: int) -> str:
        """What the net answers, and how surely."""
        s = self.survey
        sure = float(s.sureness[place])
        said = self.name(int(s.answers[place]))
        return f"{said}, p {prob(sure)}" if self.box.outputs != "regression" else f"output {said}: {sure:.3g}"

    def label(self, place: int) -> str | None:
        labels = self.survey.labels
        if labels is None or not self.survey.named:
            return None
        return self.name(int(labels[place]))

    def right(self, place: int) -> bool | None:
        return None if self.survey.right is None else bool(self.survey.right[place])

    def example(self, place: int, x: Tensor, side: int = 112, *, second: bool = False) -> Figure:
        """An input (C, H, W) with what the net says of it and what it is."""
        label, right = self.label(place), self.right(place)
        lines = [f"label {label}"] if label is not None else []
        if second and len(self.survey.classes) > 1:
            k = int(self.survey.seconds[place])
            value = float(self.survey.outputs[place, k])
            lines.append(f"or {self.name(k)}, {value:.3g}" if self.box.outputs == "regression" else f"or {self.name(k)}, p {prob(value)}")
        lines.append(f"example {self.survey.rows[place]}")
        alt = f"input, example {self.survey.rows[place]}: the net says {self.says(place)}"
        alt += "" if label is None else f"; its label is {label}"
        picture = self.pictures.inline(colors.image(x), alt, side)
        return Figure(picture, f"says {self.says(place)}", tuple(lines), {True: "good", False: "bad", None: ""}[right])


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
            return "This section draws pictures of the inputs; this net takes a table of features."
        if "classes" in self.needs and context.box.outputs == "regression":
            return "This section is about classes; this net gives numbers (regression)."
        return None


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
