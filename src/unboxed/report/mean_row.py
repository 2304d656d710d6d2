"""Tables whose mean is not known, as where the model normalizes: methods start from the mean of the report's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..box import Box
from ..checks.methods import AttributionMethodFn, with_baseline
from ..engine.column_units import table_inputs
from ..engine.perturb.baselines import baseline_of_row_means, has_known_mean

MAX_ROWS_OF_MEAN = 10_000


def with_mean_as_baseline(
    methods: Mapping[str, AttributionMethodFn], box: Box, read_rows: Callable[[], Tensor]
) -> dict[str, AttributionMethodFn]:
    """The methods, those that take a baseline with the mean of rows (N, ...), of tables whose mean is not known."""
    if table_inputs(box.inputs) is None or has_known_mean(box.inputs):
        return dict(methods)
    rows = box.validate_inputs(read_rows())
    return with_baseline(methods, baseline_of_row_means(box.inputs, rows, tables_only=True))
