"""Tables of figures by layer that fit a terminal: names are shortened, figures and verdicts never."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

MIN_NAME_CHARACTERS = 9  # that a shortened name keeps


def shorten_names(names: Iterable[str], width: int) -> dict[str, str]:
    """{name: the same in at most `width` characters, without its middle}. The cut leaves them different; where none
    does, all are whole.

    >>> shorten_names(["vit.layers.2.attention.q_proj:input", "fc:input"], 20)
    {'vit.layers.2.attention.q_proj:input': 'vit.layers…roj:input', 'fc:input': 'fc:input'}
    >>> list(shorten_names([f"vit.layers.{i}.layernorm_before:input" for i in (0, 1)], 20).values())
    ['vit.layers.0…e:input', 'vit.layers.1…e:input']
    """
    names, kept = list(dict.fromkeys(names)), max(0, width - 1)
    for n_tail in sorted(range(kept + 1), key=lambda n: abs(n - kept // 2)):
        shortened = {n: n if len(n) <= width else f"{n[: kept - n_tail]}…{n[len(n) - n_tail :]}" for n in names}
        if len(set(shortened.values())) == len(names):
            return shortened
    return {name: name for name in names}


class ShortenedName:
    """A table's cell that is as wide as its column lets it be. Where names of the table would then be alike, whole
    names are written over several lines."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self.name, self.names = name, names

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(len(self.name), MIN_NAME_CHARACTERS), len(self.name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(shorten_names(self.names, options.max_width)[self.name], overflow="fold")


def names_and_numbers_table(names: Sequence[str], figures: Sequence[str], caption: str) -> Table:
    """A table whose first columns are names, which shrink, and whose others are figures, which are never cut."""
    columns = [*(Column(name) for name in names), *(Column(name, no_wrap=True) for name in figures)]
    return Table(*columns, caption=caption, caption_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False,
                 collapse_padding=True)  # fmt: skip
