"""Projections: the activation of a neuron projected back to the pixels of an example.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, section 2.1, figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import Gradients, gradients
from ..engine.read.channel_axes import units_to_axis_1
from ..engine.results import ResultMixin
from ..errors import InputError, RuleError
from ..model import relu_rules
from ..objectives import Objective, RowIndex, constant_to_like, layer_objective, to_class_tensor
from ..parameters import BatchSize, InputBatch, RequiredLayerAddress, UnitAxis
from ..settings import check_settings
from .receptive_field import ReceptiveField, receptive_field
from .units import argmax_positions, resolve_unit_layers, unravel_positions

BackwardRuleName = Literal["deconvnet", "gradient"]


@dataclass(frozen=True, eq=False, repr=False)
class Projections(ResultMixin):
    """One neuron of each example, projected back to the input."""

    returns: ClassVar[str] = "activations"

    path: str  # the layer's address
    unit: Tensor  # (N,)
    position: Tensor  # (N, P) of the neuron
    value: Tensor  # (N,) its activation
    map: Tensor  # (N, ...) signed, shaped like the inputs
    bounds: Tensor  # (N, 4) top, left, bottom, right of the receptive field; (N, 0) where the inputs are not images
    rule: BackwardRuleName
    fallback_reason: str = ""  # why the deconvnet rule could not be used

    def patch(self, i: int, x: Tensor | None = None) -> Tensor:
        """The receptive field (C, h, w) of neuron i: of its map, or of an image x (C, H, W)."""
        top, left, bottom, right = self.bounds[i].tolist()
        return (self.map[i] if x is None else x)[..., top:bottom, left:right]


@card(
    name="Projections",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1",
    shows="The pattern in the receptive field of one neuron by which it was excited.",
    does_not_show="What else excites the neuron: where several patterns do, one example shows one of them.",
    example=lambda method, box, x, y: method(box, x, resolve_unit_layers(box, None)[-2:][0], y % 2, rule="gradient"),
    exempt={"one forward": "the unit's largest position must be known first, and its receptive field is probed"},
    runs=2,
    order=6,
)
def projections(
    box: Box,
    x: InputBatch,
    layer: RequiredLayerAddress,
    unit: Annotated[int | Tensor, "Unit (channel), or one per example (N,)."],
    position: Annotated[Tensor | None, "Positions (N, P) of the neurons on the P other axes of the layer."] = None,
    *,
    rule: Annotated[Literal["auto", "deconvnet", "gradient"], "Backward rule of ReLUs."] = "auto",
    field: Annotated[ReceptiveField | None, "Receptive field of the layer, where it was computed before."] = None,
    axis: UnitAxis = 1,
    batch_size: BatchSize = "auto",
) -> Projections:
    """The activation of one neuron of each example, projected back to the pixels.

    To see which pattern of a top example a unit responds to; with `top_examples` it makes figure 2 of Zeiler & Fergus.
    For a score of the output use `ub.attribution.deconvnet` or `gradient`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layer: Address of the layer, as `box.layers` lists them.
        unit: Unit (channel), or one per example (N,).
        position: Positions (N, P) of the neurons on the P other axes of the layer. None: where the unit is largest.
        rule: Backward rule of ReLUs. "auto" is deconvnet's, or the plain gradient where that cannot be applied (without
            a ReLU), and `fallback_reason` says why.
        field: Receptive field of the layer, where it was computed before. None computes it by `receptive_field`.
        axis: Axis of the layer's units; its other axes, but for the batch, are positions.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Projections`: `map` (N, ...) like x, `value` (N,), `position` (N, P), `bounds` (N, 4), `patch(i)`.

    Raises:
        InputError: for units or positions that the layer does not have.
        LayerError: for an unknown layer.
        RuleError: for rule="deconvnet" where it cannot be applied.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> result = ub.activations.projections(box, x, "relu2", 3)
        >>> tuple(result.map.shape), result.rule
        ((2, 1, 28, 28), 'deconvnet')

    Source:
        Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1.
    """
    check_settings(projections, locals())
    if not isinstance(field, ReceptiveField | None):
        raise InputError(f"field is what `receptive_field` returns, or None; got {field!r}")
    x = box.validate_inputs(x)
    (path,) = resolve_unit_layers(box, layer)
    h = units_to_axis_1(box.read(x, [path], batch_size=batch_size)[path], axis, path)  # (N, C, *P)
    units = _one_unit_per_example(unit, len(x), h)
    positions = (
        unravel_positions(argmax_positions(h)[torch.arange(len(x)), units], h.shape[2:])
        if position is None
        else _validated_positions(position, h)
    )
    objective = neuron_objective_per_example(path, units, positions, axis)
    result, used_rule, fallback_reason = _deconvnet_or_plain_gradients(box, objective, x, rule, batch_size)
    bounds = _receptive_field_bounds(box, path, field, positions, axis, batch_size)
    return Projections(path, units, positions, result.score, result.map, bounds, used_rule, fallback_reason)


def neuron_objective_per_example(layer: str, unit: Tensor, position: Tensor, axis: int = 1) -> Objective:
    """One neuron per example: unit (N,) at position (N, P)."""

    def score(h: Tensor) -> Tensor:
        rows = torch.arange(len(h), device=h.device)
        index = (rows, constant_to_like(unit, h), *constant_to_like(position, h).unbind(1))
        return units_to_axis_1(h, axis, layer)[index]

    def select_rows(i: RowIndex) -> Objective:
        return neuron_objective_per_example(layer, unit[i], position[i], axis)

    return layer_objective(layer, score, f"{layer}, one neuron per example", select_rows, len(unit))


def _deconvnet_or_plain_gradients(
    box: Box, objective: Objective, x: Tensor, rule: str, batch_size: BatchSize
) -> tuple[Gradients, BackwardRuleName, str]:
    fallback_reason = ""
    if rule != "gradient":
        try:
            return gradients(box, objective, x, rule=relu_rules.DECONVNET_RULE, batch_size=batch_size), "deconvnet", ""
        except RuleError as error:
            if rule == "deconvnet":
                raise
            fallback_reason = str(error)
    return gradients(box, objective, x, batch_size=batch_size), "gradient", fallback_reason


def _receptive_field_bounds(
    box: Box, path: str, field: ReceptiveField | None, positions: Tensor, axis: int, batch_size: BatchSize
) -> Tensor:
    if len(box.inputs.shape) != 3:
        return positions.new_empty(len(positions), 0)
    return (field or receptive_field(box, path, axis=axis, batch_size=batch_size)).bounds_at(positions)


def _one_unit_per_example(unit: int | Tensor, n: int, h: Tensor) -> Tensor:
    units = to_class_tensor(unit).to(h.device, torch.long)
    if units.ndim > 1 or (units.ndim == 1 and len(units) != n):
        raise InputError(f"unit must be one unit, or one for each of {n} examples; got shape {tuple(units.shape)}")
    if units.numel() and not (int(units.min()) >= 0 and int(units.max()) < h.shape[1]):
        raise InputError(f"the layer has units 0 to {h.shape[1] - 1}; got {int(units.min())} to {int(units.max())}")
    return units.expand(n)


def _validated_positions(position: Tensor, h: Tensor) -> Tensor:
    if not isinstance(position, Tensor) or position.numel():  # (N, 0) is of a layer without positions
        position = to_class_tensor(position, "a position")
    positions = position.to(h.device, torch.long)
    sides = torch.tensor(h.shape[2:], device=h.device)
    if positions.shape != (len(h), len(sides)) or bool(((positions < 0) | (positions >= sides)).any()):
        raise InputError(f"position must be ({len(h)}, {len(sides)}) within {tuple(h.shape[2:])}, one per example")
    return positions
