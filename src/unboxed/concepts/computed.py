"""Concepts that are computed from the inputs alone, so that TCAV can run where nobody has collected examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..box import Box
from ..errors import DataError, InputError
from ..inputs.features import Features
from ..inputs.pixels import Pixels

TOP_FRACTION = 0.25  # of the examples have a concept: those with the largest values
MAX_COLUMNS = 8  # of a table
MIN_EXAMPLES = 8


def computed_concepts(box: Box, x: Tensor) -> dict[str, Tensor]:
    """Simple concepts of the inputs: of images brightness, texture, strokes and symmetry; of tables high values.

    To try `tcav` on a model without collecting examples, or to ask whether its answers go by something as simple. Each
    concept is had by the quarter of the examples with the largest values.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].

    Returns:
        {name: (N,) bool} of the concepts, as `tcav` and `concept_vectors` take them beside the same inputs.

    Raises:
        DataError: for fewer than 8 examples.
        InputError: for inputs that are neither images, signals nor rows of a table.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> concepts = ub.concepts.computed_concepts(box, ub.data.digits("test").first(100)[0])
        >>> list(concepts), int(concepts["bright"].sum())
        (['bright', 'fine texture', 'horizontal strokes', 'vertical strokes', 'left-right symmetry'], 25)
    """
    x = box.validate_inputs(x).detach().cpu().double()
    if len(x) < MIN_EXAMPLES:
        raise DataError(f"computed concepts need at least {MIN_EXAMPLES} examples; got {len(x)}")
    if isinstance(box.inputs, Features):
        values = {f"high {name}": x[:, i] for i, name in enumerate(box.inputs.names[:MAX_COLUMNS])}
    elif isinstance(box.inputs, Pixels):
        values = {name: measure(x) for name, measure in _MEASURES_BY_N_AXES[box.inputs.n_axes].items()}
    else:
        raise InputError(
            f"computed concepts need images, signals or rows of a table; this model takes {type(box.inputs).__name__}"
        )
    return {name: mask for name, v in values.items() if (mask := _highest_quarter_mask(v)).any()}


def _highest_quarter_mask(values: Tensor) -> Tensor:
    """(N,) bool: the quarter with the largest values, those above the rest; none where values do not differ."""
    n = max(2, round(TOP_FRACTION * len(values)))
    threshold = values.sort(descending=True).values[n]
    return values > threshold


def _mean_brightness_per_example(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def _texture(x: Tensor) -> Tensor:
    """The squared differences of neighbors over the variance: large for fine patterns."""
    differences = sum(x.diff(dim=axis).square().flatten(1).mean(1) for axis in range(2, x.ndim))
    return differences / x.flatten(1).var(1).clamp_min(1e-12)


def _edge_share(x: Tensor, axis: int) -> Tensor:
    """The share of the squared differences that is between neighbors along an axis."""
    squares = [x.diff(dim=a).square().flatten(1).mean(1) for a in (2, 3)]
    return squares[axis - 2] / (squares[0] + squares[1]).clamp_min(1e-12)


def _symmetry(x: Tensor) -> Tensor:
    return -(x - x.flip(-1)).square().flatten(1).mean(1) / x.flatten(1).var(1).clamp_min(1e-12)


_MEASURES_BY_N_AXES: Mapping[int, Mapping[str, Callable[[Tensor], Tensor]]] = {
    1: {"high level": _mean_brightness_per_example, "fast changes": _texture, "symmetry in time": _symmetry},
    2: {
        "bright": _mean_brightness_per_example,
        "fine texture": _texture,
        "horizontal strokes": lambda x: _edge_share(x, 2),
        "vertical strokes": lambda x: _edge_share(x, 3),
        "left-right symmetry": _symmetry,
    },
    3: {"bright": _mean_brightness_per_example, "fine texture": _texture, "left-right symmetry": _symmetry},
}
