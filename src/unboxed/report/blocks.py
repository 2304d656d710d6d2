"""What a section shows, as data: images are arrays. The macro that a block's `kind` names in `blocks.html` draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..cards import Card
from ..plots.sheet import ColorBar
from .pictures import PageFile, PageImage

PAGE_WIDTH_PIXELS, FIGURE_GAP_PIXELS = 1000, 14  # pixels: the page's width, and the gap between two figures
PHONE_WIDTH_PIXELS = 350  # of a page that is 390 pixels wide, without its margins
MAX_PHONE_WORD_CHARACTERS = 8  # of a caption's words that four columns on a phone hold, with the mark before them


class Block(Protocol):
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class Figure:
    """A picture with its caption: a bold first line, then small ones. `tone` is "", "good", "fair" or "bad"."""

    picture: PageImage
    head: str = ""
    lines: tuple[str, ...] = ()
    tone: str = ""


def column_width(figures: Sequence[Figure]) -> int:
    """The width of one grid's columns: its widest picture, but room for words."""
    return max([84, *(f.picture.size[0] for f in figures)])


def figures_per_row(figures: Sequence[Figure]) -> int:
    """How many figures one row of the page holds, so that no row is left with one or two."""
    n = len(figures)
    rows = -(-n // max(1, (PAGE_WIDTH_PIXELS + FIGURE_GAP_PIXELS) // (column_width(figures) + FIGURE_GAP_PIXELS)))
    return -(-n // max(1, rows))


def n_phone_columns(n: int, column_width_pixels: int, longest_word: int = 0) -> int:
    """How many columns n figures have on a phone, so that none stands alone in the last row, and that no word of
    `longest_word` characters is broken.

    >>> [n_phone_columns(n, 112) for n in (1, 3, 4, 6, 7, 10)], n_phone_columns(5, 900)
    ([1, 3, 2, 3, 4, 4], 1)
    >>> n_phone_columns(7, 112, len("predicted"))
    3
    """
    fitting = max(1, int((PHONE_WIDTH_PIXELS + 12) / (max(100, 0.7 * column_width_pixels) + 12)))
    choices = [fitting] if fitting > 2 else [fitting, 1]
    if fitting > 2 and n == fitting + 1:
        choices += [fitting - 1]
    elif fitting > 2 and longest_word <= MAX_PHONE_WORD_CHARACTERS:
        choices += [fitting + 1]
    return min(n, next((c for c in choices if c == 1 or n % c != 1), fitting))


def longest_caption_word_length(figures: Sequence[Figure]) -> int:
    """The characters of the longest word in the captions."""
    return max((len(word) for f in figures for text in (f.head, *f.lines) for word in text.split()), default=0)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. `tone`: "" or "soft"."""

    text: str
    tone: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Heading:
    text: str
    kind: ClassVar[str] = "head"


@dataclass(frozen=True)
class Caution:
    """Something a reader must know before trusting the figures."""

    text: str
    tone: str = ""
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class FigureGrid:
    """Figures on one grid, to be compared."""

    figures: Sequence[Figure]
    name: str = ""
    two_per_row: bool = False  # however wide they are
    n_together: int = 1  # figures in a row that belong together, as an image and its map: they stay on one line
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class ExampleWithFigures:
    """One example, in words, beside its figures."""

    name: str
    lines: tuple[str, ...]
    figures: Sequence[Figure]
    tone: str = ""
    kind: ClassVar[str] = "case"


@dataclass(frozen=True)
class ColorScaleImages:
    """The printed color scales of the figures above."""

    bars: Sequence[ColorBar]
    kind: ClassVar[str] = "scales"


@dataclass(frozen=True)
class Table:
    """Rows of text; the columns whose index is in `number_columns` are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    number_columns: frozenset[int] = frozenset()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each label (row) got each prediction (column), "" for never; `tint` (0 to 1) colors a cell."""

    names: Sequence[str]
    cells: Sequence[Sequence[str]]
    tint: Sequence[Sequence[float]]
    caption: str
    kind: ClassVar[str] = "confusion"

    @property
    def has_long_names(self) -> bool:
        return any(len(name) > 3 for name in self.names)


@dataclass(frozen=True)
class FrameSlider:
    """Frames under a slider, with the probabilities of some classes in each frame."""

    slug: str
    name: str
    lines: tuple[str, ...]
    frames: Sequence[PageImage]
    classes: Sequence[str]
    probs: Sequence[Sequence[float]]  # (frames, classes)
    target: int  # of `classes`
    steps: Sequence[int]
    strip: Sequence[Figure]
    files: FileLinks
    kind: ClassVar[str] = "slider"


@dataclass(frozen=True)
class MethodInterpretation:
    """What a method's result shows and does not show, and what a check says of it."""

    card: Card
    verdict: str = ""
    tone: str = ""
    kind: ClassVar[str] = "method"

    @classmethod
    def of(cls, method: Callable[..., Any], verdict: str = "", tone: str = "") -> MethodInterpretation:
        """The note of a method that carries a card."""
        return cls(method.card, verdict, tone)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ColoredWord:
    """One word on its color; `is_added` by the tokenizer. Colors are CSS, empty for none and for the page's ink."""

    text: str
    background: str = ""
    ink: str = ""
    is_glued: bool = False  # to the word before
    is_added: bool = False


@dataclass(frozen=True)
class ColoredWords:
    """The words of a text as one map colors them: a bold first line, then small ones, as below a picture."""

    words: Sequence[ColoredWord]
    head: str = ""
    lines: tuple[str, ...] = ()
    tone: str = ""
    kind: ClassVar[str] = "colored"


@dataclass(frozen=True)
class RankedMethod:
    """A method with the verdict on it. `tone`: "good", "fair", "bad" or ""."""

    name: str
    badge: str
    sentence: str
    shows: str
    does_not_show: str
    tone: str = ""


@dataclass(frozen=True)
class RankedMethods:
    """Methods, the most trustworthy first."""

    methods: Sequence[RankedMethod]
    is_short: bool = False  # names and verdicts alone
    kind: ClassVar[str] = "ranking"


@dataclass(frozen=True)
class Collapsible:
    summary: str
    blocks: Sequence[Block]
    open: bool = False
    kind: ClassVar[str] = "fold"


MAX_UNFOLDED_TABLE_ROWS = 20  # of a table before it folds


def collapsible_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Block]:
    """Numbers behind a name: the first rows, and a fold with the others."""
    numbers = frozenset(range(1, len(columns)))
    blocks: list[Block] = [Table(columns, rows[:MAX_UNFOLDED_TABLE_ROWS], numbers)]
    if rest := rows[MAX_UNFOLDED_TABLE_ROWS:]:
        blocks.append(Collapsible(f"{len(rest)} more", [Table(columns, rest, numbers)]))
    return blocks


@dataclass(frozen=True)
class ColorKey:
    """What the colors of the figures below are: (name, CSS color)."""

    entries: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "color_key"


@dataclass(frozen=True)
class SideBySide:
    """Two groups of blocks side by side, where there is room."""

    left: Sequence[Block]
    right: Sequence[Block]
    kind: ClassVar[str] = "beside"


@dataclass(frozen=True)
class SignedBars:
    """Numbers as bars to either side of zero, in words that a phone can show, below what they are about."""

    title: str
    lines: tuple[str, ...]
    bars: Sequence[tuple[str, float]]
    label: str  # what the numbers are
    tone: str = ""
    kind: ClassVar[str] = "bars"

    @property
    def largest(self) -> float:
        """The largest magnitude, which the bars share; 1 where all are 0."""
        return max((abs(value) for _, value in self.bars), default=0.0) or 1.0


@dataclass(frozen=True)
class PerExample:
    """What is shown of each example that a reader can follow: that of the chosen one is seen."""

    variants: Sequence[Sequence[Block]]
    kind: ClassVar[str] = "per_example"


@dataclass(frozen=True)
class Code:
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class FileLinks:
    """Links to images beside the page."""

    files: Sequence[PageFile]
    kind: ClassVar[str] = "files"
