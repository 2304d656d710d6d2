"""The rows that a regression is furthest off for, and the ranges of columns that have such rows."""

from __future__ import annotations

import math

import torch

from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from .context import ReportContext
from .input_nouns import column_names_and_values
from .regression import ErrorGroup, error_groups
from .regression_blocks import LargestError

N_LARGEST_ERRORS = 12


def largest_errors(context: ReportContext) -> list[LargestError]:
    """The examples that are furthest off, with what is predicted and the true value."""
    s, indices = context.survey, context.survey.indices_by_margin[:N_LARGEST_ERRORS]
    if s.targets is None:
        return []
    errors = (s.outputs - s.targets)[indices]  # (n, K)
    return [
        LargestError(e.text or e.name, e.label or "", e.output, float(row[0]) if len(row) == 1 else None)
        for e, row in zip(context.examples(indices), errors, strict=True)
    ]


def error_groups_of_columns(context: ReportContext) -> list[ErrorGroup]:
    """Ranges of a column whose rows have larger errors; of several outputs their mean, in standard deviations."""
    s, inputs = context.survey, context.box.inputs
    if s.targets is None or isinstance(inputs, (Pixels, Tokens)):
        return []
    error = s.outputs - s.targets  # (n, K)
    absolute = error.abs()
    if error.shape[1] > 1:
        spread = s.targets.std(0, correction=0)
        absolute, error = absolute / torch.where(spread > 0, spread, 1), torch.full_like(error, math.nan)
    names, columns = column_names_and_values(inputs, context.inputs(range(len(s.rows))))
    return error_groups(columns.cpu(), names, error[:, 0], absolute.mean(1), context.seed)
