"""How many rows a CPU computes at a time: those whose activations its cache holds; larger batches run slower.

The limits were measured. They apply to automatic batches on a CPU, and never split rows that depend on one another.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..model.batching import BatchSize

MAX_CPU_DATA_BATCH_ROWS = 192  # examples of a pass over data
MAX_CPU_PATH_BATCH_ROWS = 96  # points of a path of gradients
CPU_CACHE_FORWARD_BYTES = 20 * 2**20  # of two consecutive layers' activations, in forward passes alone
CPU_CACHE_GRADIENT_BYTES = 2**26  # of all activations that are kept for a backward pass
MIN_CPU_GRADIENT_BATCH_ROWS, MAX_CPU_GRADIENT_BATCH_ROWS = 16, 128
"""With fewer rows, weights are read too often; with more, memory is mapped again for each activation: PGD of small
models took 5 % less time in user space with 250 rows, and a third more in the kernel."""


def forward_batch_size_and_max_rows(box: Box, n_rows: int, batch_size: BatchSize) -> tuple[BatchSize, int]:
    """(size, max_rows) for `map_in_batches`, for forward passes alone, limited by the cache."""
    size, max_rows = box.batch_size_and_max_rows(n_rows, batch_size)
    if box.device.type == "cpu" and not box.batch_dependent:
        max_rows = min(max_rows, max(1, CPU_CACHE_FORWARD_BYTES // max(1, box.profile.peak_bytes_per_example)))
    return size, max_rows


def gradient_batch_size_and_max_rows(
    box: Box, n_rows: int, batch_size: BatchSize, batch_dependent: bool = False
) -> tuple[BatchSize, int]:
    """(size, max_rows) for `map_in_batches`, for gradients: `box.batch_size_and_max_rows`, limited by the cache."""
    size, max_rows = box.batch_size_and_max_rows(n_rows, batch_size, batch_dependent)
    if box.device.type == "cpu" and not (batch_dependent or box.batch_dependent):
        cache_rows = CPU_CACHE_GRADIENT_BYTES // max(1, box.profile.bytes_per_example)
        max_rows = min(max_rows, MAX_CPU_GRADIENT_BATCH_ROWS, max(MIN_CPU_GRADIENT_BATCH_ROWS, cache_rows))
    return size, max_rows


def path_points_per_batch(box: Box) -> int:
    """The rows of an automatic batch of points of a path."""
    return min(box.batch_limit, MAX_CPU_PATH_BATCH_ROWS) if box.device.type == "cpu" else box.batch_limit


def data_examples_per_batch(box: Box) -> int:
    """The examples of an automatic batch of a pass over data."""
    return MAX_CPU_DATA_BATCH_ROWS if box.device.type == "cpu" else box.batch_limit


def cpu_rows_per_chunk(x: Tensor, max_values: int) -> int:
    """Rows of x (N, ...) that have at most `n_values` values together; all of them on other devices."""
    return max(1, max_values // max(1, x[0].numel())) if len(x) and x.device.type == "cpu" else max(1, len(x))
