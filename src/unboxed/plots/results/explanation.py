"""The figures of an explanation: the input with its maps by several methods, and what the verdicts say of each."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ...explaining import Explanation
from ..explanation_sheet import explanation_sheet, table_row_explanation_sheet
from ..figures import Figures, figures
from ..sheet import contact_sheet
from ..tables import stack_panels
from .common import as_images_or_none, column_names

if TYPE_CHECKING:
    from ...box import Box


def _sheet_of_all_figures(result: Explanation) -> Image.Image:
    """The figure of each method, the most trustworthy first, below one another."""
    head: Image.Image = contact_sheet([], title=result.question)
    panels = [head]
    for name, m in result.maps.items():
        verdict = result.verdicts.get(name)
        judged = copy(m)
        judged.method = f"{result.names[name]}{f': {verdict.badge}' if verdict else ''}"
        panels.append(figures(judged)["attribution"])  # of several inputs all, below one another
    return stack_panels(panels)


@figures.register(Explanation)
def _explanation_figures(result: Explanation, box: Box | None = None, *, data: Any = None) -> Figures:
    title = result.question
    if not result.maps:
        return {}
    if as_images_or_none(result.input) is not None:
        return {"explanation": explanation_sheet(result, title=title)}
    if not isinstance(result.input, torch.Tensor):
        return {"explanation": _sheet_of_all_figures(result)}
    row = result.input.flatten()
    names = result.columns if len(result.columns) == row.numel() else column_names(box, "", row.numel())
    maps = {result.names[name]: m for name, m in result.maps.items()}
    badges = {result.names[name]: v.badge for name, v in result.verdicts.items()}
    return {"explanation": table_row_explanation_sheet(row, maps, badges, names, title=title)}
