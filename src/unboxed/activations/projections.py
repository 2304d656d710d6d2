"""Projections: what a neuron's answer looks like when it is sent back to the pixels of an example.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, section 2.1, figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import Gradients, gradients
from ..errors import InputError, RuleError
from ..model import relu_rules
from ..model.batching import BatchSize
from ..objectives import Index, Objective, as_classes, constant, layer_objective
from .receptive import ReceptiveField, receptive_field
from .units import peak_positions, unit_layers, units_to_axis_1, unravel_positions

UsedRule = Literal["deconvnet", "gradient"]


@dataclass(frozen=True, eq=False)
class Projections:
    path: str
    unit: Tensor  # (N,)
    position: Tensor  # (N, P) of the neuron
    value: Tensor  # (N,) its activation
    map: Tensor  # (N, ...) signed, shaped like the inputs
    bounds: Tensor  # (N, 4) of the part that the neuron sees; without columns where the inputs are no pictures
    rule: UsedRule
    fallback_reason: str = ""  # deconvnet refused

    def patch(self, i: int, x: Tensor | None = None) -> Tensor:
        """The part (C, h, w) that neuron i sees: of its map, or of a picture (C, H, W)."""
        top, left, bottom, right = self.bounds[i].tolist()
        return (self.map[i] if x is None else x)[..., top:bottom, left:right]


@card(
    name="Projections",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1",
    shows="The pattern, in the part of an example that one neuron sees, by which it was excited.",
    does_not_show="What excites the neuron elsewhere; and where a unit "
    "has many reasons, one example shows one of them.",
    example=lambda method, box, x, y: method(box, x, unit_layers(box, None)[-2:][0], y % 2, rule="gradient"),
    exempt={"one forward": "where the unit is largest must be known first, and what it sees is found by probing"},
)
def projections(
    box: Box,
    x: Tensor,
    layer: str,
    unit: int | Tensor,
    position: Tensor | None = None,
    *,
    rule: Literal["auto", "deconvnet", "gradient"] = "auto",
    field: ReceptiveField | None = None,
    axis: int = 1,
    batch_size: BatchSize = "auto",
) -> Projections:
    """One neuron of each example sent back to its pixels: unit (N,), or one for all, at positions (N, P).

    By default each unit's largest position. `rule` "auto" is deconvnet's; where that refuses (there is no ReLU, or one
    in another spelling), the plain gradient, and `why` says so. `field` spares the probing for the layer's own.
    Raises InputError, LayerError, and RuleError where "deconvnet" is asked for and refuses.
    """
    if rule not in ("auto", "deconvnet", "gradient"):
        raise InputError(f'rule is "auto", "deconvnet" or "gradient"; got {rule!r}')
    x = box.validate_inputs(x)
    (path,) = unit_layers(box, layer)
    h = units_to_axis_1(box.read(x, [path], batch_size=batch_size)[path], axis, path)  # (N, C, *P)
    units = _check_units(unit, len(x), h)
    positions = (
        unravel_positions(peak_positions(h)[torch.arange(len(x)), units], h.shape[2:])
        if position is None
        else _check_positions(position, h)
    )
    objective = neuron_per_example(path, units, positions, axis)
    result, used_rule, fallback_reason = _project_back(box, objective, x, rule, batch_size)
    bounds = _field_bounds(box, path, field, positions, axis, batch_size)
    return Projections(path, units, positions, result.score, result.map, bounds, used_rule, fallback_reason)


def neuron_per_example(layer: str, unit: Tensor, position: Tensor, axis: int = 1) -> Objective:
    """One neuron an example: unit (N,) at position (N, P)."""

    def score(h: Tensor) -> Tensor:
        rows = torch.arange(len(h), device=h.device)
        index = (rows, constant(unit, h), *constant(position, h).unbind(1))
        return units_to_axis_1(h, axis, layer)[index]

    def select_rows(i: Index) -> Objective:
        return neuron_per_example(layer, unit[i], position[i], axis)

    return layer_objective(layer, score, f"{layer}, one neuron an example", select_rows, len(unit))


def _project_back(
    box: Box, objective: Objective, x: Tensor, rule: str, batch_size: BatchSize
) -> tuple[Gradients, UsedRule, str]:
    fallback_reason = ""
    if rule != "gradient":
        try:
            return gradients(box, objective, x, rule=relu_rules.deconvnet, batch_size=batch_size), "deconvnet", ""
        except RuleError as error:
            if rule == "deconvnet":
                raise
            fallback_reason = str(error)
    return gradients(box, objective, x, batch_size=batch_size), "gradient", fallback_reason


def _field_bounds(
    box: Box, path: str, field: ReceptiveField | None, positions: Tensor, axis: int, batch_size: BatchSize
) -> Tensor:
    if len(box.inputs.shape) != 3:
        return positions.new_empty(len(positions), 0)
    return (field or receptive_field(box, path, axis=axis, batch_size=batch_size)).bounds_at(positions)


def _check_units(unit: int | Tensor, n: int, h: Tensor) -> Tensor:
    units = as_classes(unit).to(h.device, torch.long)
    if units.ndim > 1 or (units.ndim == 1 and len(units) != n):
        raise InputError(f"wanted one unit, or one for each of {n} examples; got shape {tuple(units.shape)}")
    if units.numel() and not (int(units.min()) >= 0 and int(units.max()) < h.shape[1]):
        raise InputError(f"the layer has units 0 to {h.shape[1] - 1}; got {int(units.min())} to {int(units.max())}")
    return units.expand(n)


def _check_positions(position: Tensor, h: Tensor) -> Tensor:
    positions = as_classes(position).to(h.device, torch.long)
    sides = torch.tensor(h.shape[2:], device=h.device)
    if positions.shape != (len(h), len(sides)) or bool(((positions < 0) | (positions >= sides)).any()):
        raise InputError(f"wanted positions ({len(h)}, {len(sides)}) within {tuple(h.shape[2:])}, one an example")
    return positions
