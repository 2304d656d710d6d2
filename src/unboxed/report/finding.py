"""What a section finds, apart from how it is shown: numbers, tensors and sentences, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from torch import Tensor

from ..engine.results import json_summary
from ..plots import colors
from .blocks import Block, ExampleWithFigures, Figure, FigureGrid, Table
from .pictures import PageImage
from .words import breakable

METADATA_OF_FIELD_NOT_IN_JSON = {"in_summary": False}
"""The metadata of a dataclass field that the page shows and report.json leaves out."""


class NotApplicable(Exception):
    """Raised by `find` where there is nothing to find on this model or these data: the page prints its text as a note.

    No failure, so not an `UnboxedError`.
    """


class CheckNote(NamedTuple):
    """What a check of a method's result says. `tone` is "", "good", "fair" or "bad"."""

    text: str = ""
    tone: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """The base of what `Section.find` returns. Subclasses are dataclasses; their fields go into report.json.

    `answer` is the section in one sentence, which is visible before the section is opened. `title` is the heading of
    the page (the first section that has one gives it), `headline` holds sentences below it. `interrupted`: Ctrl-C left
    only a part.
    """

    answer: str = ""
    title: str = ""
    headline: tuple[str, ...] = ()
    interrupted: bool = False

    def cover(self, place: int) -> Sequence[Figure]:
        """What the section shows, at the top of the page, of an example that is followed: one or two figures.

        A reader can choose among several examples; `place` counts them, 0 is the one followed at first.
        """
        return ()

    def followed_blocks(self, place: int) -> Sequence[Block]:
        """The same where inputs are no images: the bars of a row, the words of a text."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """For report.json, which has `title` and `headline` once for all sections."""
        shared = {f.name for f in fields(Finding)} - {"answer"}
        return {name: value for name, value in json_summary(self).items() if name not in shared}


@dataclass(frozen=True, eq=False)
class Example:
    """An example, with its label and what the model predicts."""

    row: int  # its index in the data
    x: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (C, H, W), or (F,) of a table
    prediction: str = ""  # the predicted class; "" where the output is a single number
    output: str = ""  # the probability of that class, or the number
    label: str | None = None
    runner_up: str = ""  # the class with the second largest output, with that output
    is_correct: bool | None = None
    text: str = ""  # of a model of texts
    file: str = ""  # its file, where it has one
    score: str = ""  # how well its label map is predicted
    label_noun: str = "label"  # "true value" of a regression

    @property
    def name(self) -> str:
        """What a sentence calls it: its file, else its index in the data."""
        return self.file or f"example {self.row}"

    @property
    def heading(self) -> str:
        """Its name where a sentence begins."""
        return self.file or f"Example {self.row}"

    @property
    def title(self) -> str:
        if self.score:  # of a label map, whose most frequent class says nothing
            return self.heading
        return self._with_verb(self.prediction or self.output)

    @property
    def prediction_text(self) -> str:
        """The prediction with its probability; the output alone where it is a single number."""
        return f"{self.prediction}, {self.output}" if self.prediction else self.output

    @property
    def sentence(self) -> str:
        return self.score or self._with_verb(self.prediction_text)

    def _with_verb(self, what: str) -> str:
        """A number is a prediction beside its true value, else an output."""
        return f"{'output' if not self.prediction and self.label is None else 'predicted'} {what}"

    @property
    def label_text(self) -> str:
        return "" if self.label is None else f"{self.label_noun} {self.label}"

    @property
    def tone(self) -> str:
        return "" if self.is_correct is None else "good" if self.is_correct else "bad"

    def lines(self, *, show_runner_up: bool = False) -> tuple[str, ...]:
        """The lines below it: probability, label, runner-up, index; of a label map how well it is predicted."""
        if self.score:
            return tuple(self.score.split(", "))
        probability = self.output if self.prediction else ""
        rival = f"runner-up {self.runner_up}" if show_runner_up and self.runner_up else ""
        return (*filter(None, (probability, self.label_text, rival)), breakable(self.name))

    def figure(self, side: int = 112, *, show_runner_up: bool = False) -> Figure:
        """The input with its prediction and label."""
        alt = "; ".join(filter(None, (f"input, {self.name}: {self.sentence}", self.label_text)))
        picture = PageImage(colors.image_to_rgb(self.x), alt, side)
        return Figure(picture, self.title, self.lines(show_runner_up=show_runner_up), self.tone)

    def input_figure(self, side: int) -> Figure:
        """The input alone, as the first of a row."""
        return Figure(PageImage(colors.image_to_rgb(self.x), f"input, {self.name}", side), "", ("input",))

    def with_figures(self, figures: Sequence[Figure], *, show_runner_up: bool = False) -> ExampleWithFigures:
        """The example in words beside these figures."""
        return ExampleWithFigures(self.title, self.lines(show_runner_up=show_runner_up), figures, self.tone)


def examples_block(examples: Sequence[Example], *, show_runner_up: bool = False) -> Block:
    """Images as figures, texts as a table."""
    if not examples[0].text:
        return FigureGrid([e.figure(show_runner_up=show_runner_up) for e in examples])
    columns, last = ("text", "predicted", examples[0].label_noun), ("runner-up",) * show_runner_up
    rows = [(e.text, e.prediction_text, e.label or "", *(e.runner_up,) * show_runner_up) for e in examples]
    return Table((*columns, *last), rows)
