"""The table of a model's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..model.layers import Layer
from .blocks import Block, Collapsible, Paragraph, Table
from .words import count_noun, format_percent, format_shape

N_EXPANDED_LAYER_ROWS = 14  # rows of the table that are not folded


def layer_table_blocks(layers: Sequence[Layer], lead: str) -> list[Block]:
    """The layers of the model, the rest of a long table folded."""
    columns, numbers = ("layer", "type", "output", "parameters", "share of FLOPs"), frozenset({3, 4})
    rows = [
        (
            layer.path + (f" (runs {layer.n_calls}×)" if layer.n_calls > 1 else ""),
            layer.type,
            format_shape(layer.shape),
            f"{layer.n_parameters:,}",
            "" if math.isnan(layer.flops_share) else format_percent(layer.flops_share),
        )
        for layer in layers
    ]
    blocks: list[Block] = [Paragraph(lead), Table(columns, rows[:N_EXPANDED_LAYER_ROWS], numbers)]
    if rest := rows[N_EXPANDED_LAYER_ROWS:]:
        blocks.append(Collapsible(f"{count_noun(len(rest), 'more layer')}", [Table(columns, rest, numbers)]))
    return blocks
