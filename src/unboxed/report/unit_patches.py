"""What activates a unit in its top examples: receptive fields, projections back to pixels, and whether they help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..activations import Projections, ReceptiveField, TopExamples, projections, receptive_field
from ..activations.projections import neuron_objective_per_example
from ..engine.optimize.constraints import MIN_DENOMINATOR, l2_norm
from ..errors import OutputError
from .context import ReportContext
from .finding import METADATA_OF_FIELD_NOT_IN_JSON

MAX_RECEPTIVE_FIELD_PROBE_BANDS = 28  # bands of rows: receptive fields in photos are rounded up to a 28th of the image
PROJECTION_STEP_PIXEL_RMS = 0.01  # root mean square of that change, in pixel range


@dataclass(frozen=True, eq=False)
class UnitPatches:
    """The top examples of some units of a layer of images, and what of each activates the unit."""

    receptive_field: ReceptiveField = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    x: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (U, k, C, H, W)
    projections: Projections | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # of U * k neurons
    no_projections_reason: str = ""
    increases: list[bool] = field(default_factory=list)  # after a small step along each projection


class SurveyInputsDataset:
    """Inputs of the survey, by their indices."""

    def __init__(self, context: ReportContext, indices: Sequence[int]) -> None:
        self._context, self._indices = context, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Tensor:
        return self._context.inputs([self._indices[i]])[0]


def find_unit_patches(
    context: ReportContext, top: TopExamples, indices: Sequence[int], chosen: Sequence[int]
) -> UnitPatches:
    side = max(context.box.inputs.shape[1:])
    field = receptive_field(context.box, top.path, resolution=max(1, side // MAX_RECEPTIVE_FIELD_PROBE_BANDS))
    x = top.fetch_examples(SurveyInputsDataset(context, indices), chosen)  # (U, k, C, H, W)
    unit = torch.tensor(chosen).repeat_interleave(top.example_index.shape[1])
    position = top.position[list(chosen)].flatten(0, 1)
    try:
        result = projections(context.box, x.flatten(0, 1), top.path, unit, position, field=field)
    except OutputError as error:
        return UnitPatches(field, x, None, f"No projections: {error}.")
    return UnitPatches(field, x, result, "", _neurons_increased_by_step(context, result, x.flatten(0, 1)).tolist())


def _neurons_increased_by_step(context: ReportContext, projected: Projections, x: Tensor) -> Tensor:
    """Which neurons (N,) are larger after a small step from their example along their projection."""
    x = x.to(projected.map)
    step = (
        PROJECTION_STEP_PIXEL_RMS
        * math.sqrt(x[0].numel())
        * projected.map
        / l2_norm(projected.map).clamp_min(MIN_DENOMINATOR).view(-1, 1, 1, 1)
    )
    stepped = context.box.inputs.clip(x + step)
    neuron = neuron_objective_per_example(projected.path, projected.unit, projected.position)
    return neuron(context.box.read(stepped, [projected.path])) > projected.value
