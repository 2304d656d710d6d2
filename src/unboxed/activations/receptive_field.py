"""Receptive fields: the part of the image that can reach each position of a layer, found by probing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.receptive_bounds import ProbeKind, probe_receptive_bounds
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..parameters import BatchSize, RequiredLayerAddress, UnitAxis
from ..settings import AtLeast, Unit, check_settings
from .units import resolve_unit_layers


@dataclass(frozen=True, eq=False, repr=False)
class ReceptiveField(ResultMixin):
    """The receptive field of each position of a layer.

    Bounds are top, left, bottom, right in pixels: rows top to bottom - 1. All are 0 for a position that no pixel
    reaches (padding alone).
    """

    returns: ClassVar[str] = "activations"

    path: str  # the layer's address
    bounds: Tensor  # (*P, 4)
    probe: ProbeKind  # how they were found

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the central position's field."""
        top, left, bottom, right = self._field_bounds_of_center_position().tolist()
        return bottom - top, right - left

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels between the fields of the central position and the next, on the layer's last two axes."""
        sides = self.bounds.shape[:-1]
        if len(sides) < 2:
            return 0, 0
        position = [max(0, min(s // 2, s - 2)) for s in sides]
        vertical_step, horizontal_step = (
            _bounds_change_to_next_position(self.bounds, position, len(position) - back) for back in (2, 1)
        )
        return vertical_step[2], horizontal_step[3]

    def bounds_at(self, position: Tensor) -> Tensor:
        """The bounds (..., 4) of positions (..., P)."""
        if not position.shape[-1]:  # a layer without positions
            return self.bounds.expand(*position.shape[:-1], 4)
        return self.bounds[tuple(position.to(self.bounds.device).unbind(-1))]

    def patch(self, x: Tensor, position: Tensor | tuple[int, ...] = ()) -> Tensor:
        """The part (..., h, w) of images (..., H, W) in the field of one position (P,)."""
        top, left, bottom, right = self.bounds_at(torch.as_tensor(position, dtype=torch.long)).tolist()
        return x[..., top:bottom, left:right]

    def _field_bounds_of_center_position(self) -> Tensor:
        return self.bounds[tuple(s // 2 for s in self.bounds.shape[:-1])]


def _bounds_change_to_next_position(bounds: Tensor, position: list[int], axis: int) -> list[int]:
    """The change of the bounds to the next position on an axis."""
    next_position = [min(i + (a == axis), s - 1) for a, (i, s) in enumerate(zip(position, bounds.shape, strict=False))]
    change: list[int] = (bounds[tuple(next_position)] - bounds[tuple(position)]).tolist()
    return change


@card(
    name="Receptive field",
    source="defined as in Araujo, Norris & Sim 2019, doi:10.23915/distill.00021; found by probing with NaN",
    shows="Which rows and columns of the image can reach each position of a layer at all.",
    does_not_show="How much each matters: the effective field is usually smaller, and strongest in its center.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, resolve_unit_layers(box, None)[-2:][0]),
    order=5,
)
def receptive_field(
    box: Box,
    layer: RequiredLayerAddress,
    *,
    axis: UnitAxis = 1,
    resolution: Annotated[int, AtLeast(1), Unit("pixels"), "Rows (or columns) that are probed together."] = 1,
    batch_size: BatchSize = "auto",
) -> ReceptiveField:
    """The receptive field of each position of a layer: the part of the image that can reach it.

    To cut the patches out of top examples that excited a unit. It is found by running the model, whatever its
    architecture: some rows (then columns) become NaN, and where NaN arrives they reach. For how much each pixel matters
    use `projections` or `ub.attribution.gradient`.

    Args:
        box: The opened model; its inputs must be images.
        layer: Address of the layer, as `box.layers` lists them.
        axis: Axis of the layer's units; its other axes, but for the batch, are positions.
        resolution: Rows (or columns) that are probed together. More than 1 is faster, and rounds fields up.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `ReceptiveField`: `bounds` (*P, 4), `size` and `stride` in pixels, `patch(x, position)`. `probe` is "NaN", or
        "differences" where NaN does not pass the model, or passes where no value can (0 * NaN is NaN): noise was then
        put in, and what made no difference in a few tries is missing.

    Raises:
        InputError: for a model whose inputs are not images, or settings out of their range.
        LayerError: for an unknown layer.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> field = ub.activations.receptive_field(box, "relu1", resolution=4)
        >>> tuple(field.bounds.shape), field.probe
        ((24, 24, 4), 'NaN')

    Source:
        Defined as in Araujo, Norris & Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks",
        doi:10.23915/distill.00021; there computed from the architecture, here found by probing.
    """
    check_settings(receptive_field, locals())
    require_images(box, "a receptive field")
    (path,) = resolve_unit_layers(box, layer)
    return ReceptiveField(path, *probe_receptive_bounds(box, path, axis, resolution, batch_size))
