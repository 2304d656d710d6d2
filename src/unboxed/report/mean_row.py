"""Tables whose mean is not known, as where the model normalizes: methods start from the mean of the report's data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ..box import Box
from ..checks.methods import AttributionMethodFn
from ..engine.perturb.baselines import baseline_of_row_means

MAX_ROWS_OF_MEAN = 10_000


def with_mean_as_baseline(
    methods: Mapping[str, AttributionMethodFn], box: Box, rows: Tensor
) -> dict[str, AttributionMethodFn]:
    """The methods, those that take a baseline with the mean of these rows (N, ...), where none is known."""
    settings = {"baseline": baseline_of_row_means(box.inputs, box.validate_inputs(rows), tables_only=True)}
    takes_baseline = {name for name, method in methods.items() if "baseline" in inspect.signature(method).parameters}
    return {name: partial(m, **settings) if name in takes_baseline else m for name, m in methods.items()}
