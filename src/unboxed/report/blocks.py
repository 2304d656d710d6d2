"""What a section is made of. A block is data; the macro that its `kind` names in `templates/blocks.html` draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..cards import Card
from ..plots.sheet import Bar

ROOM, GAP = 1060, 14  # pixels: the page's width, and what lies between two figures


class Block(Protocol):
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class Picture:
    """An image of the page: where it is (a data URI or a file beside the page), what it shows, its size in pixels."""

    src: str
    alt: str
    width: int
    height: int
    hard: bool = False  # drawn with hard pixels


@dataclass(frozen=True)
class Figure:
    """A picture with its words: a strong first line, then small ones. `tone` is "", "good", "fair" or "bad"."""

    picture: Picture
    head: str = ""
    lines: tuple[str, ...] = ()
    tone: str = ""


def width(figures: Sequence[Figure]) -> int:
    """The width of the places of one grid: its widest picture, but room for words."""
    return max([84, *(f.picture.width for f in figures)])


def together(figures: Sequence[Figure]) -> int:
    """How many stand in one row of a whole page at most, so that no row is left with one or two."""
    n = len(figures)
    rows = -(-n // max(1, (ROOM + GAP) // (width(figures) + GAP)))
    return -(-n // max(1, rows))


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone`: "" or "soft"."""

    text: str
    tone: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Head:
    text: str
    kind: ClassVar[str] = "head"


@dataclass(frozen=True)
class Note:
    """Something a reader must know before believing the pictures."""

    text: str
    tone: str = ""
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Figures:
    """Pictures on one grid, to be compared."""

    figures: Sequence[Figure]
    name: str = ""
    halves: bool = False  # two a row, however wide they are
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Case:
    """One example, in words, beside its pictures."""

    name: str
    lines: tuple[str, ...]
    figures: Sequence[Figure]
    tone: str = ""
    kind: ClassVar[str] = "case"


@dataclass(frozen=True)
class Scales:
    """The printed color scales of the pictures above."""

    bars: Sequence[tuple[Bar, Picture]]
    kind: ClassVar[str] = "scales"


@dataclass(frozen=True)
class Table:
    """Rows of text; the columns whose index is in `numbers` stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Confusion:
    """How often each label (row) was given each answer (column); `strength` 0 to 1 tints a cell."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    strength: Sequence[Sequence[float]]
    caption: str
    kind: ClassVar[str] = "confusion"

    @property
    def long(self) -> bool:
        return any(len(name) > 3 for name in self.names)


@dataclass(frozen=True)
class Slider:
    """Frames under a slider, with the probabilities of some classes in each frame."""

    slug: str
    name: str
    lines: tuple[str, ...]
    frames: Sequence[Picture]
    classes: Sequence[str]
    probs: Sequence[Sequence[float]]  # (frames, classes)
    target: int  # of `classes`
    steps: Sequence[int]
    strip: Sequence[Figure]
    files: Files
    kind: ClassVar[str] = "slider"

    @property
    def data(self) -> dict[str, object]:
        """What the page's script needs to show a frame."""
        frames, alts = [f.src for f in self.frames], [f.alt for f in self.frames]
        return {"frames": frames, "alts": alts, "probs": self.probs, "steps": self.steps}


@dataclass(frozen=True)
class Method:
    """What a method's picture tells and does not tell, and what a check said of it."""

    card: Card
    verdict: str = ""
    tone: str = ""
    kind: ClassVar[str] = "method"

    @classmethod
    def of(cls, method: Callable[..., Any], verdict: str = "", tone: str = "") -> Method:
        """The note of a method that carries a card."""
        return cls(method.card, verdict, tone)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Ranked:
    """A method with the verdict on it. `tone`: "good", "fair", "bad" or ""."""

    name: str
    badge: str
    sentence: str
    tells: str
    not_tells: str
    tone: str = ""


@dataclass(frozen=True)
class Ranking:
    """Methods, the most believable first."""

    methods: Sequence[Ranked]
    kind: ClassVar[str] = "ranking"


@dataclass(frozen=True)
class Fold:
    summary: str
    blocks: Sequence[Block]
    open: bool = False
    kind: ClassVar[str] = "fold"


@dataclass(frozen=True)
class Beside:
    """Two groups of blocks side by side, where there is room."""

    left: Sequence[Block]
    right: Sequence[Block]
    kind: ClassVar[str] = "beside"


@dataclass(frozen=True)
class Code:
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Files:
    """Pictures beside the page: (path relative to it, what it is)."""

    files: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "files"
