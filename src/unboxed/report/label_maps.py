"""Label maps as images: what is labeled, what is predicted, and where the two differ, the worst image first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..plots import colors
from ..plots.embedding import class_colors
from .blocks import Block, ColorKey, Figure, FigureGrid
from .context import ReportContext
from .finding import Example
from .pictures import PageImage
from .survey import map_score_text

MAP_SIDE_PIXELS = 112
ERROR_COLOR, CORRECT_COLOR, UNCOUNTED_COLOR = "#1c1c1e", "#f2f2f4", "#9a9aa2"


@dataclass(frozen=True, eq=False)
class LabelMapExample:
    """An image with its label map and the predicted one."""

    example: Example
    labels: Tensor  # (H, W) classes; -1 where a position does not count
    predicted: Tensor  # (H, W) classes


def label_map_examples(context: ReportContext, indices: Sequence[int]) -> list[LabelMapExample]:
    """The images at these indices of the survey; none without label maps of two axes."""
    s, box = context.survey, context.box
    if s.map_scores is None or len(box.output_map_shape) != 2 or not context.has_images:
        return []
    read = context.data.read([s.rows[i] for i in indices])
    predicted = box(read.x).argmax(1).cpu()  # (n, H, W)
    labels = torch.stack([torch.as_tensor(target).long().cpu().view(box.output_map_shape) for target in read.targets])
    labels = torch.where((labels >= 0) & (labels < len(s.classes)), labels, -1)
    return [LabelMapExample(*row) for row in zip(context.examples(indices), labels, predicted, strict=True)]


def worst_map_sentence(context: ReportContext) -> str:
    """Which image overlaps least with its label map; "" without label maps."""
    scores = context.survey.map_scores
    if scores is None or len(scores) < 2 or math.isnan(scores[(worst := context.survey.indices_by_margin[0]), 0]):
        return ""
    name = context.data.file_name(row := context.survey.rows[worst]) or f"example {row}"
    return f"The worst image is {name}: {map_score_text(context.survey, worst)}."


def label_map_blocks(maps: Sequence[LabelMapExample], classes: Sequence[str]) -> list[Block]:
    """What the colors are, and each image with its labels, the prediction and the errors."""
    figures = [figure for m in maps for figure in _label_map_figures(m, classes)]
    title = "The least overlap first: the image, its labels, the prediction, and where they differ."
    return [_color_key(maps, classes), FigureGrid(figures, title, n_together=4)]


def predicted_map_figure(m: LabelMapExample, classes: Sequence[str]) -> Figure:
    """The predicted classes, each in its color."""
    return _label_map_figures(m, classes)[2]


def _label_map_figures(m: LabelMapExample, classes: Sequence[str]) -> list[Figure]:
    palette = _palette(classes)
    is_wrong = (m.labels != m.predicted) & (m.labels >= 0)
    code = torch.where(m.labels < 0, 2, is_wrong.long())
    errors = np.stack([_rgb(c) for c in (CORRECT_COLOR, ERROR_COLOR, UNCOUNTED_COLOR)])[code.numpy()]
    images = {"labels": palette[m.labels.numpy()], "prediction": palette[m.predicted.numpy()], "errors": errors}
    alts = {**dict.fromkeys(images, "a color per class"), "errors": f"{int(is_wrong.sum())} positions that are wrong"}
    picture = PageImage(colors.image_to_rgb(m.example.x), f"input, {m.example.name}", MAP_SIDE_PIXELS)
    return [
        Figure(picture, m.example.heading, tuple(filter(None, m.example.score.split(", ")[:1]))),  # IoU, which ranks
        *(
            Figure(PageImage(im, f"{name}, {m.example.name}: {alts[name]}", MAP_SIDE_PIXELS), "", (name,))
            for name, im in images.items()
        ),
    ]


def _palette(classes: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(K + 1, 3): a color for each class; the last one, index -1, for positions that do not count."""
    return np.stack([_rgb(c) for c in (*class_colors(len(classes)), UNCOUNTED_COLOR)])


def _rgb(color: str) -> colors.Uint8Array:
    return np.frombuffer(bytes.fromhex(color.removeprefix("#")), dtype=np.uint8)


def _color_key(maps: Sequence[LabelMapExample], classes: Sequence[str]) -> ColorKey:
    """The classes that occur, and the colors of the errors."""
    present = sorted({k for m in maps for t in (m.labels, m.predicted) for k in t.flatten().tolist()} - {-1})
    palette = class_colors(len(classes))
    named = [(classes[k], palette[k]) for k in present] + [("wrong", ERROR_COLOR)]
    if any(bool((m.labels < 0).any()) for m in maps):
        named.append(("does not count", UNCOUNTED_COLOR))
    return ColorKey(named)
