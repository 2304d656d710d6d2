"""Occlusion: cover the image, one window after another, and see what the score loses.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, sections 2.2 and
4.2. Run as incremental inference, after Nakandala, Kumar & Papakonstantinou 2019, "Incremental and Approximate
Inference for Faster Occlusion-based Deep CNN Explanations" (SIGMOD): exact, and only what a window reaches is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.perturb.masking import MASKED_INPUT
from ..engine.perturb.segments import square_side
from ..engine.perturb.windows import window_scores
from ..engine.read import sizes
from ..engine.read.edited_runs import VariantOutputs
from ..engine.read.edits import resolve_target
from ..errors import InputError
from ..model.batching import BatchSize
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective, logit
from ..validation import check_int

WindowSize = int | tuple[int, int]
WINDOWS_PER_SIDE = 7  # of an image's side that a window covers by default: 32 of 224 pixels, 4 of 28


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What covering does, at each of rows x cols positions of the window."""

    map: Tensor  # (N, 1, H, W) of each pixel: the mean score lost over the windows that cover it
    score_drops: Tensor  # (N, rows, cols) score lost
    score: Tensor  # (N,) of the whole images
    predicted: Tensor | None  # (N, rows, cols) class predicted
    probability: (
        Tensor | None
    )  # (N, rows, cols) of the class asked for, or else of the one predicted for the whole image
    top: Tensor  # (rows,) of the window, in pixels
    left: Tensor  # (cols,)
    window: tuple[int, int]  # (h, w)


@card(
    name="Occlusion",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, sections 2.2 and 4.2",
    shows="Which parts of the image this score can't do without: what it loses when they are covered.",
    does_not_show="What two parts do together, or a part for which another stands in; and the cover is a picture, too.",
    example=lambda method, box, x, y: method(box, x, y, window=square_side(box, 3), stride=square_side(box, 4)),
    exempt={"one forward": "it runs the model once for each position of the window"},
    axioms=("contribution", "dummy", "symmetry"),
    needs=("pixels",),
)
def occlusion(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    window: WindowSize | None = None,
    stride: WindowSize | None = None,
    baseline: Any = None,
    batch_size: BatchSize = "auto",
) -> Occlusion:
    """The score that images lose where a window of the baseline covers them, (N, rows, cols), and spread over pixels.

    `window` is (h, w) or one number for both, by default a seventh of each side; `stride` by default half of it. The
    last window of a row or column lies at the border, nearer to the one before it where the stride does not divide.
    A pixel's value is the mean over the windows that cover it; one that a stride larger than the window leaves out is
    zero. With a window of one pixel on images of one channel it is what the pixel contributes. Raises InputError for
    inputs that are not images, a window that does not fit into them, and baselines of another shape.
    """
    image_size = sizes.native_size(box) if sizes.require_images(box, "occlusion") else (0, 0)
    size = _check_sides("window", window, tuple(max(1, round(s / WINDOWS_PER_SIDE)) for s in image_size))
    strides = _check_sides("stride", stride, tuple(max(1, s // 2) for s in size))
    if size[0] > image_size[0] or size[1] > image_size[1]:
        raise InputError(f"a window of {size[0]}x{size[1]} is larger than the images, {image_size[0]}x{image_size[1]}")
    x = box.validate_inputs(x)
    baseline_values = baseline_of(box, x, baseline)
    objective = logit(0) if target is None else resolve_target(box, target, x, batch_size)
    top, left = (window_starts(n, w, s) for n, w, s in zip(image_size, size, strides, strict=True))
    corners = torch.cartesian_prod(top, left)
    runs = window_scores(
        box, x, objective, baseline_values, corners, size, include_original=True, batch_size=batch_size
    )
    if runs.logits is None:
        raise InputError("no logits were read")
    scores, classes = _scores_and_classes(box, runs, target)
    grid, score = (len(x), len(top), len(left)), scores[:, -1]
    check_finite_scores(score)
    check_finite_scores(scores, MASKED_INPUT)
    score_drops = (score[:, None] - scores[:, :-1]).view(grid)
    predicted, probability = _predictions(box, runs.logits[:, :-1], classes, grid)
    pixel_drops = _spread_drops(score_drops, (top, left), size, image_size)
    return Occlusion(pixel_drops, score_drops, score, predicted, probability, top, left, size)


def window_starts(side: int, window: int, stride: int) -> Tensor:
    """Where a window starts along one side: every `stride` pixels, and at the last place that it fits in."""
    last = side - window
    starts = torch.arange(0, last + 1, stride)
    return starts if int(starts[-1]) == last else torch.cat([starts, torch.tensor([last])])


def _check_sides(name: str, value: object, default: tuple[int, ...]) -> tuple[int, int]:
    """(vertical, horizontal) of a setting. Raises InputError."""
    sides = default if value is None else value if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2:
        raise InputError(f"{name} is a whole number, or (vertical, horizontal); got {value!r}")
    return check_int(name, sides[0], minimum=1), check_int(name, sides[1], minimum=1)


def _scores_and_classes(
    box: Box, runs: VariantOutputs, target: int | Tensor | Objective | None
) -> tuple[Tensor, Tensor]:
    """The scores (N, P + 1), and the class (N,) whose probability is told. The last run is of the whole images."""
    logits = torch.as_tensor(runs.logits)  # (N, P + 1, K)
    if target is not None and not isinstance(target, Objective):
        return runs.score, box.class_labels(target, len(logits))
    classes = logits[:, -1].argmax(1)
    return runs.score if target is not None else logits[torch.arange(len(classes)), :, classes], classes


def _predictions(
    box: Box, logits: Tensor, classes: Tensor, grid: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The class predicted at each position and the probability of class k (N,) there; none for a regression model."""
    if box.outputs == "regression":
        return None, None
    probabilities = box.probs_from(logits.flatten(0, 1)).view_as(logits)  # (N, P, K)
    class_probability = probabilities.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))
    return logits.argmax(2).view(grid), class_probability.view(grid)


def _spread_drops(
    drops: Tensor, starts: tuple[Tensor, Tensor], size: tuple[int, int], sides: tuple[int, int]
) -> Tensor:
    """For each pixel (N, 1, H, W) the mean of what the windows cost that cover it."""
    rows, cols = (_coverage(t, w, n).to(drops) for t, w, n in zip(starts, size, sides, strict=True))
    count = rows.sum(0)[:, None] * cols.sum(0)  # (H, W)
    total = rows.T @ drops @ cols
    return (total / count.clamp(min=1))[:, None]


def _coverage(starts: Tensor, window: int, side: int) -> Tensor:
    """Whether each window (P,) covers each pixel of a side, (P, side)."""
    at = torch.arange(side)
    return (at >= starts[:, None]) & (at < starts[:, None] + window)
