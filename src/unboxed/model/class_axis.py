"""Which axis of an output (N, K, ...) has the classes: PyTorch's losses want it first, detectors have it last."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import OutputError
from ..inputs.base import Inputs
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens

EQUAL_LOG_ASPECT_TOLERANCE = 1e-6  # of the logarithms of aspect ratios that are equal
MAX_ASPECT_RATIO_FACTOR = 1.2  # between an output map and the image: convolutions without padding cut margins off
AMBIGUOUS_CLASS_AXIS_ADVICE = (
    "pass classes=, as many names as there are classes (range(K) will do), or put that axis second yourself: "
    'Box(..., output=lambda raw: raw["logits"].transpose(1, 2))'
)


def find_class_axis(shape: Sequence[int], n_classes: int | None, inputs: Inputs, *, is_arranged: bool) -> int:
    """The axis of the classes in an output of this shape, N included. Raises OutputError where it is ambiguous.

    Of texts it is the last. Else the number of names determines it, else the one choice that leaves the image's own
    positions, else that all other axes have one entry. `is_arranged`: the caller put the axis second.
    """
    if len(shape) <= 2:
        return 1
    if isinstance(inputs, Tokens) and len(shape) == 3 and not is_arranged:
        return 2  # (N, T, K): scores of each token
    axes = [axis for axis in range(1, len(shape)) if shape[axis] == n_classes]
    if len(axes) == 1:
        return axes[0]
    if is_arranged or (n_classes is not None and not axes):  # without the number of names: the names are refused
        return 1
    possible = axes or list(range(1, len(shape)))
    choices = _candidate_class_axes(shape, possible, inputs) or [axis for axis in possible if shape[axis] > 1]
    if len(choices) <= 1:
        return choices[0] if choices else 1
    raise OutputError(
        f"the output {tuple(shape)} has the classes on axis 1 or on axis {len(shape) - 1}, which cannot be determined: "
        f"{AMBIGUOUS_CLASS_AXIS_ADVICE}"
    )


def _candidate_class_axes(shape: Sequence[int], possible: Sequence[int], inputs: Inputs) -> list[int]:
    """Of the second and the last axis those beside which the others have the image's aspect: exactly, else about."""
    parts = [part for _, part in inputs.keys_and_parts()] if isinstance(inputs, MultiInput) else [inputs]
    ends = [axis for axis in (1, len(shape) - 1) if axis in possible]
    distortions = {
        axis: min(_aspect_ratio_distortion(shape, axis, spatial_shape_of_model_input(part)) for part in parts)
        for axis in ends
    }
    is_exact = min(distortions.values(), default=math.inf) < EQUAL_LOG_ASPECT_TOLERANCE
    bound = EQUAL_LOG_ASPECT_TOLERANCE if is_exact else math.log(MAX_ASPECT_RATIO_FACTOR)
    return [axis for axis, distortion in distortions.items() if distortion < bound]


def spatial_shape_of_model_input(inputs: Inputs) -> tuple[int, ...]:
    """The axes of positions as the model has them: of a signal one, of a volume three."""
    return tuple(inputs.model_shape if isinstance(inputs, Pixels) else inputs.shape)[1:]


def _aspect_ratio_distortion(shape: Sequence[int], class_axis: int, sizes: Sequence[int]) -> float:
    """By how much the aspect ratio of the output's other axes differs from the input's, 0 for the same; inf if not its.

    Of a signal they must have its length.
    """
    positions = [size for axis, size in enumerate(shape) if axis not in (0, class_axis)]
    if len(positions) != len(sizes) or (len(sizes) == 1 and positions[0] != sizes[0]):
        return math.inf
    scales = [math.log(a / b) for a, b in zip(positions, sizes, strict=True)]
    return max(scales) - min(scales)
