"""The training examples whose labels may be wrong, for the section on training examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import influence
from ..engine.read.examples import LabeledExamples
from ..plots import colors
from ..plots.results.common import as_images_or_none
from .blocks import Block, Figure, FigureGrid, Heading, MethodInterpretation, Table
from .context import ReportContext
from .finding import METADATA_OF_FIELD_NOT_IN_JSON
from .influence_checks import TILE_SIDE_PIXELS
from .pictures import PageImage

N_SHOWN_SUSPECTED_LABELS = 8  # training examples that are shown
MIN_TRAIN_EXAMPLES_FOR_MISLABELS, N_LABEL_VOTING_NEIGHBORS = 10, 20  # training examples, and those that vote on a label
MISLABEL_DETECTION_RATE_TEXT = (
    "Of MNIST labels of which a tenth were flipped, 94 to 96 % of the wrong ones are in the first tenth by this order."
)


@dataclass(frozen=True, eq=False)
class SuspectedLabel:
    """A training example whose label may be wrong."""

    index: int
    label: str
    suggested: str
    x: Tensor | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)


def find_suspected_labels(context: ReportContext, train: LabeledExamples) -> tuple[SuspectedLabel, ...]:
    """The training examples that are most suspect, of those of which another class is likelier."""
    n = len(train.y)
    if n < MIN_TRAIN_EXAMPLES_FOR_MISLABELS:
        return ()
    data = context.box.restore_structure(train.x), train.y
    found = influence.suspected_mislabels(context.box, data, n_neighbors=min(N_LABEL_VOTING_NEIGHBORS, n - 1))
    suspects = [j for j in found.top(N_SHOWN_SUSPECTED_LABELS).tolist() if int(found.suggested[j]) != int(train.y[j])]
    return tuple(_make_suspected_label(context, found, j, int(train.dataset_rows[j]), train.x) for j in suspects)


def _make_suspected_label(
    context: ReportContext, found: influence.SuspectedMislabels, j: int, index: int, train_x: Tensor
) -> SuspectedLabel:
    label, suggested = (context.class_name(int(k[j])) for k in (found.train_labels, found.suggested))
    return SuspectedLabel(index, label, suggested, single_input_as_image_or_none(train_x[j : j + 1]))


def single_input_as_image_or_none(x: Tensor) -> Tensor | None:
    """The one input x (1, ...) as an image (C, H, W)."""
    images = as_images_or_none(x)
    return None if images is None else images[0].cpu()


def mislabel_blocks(suspects: Sequence[SuspectedLabel]) -> list[Block]:
    if not suspects:
        return []
    note = MethodInterpretation.of(influence.suspected_mislabels, MISLABEL_DETECTION_RATE_TEXT)
    shown: Block = FigureGrid([_suspected_label_figure(s) for s in suspects])
    if all(s.x is None for s in suspects):
        rows = [(f"training {s.index}", s.label, s.suggested) for s in suspects]
        shown = Table(("row", "label", "rather"), rows)
    return [Heading("Labels of the training data that may be wrong"), note, shown]


def _suspected_label_figure(s: SuspectedLabel) -> Figure:
    x = s.x if s.x is not None else torch.zeros(1, 1, 1)
    alt = f"training example {s.index}, label {s.label}, rather {s.suggested}"
    lines = (f"rather {s.suggested}?", f"example {s.index}")
    return Figure(PageImage(colors.image_to_rgb(x), alt, TILE_SIDE_PIXELS), f"label {s.label}", lines)
