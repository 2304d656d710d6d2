"""A map of words as a page: words are pointed at, clicked for their nearest words, and searched for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..language import WordMap
from .blocks import Block, Paragraph
from .plane import LayerScatterMap, ScatterMapBlock
from .words import format_percent

MAX_NEAREST_WORDS = 8  # that a click shows


def word_map_blocks(result: WordMap) -> Sequence[Block]:
    """The map, and how far it can be believed."""
    n = len(result.words)
    nearest = torch.empty(n, 0, dtype=torch.long) if result.nearest is None else result.nearest[:, :MAX_NEAREST_WORDS]
    block = ScatterMapBlock(
        "map-words", [LayerScatterMap("words", "", result.points, nearest)], [0] * n, [result.name or "words"],
        [False] * n, (), result.words, f"Map of {n:,} words",
        "Point at a dot to see its word; click it to see its nearest words, by their vectors.",
        "Drag to move; pinch, or click the map and turn the wheel, to zoom. Keys: arrows go from word to word, + and − "
        "zoom, 0 shows the whole map, Escape clears the selection.", is_of_words=True,
    )  # fmt: skip
    kept, chance = format_percent(result.neighbors_preserved), format_percent(result.chance)
    return [
        block,
        Paragraph(
            f"A t-SNE map. Of the {result.k} nearest words of each word, {kept} are also among its {result.k} nearest "
            f"on the map (by chance {chance}). Which words are nearest is exact where a word is clicked, by its vector."
        ),
    ]
