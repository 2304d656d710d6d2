"""The figures of an explanation: the input with its maps by several methods, and what the verdicts say of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...explaining import Explanation
from ..explanation_sheet import explanation_sheet, table_row_explanation_sheet
from ..figures import Figures, figures
from .common import as_images_or_none, column_names

if TYPE_CHECKING:
    from ...box import Box


@figures.register(Explanation)
def _explanation_figures(result: Explanation, box: Box | None = None, *, data: Any = None) -> Figures:
    title = result.question
    if not result.maps:
        return {}
    if as_images_or_none(result.input) is not None:
        return {"explanation": explanation_sheet(result, title=title)}
    if not isinstance(result.input, torch.Tensor):
        return {}
    row = result.input.flatten()
    names = result.columns if len(result.columns) == row.numel() else column_names(box, "", row.numel())
    maps = {result.names[name]: m for name, m in result.maps.items()}
    badges = {result.names[name]: v.badge for name, v in result.verdicts.items()}
    return {"explanation": table_row_explanation_sheet(row, maps, badges, names, title=title)}
