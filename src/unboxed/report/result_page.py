"""One result as a page that one sends to a colleague: its pictures, its verdict, what its method shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_write import encode_utf8, write_bytes
from ..cards import Card, cards
from ..errors import InputError
from ..explaining import Explanation
from ..language import WordMap
from ..plots.figures import figures
from ..plots.text_tables import TextTable
from ..plots.views import verdict_and_reason_text
from .blocks import Block, Caution, Code, Figure, FigureGrid, Heading, MethodInterpretation, Table
from .explanation_page import write_explanation_page
from .pictures import PageImage, PageImageStore
from .render import RenderedSection, render_blocks, render_page
from .word_map_page import word_map_blocks

if TYPE_CHECKING:
    from ..box import Box


def write_result_page(result: Any, path: Path, *, box: Box | None = None, data: Any = None) -> Path:
    """Write the page of a result. Raises InputError where it has no picture, and WriteError."""
    if isinstance(result, Explanation):
        return write_explanation_page(result, path)
    if isinstance(result, WordMap):
        title = f"{len(result.words):,} words of {result.name}" if result.name else f"{len(result.words):,} words"
        return _write_page("Map of words", title, "", word_map_blocks(result), path)
    images = figures(result, box, data=data)
    if not images:
        raise InputError(f"there is no picture of this {type(result).__name__} to make a page of")
    card = _card_of_result(result)
    title = card.name if card else type(result).__name__
    grid = FigureGrid(
        [Figure(PageImage(image, name, None), name if len(images) > 1 else "") for name, image in images.items()]
    )
    blocks = [grid, *_card_verdict_and_repr_blocks(result, card)]
    return _write_page(title, title, verdict_and_reason_text(result), blocks, path)


def write_tables_page(title: str, tables: Sequence[TextTable], path: Path) -> Path:
    """Write the tables of an answer in words as a page. Raises WriteError."""
    blocks: list[Block] = []
    for table in tables:
        blocks += [Heading(table.title)] * bool(table.title)
        blocks.append(Table(table.columns, table.rows))
    return _write_page(title, title, "", blocks, path)


def _write_page(title: str, section_title: str, headline: str, blocks: Sequence[Block], path: Path) -> Path:
    section = RenderedSection(section_title, "result", render_blocks(blocks, PageImageStore()), headline)
    return write_bytes(path, encode_utf8(render_page(title, title, [], "", [section])))


def _card_of_result(result: Any) -> Card | None:
    """The card of the method that made a result, where the result names it."""
    name = getattr(result, "method", None)
    return next((card for card in cards() if card.name == name), None)


def _card_verdict_and_repr_blocks(result: Any, card: Card | None) -> Iterator[Block]:
    verdict = verdict_and_reason_text(result)
    if card is not None:
        yield MethodInterpretation(card, verdict)
    elif verdict:
        yield Caution(verdict)
    yield Code(repr(result))
