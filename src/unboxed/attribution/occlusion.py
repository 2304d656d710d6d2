"""Occlusion: cover one window of the image after another, and measure what the score loses.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, sections 2.2 and
4.2. Run as incremental inference, after Nakandala, Kumar & Papakonstantinou 2019, "Incremental and Approximate
Inference for Faster Occlusion-based Deep CNN Explanations" (SIGMOD): exact, and only what a window reaches is computed.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.perturb.masking import MASKED_INPUT_NAME_IN_ERRORS
from ..engine.perturb.segments import segment_square_side
from ..engine.perturb.windows import run_with_replaced_windows
from ..engine.read import sizes
from ..engine.read.edited_runs import VariantOutputs
from ..engine.read.edits import resolve_target
from ..errors import InputError
from ..inputs.labels import ClassLabels
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective, logit
from ..parameters import BatchSize, InputBatch, Target
from ..settings import Unit, check_settings
from ..validation import check_int

WindowSize = int | tuple[int, int]
DEFAULT_WINDOWS_PER_SIDE = 7  # a window covers a seventh of a side by default: 32 of 224 pixels, 4 of 28
TYPICAL_FORWARDS_PER_INPUT = 200  # on the card: about how many positions the window has by default


@card(
    name="Occlusion",
    aliases=("occlusion_sensitivity",),
    source="Zeiler & Fergus 2014, arXiv:1311.2901, sections 2.2 and 4.2",
    shows="Which parts of the image this score depends on: what it loses when they are covered.",
    does_not_show="What two parts do together, or a part that another can replace; and the cover is itself a pattern "
    "that the model responds to.",
    example=lambda method, box, x, y: method(
        box, x, y, window=segment_square_side(box, 3), stride=segment_square_side(box, 4)
    ),
    exempt={"one forward": "it runs the model once for each position of the window"},
    axioms=("contribution", "dummy", "symmetry"),
    needs=("pixels",),
    runs=TYPICAL_FORWARDS_PER_INPUT,
    order=8,
)
def occlusion(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    window: Annotated[WindowSize | None, Unit("pixels"), "Size of the window, (h, w) or one number for both."] = None,
    stride: Annotated[WindowSize | None, Unit("pixels"), "Steps of the window, (vertical, horizontal) or one."] = None,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """What the score loses when a window of the image is covered, for every position of the window.

    Needs no gradients and shows an effect that really happens. It is exact but costs a forward pass per position (only
    what a window reaches in the model is computed anew). For superpixels take `feature_ablation`, for parts that act
    together `kernel_shap`.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        window: Size of the window, (h, w) or one number for both. None is a seventh of each side.
        stride: Steps of the window, (vertical, horizontal) or one. None is half of the window. The last window of a row
            or column is at the border, closer to the one before it where the stride does not divide the side.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map (N, 1, H, W): for each pixel the mean score lost over the windows that cover it, in units of the score;
        zero where a stride larger than the window covers none. With a window of one pixel on images of one channel it
        is what the pixel contributes. Besides, over rows x cols positions of the window: `score_drops`
        (N, rows, cols), the score lost; `predicted` (N, rows, cols), the class predicted, and `probability`
        (N, rows, cols) of the class asked for, or else of the one predicted for the whole image (both None for a
        regression model); `top` (rows,) and `left` (cols,) of the window, and `window` (h, w), in pixels.

    Raises:
        InputError: for inputs that are not images, a window that does not fit into them, or a baseline of another
            shape.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.occlusion(box, x, y, window=8, stride=4)
        >>> tuple(a.shape), tuple(a.score_drops.shape)
        ((2, 1, 28, 28), (2, 6, 6))

    Source:
        Zeiler & Fergus 2014, arXiv:1311.2901, sections 2.2 and 4.2 (a gray square there). Incremental inference:
        Nakandala et al. 2019.
    """
    check_settings(occlusion, locals())
    inputs = sizes.require_images(box, "occlusion")
    image_size = (1, *inputs.model_shape[1:])[-2:]  # of a signal one row, of a volume one slice
    n_slices = inputs.shape[1] // image_size[0]
    if inputs.n_axes == 1:
        window, stride = _signal_size_as_height_width(window), _signal_size_as_height_width(stride)
    size = _resolve_height_and_width(
        "window", window, tuple(max(1, round(s / DEFAULT_WINDOWS_PER_SIDE)) for s in image_size)
    )
    strides = _resolve_height_and_width("stride", stride, tuple(max(1, s // 2) for s in size))
    if size[0] > image_size[0] or size[1] > image_size[1]:
        raise InputError(f"a window of {size[0]}x{size[1]} is larger than the images, {image_size[0]}x{image_size[1]}")
    x = box.validate_inputs(x)
    baseline_values = baseline_of(box, x, baseline)
    objective = logit(0) if target is None else resolve_target(box, target, x, batch_size)
    top, left = (window_start_pixels(n, w, s) for n, w, s in zip(image_size, size, strides, strict=True))
    top = (torch.arange(n_slices)[:, None] * image_size[0] + top).flatten()  # a window lies in one slice of a volume
    corners = torch.cartesian_prod(top, left)
    runs = run_with_replaced_windows(
        box, x, objective, baseline_values, corners, size, include_original=True, batch_size=batch_size
    )
    if runs.logits is None:
        raise InputError("no logits were read")
    scores, classes = _scores_and_reported_classes(box, runs, target)
    grid, score = (len(x), len(top), len(left)), scores[:, -1]
    check_finite_scores(score)
    check_finite_scores(scores, MASKED_INPUT_NAME_IN_ERRORS)
    score_drops = (score[:, None] - scores[:, :-1]).view(grid)
    predicted, probability = _class_and_probability_grids(box, runs.logits[:, :-1], classes, grid)
    pixel_drops = _mean_drop_per_pixel(score_drops, (top, left), size, (inputs.shape[1], inputs.shape[2]))
    return Attribution(
        box.restore_structure(pixel_drops),
        input=box.restore_structure(x),
        target=target if isinstance(target, Objective) else classes,
        score=score,
        method="Occlusion",
        classes=box.classes,
        score_drops=score_drops,
        predicted=predicted,
        probability=probability,
        top=top,
        left=left,
        window=size,
    )


def _signal_size_as_height_width(side: Any) -> Any:
    """A window or stride of a signal, given by its length alone."""
    return side if side is None or isinstance(side, (tuple, list)) else (1, side)


def window_start_pixels(side: int, window: int, stride: int) -> Tensor:
    """Where a window starts along one side: every `stride` pixels, and at the last position where it fits."""
    last = side - window
    starts = torch.arange(0, last + 1, stride)
    return starts if int(starts[-1]) == last else torch.cat([starts, torch.tensor([last])])


def _resolve_height_and_width(name: str, value: object, default: tuple[int, ...]) -> tuple[int, int]:
    """(vertical, horizontal) of a setting. Raises InputError."""
    sides = default if value is None else value if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2:
        raise InputError(f"{name} is a whole number, or (vertical, horizontal); got {value!r}")
    return check_int(name, sides[0], minimum=1), check_int(name, sides[1], minimum=1)


def _scores_and_reported_classes(
    box: Box, runs: VariantOutputs, target: ClassLabels | Objective | None
) -> tuple[Tensor, Tensor]:
    """The scores (N, P + 1), and the class (N,) whose probability is reported. The last run is of the whole images."""
    logits = torch.as_tensor(runs.logits)  # (N, P + 1, K)
    if target is not None and not isinstance(target, Objective):
        return runs.score, box.class_labels(target, len(logits))
    classes = logits[:, -1].argmax(1)
    return runs.score if target is not None else logits[torch.arange(len(classes)), :, classes], classes


def _class_and_probability_grids(
    box: Box, logits: Tensor, classes: Tensor, grid: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The class predicted at each position and the probability of class k (N,) there; none for a regression model."""
    if box.outputs == "regression":
        return None, None
    probabilities = box.probs_from_logits(logits.flatten(0, 1)).view_as(logits)  # (N, P, K)
    class_probability = probabilities.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))
    return logits.argmax(2).view(grid), class_probability.view(grid)


def _mean_drop_per_pixel(
    drops: Tensor, starts: tuple[Tensor, Tensor], size: tuple[int, int], sides: tuple[int, int]
) -> Tensor:
    """For each pixel (N, 1, H, W) the mean score lost over the windows that cover it."""
    rows, cols = (_windows_covering_pixels(t, w, n).to(drops) for t, w, n in zip(starts, size, sides, strict=True))
    count = rows.sum(0)[:, None] * cols.sum(0)  # (H, W)
    total = rows.T @ drops @ cols
    return (total / count.clamp(min=1))[:, None]


def _windows_covering_pixels(starts: Tensor, window: int, side: int) -> Tensor:
    """Whether each window (P,) covers each pixel of a side, (P, side)."""
    at = torch.arange(side)
    return (at >= starts[:, None]) & (at < starts[:, None] + window)
