"""Tables of figures by layer that fit a terminal: names are shortened, figures and verdicts never."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

MIN_NAME_CHARACTERS = 9  # that a shortened name keeps


def shorten_in_middle(name: str, width: int) -> str:
    """A name of at most `width` characters: both ends tell layers apart, the middle seldom does.

    >>> shorten_in_middle("vit.layers.2.attention.q_proj:input", 20)
    'vit.layers…oj:input'
    >>> shorten_in_middle("fc:input", 20)
    'fc:input'
    """
    if len(name) <= width:
        return name
    n_tail = max(0, width - 1) // 2
    return f"{name[: max(0, width - 1 - n_tail)]}…{name[len(name) - n_tail :]}"


class ShortenedName:
    """A table's cell that is as wide as its column lets it be. Where names of the table would then be alike, whole
    names are written over several lines."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self.name, self.names = name, set(names)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(len(self.name), MIN_NAME_CHARACTERS), len(self.name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        shortened = {shorten_in_middle(name, options.max_width) for name in self.names}
        is_distinct = len(shortened) == len(self.names)
        yield Text(shorten_in_middle(self.name, options.max_width) if is_distinct else self.name, overflow="fold")


def figures_table(names: Sequence[str], figures: Sequence[str], caption: str) -> Table:
    """A table whose first columns are names, which shrink, and whose others are figures, which are never cut."""
    columns = [*(Column(name) for name in names), *(Column(name, no_wrap=True) for name in figures)]
    return Table(*columns, caption=caption, caption_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False,
                 collapse_padding=True)  # fmt: skip
