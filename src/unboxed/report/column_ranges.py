"""Tables without std or bounds: the report takes the range of each column in its data, so that columns compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.column_units import MIN_ROWS_OF_SPREADS, has_scales
from ..engine.read.examples import first_inputs
from ..engine.unroll.model_training import ModelTraining
from ..inputs.base import Inputs
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from .source import ReportData


def with_ranges_of_rows(box: Box, source: ReportData, rows: Sequence[int], training: Any = None) -> Box:
    """The box, with bounds of the columns that have neither std nor bounds: their smallest and largest values in these
    rows and the training data."""
    parts = [part for _, part in box.inputs.keys_and_parts()] if isinstance(box.inputs, MultiInput) else [box.inputs]
    if len(rows) < MIN_ROWS_OF_SPREADS or all(not isinstance(p, Features) or has_scales(p) for p in parts):
        return box
    x = box.validate_inputs(source.read(rows).x)
    if training is not None:
        train_x = training.x if isinstance(training, ModelTraining) else first_inputs(box, training)
        x = torch.cat([x, box.validate_inputs(train_x).to(x)])
    return box.with_model(box.model, _bounded(box.inputs, x))


def _bounded(inputs: Inputs, x: Tensor) -> Inputs:
    """The inputs with bounds; x (N, ...) are rows of them."""
    if isinstance(inputs, MultiInput):
        values = zip(inputs.keys_and_parts(), inputs.split(x), strict=True)
        bounded = [_bounded(part, part_values) for (_, part), part_values in values]
        parts = dict(zip(inputs.parts, bounded, strict=True)) if isinstance(inputs.parts, Mapping) else tuple(bounded)
        return replace(inputs, parts=parts)
    if not isinstance(inputs, Features) or has_scales(inputs):
        return inputs
    ends = zip(inputs.low, inputs.high, x.amin(0).tolist(), x.amax(0).tolist(), strict=True)
    low, high = zip(*((max(low, a), min(high, b)) for low, high, a, b in ends), strict=True)
    return replace(inputs, low=low, high=high)
