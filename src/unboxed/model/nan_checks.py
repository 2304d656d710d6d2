"""Checks of a model's outputs: NaN is not an answer, although argmax takes it for a class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import NaNError

MAX_ROWS_IN_ERROR_MESSAGE = 5  # rows that an error names
MAX_SCORES_CHECKED_IN_PYTHON = 64  # fewer are checked faster in Python than by torch
OPTIMIZED_INPUT_IN_ERRORS = "the optimized input"
NAN_HINT = (
    "Look for NaN in the model's weights, or for values that overflow in it; repair the model, or leave these rows out"
)


def names_of_nan_weights(model: nn.Module) -> list[str]:
    """The parameters and buffers that hold NaN."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [name for name, value in tensors if _has_values(value) and value.isnan().any()]


def names_of_infinite_parameters(model: nn.Module) -> list[str]:
    """The parameters that hold infinite values; buffers may, as masks of attention do."""
    return [name for name, value in model.named_parameters() if _has_values(value) and value.isinf().any()]


def _has_values(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta and not is_lazy(tensor)


def row_numbers_text(rows: Sequence[int]) -> str:
    """The first rows in words: "row 3", "rows 0, 1, 2, 3, 4, ..."."""
    numbers = ", ".join(map(str, rows[:MAX_ROWS_IN_ERROR_MESSAGE])) + (
        ", ..." if len(rows) > MAX_ROWS_IN_ERROR_MESSAGE else ""
    )
    return f"row{'s' * (len(rows) > 1)} {numbers}"


def nan_error(rows: list[int], what: str) -> NaNError:
    """The error that names the rows for whose `what` the model gives NaN."""
    why = "NaN is not an answer, although argmax takes it for a class"
    return NaNError(f"the model gives NaN for {what} of {row_numbers_text(rows)}: {why}. {NAN_HINT}", rows, what)


def reindex_nan_error(error: NaNError, rows: Tensor) -> NaNError:
    """The same error with the rows' indices in the full batch, of which `rows` (n,) were run."""
    return nan_error(rows[error.rows].tolist(), error.what)


def check_no_nan(values: Tensor, rows: Tensor | None = None, what: str = "the input") -> Tensor:
    """The values (n, ...) themselves: logits, or scores. -inf, as of a masked class, is allowed.

    Raises NaNError that names the indices of the rows, or their entries of `rows` (n,).
    """
    is_nan = values.isnan()
    if is_nan.any():
        nan_rows = is_nan.flatten(1).any(1).nonzero()[:, 0] if values.ndim > 1 else is_nan.nonzero()[:, 0]
        raise nan_error(sorted(set((nan_rows if rows is None else rows[nan_rows]).tolist())), what)
    return values


def check_finite_scores(scores: Tensor | Sequence[Tensor], input_name: str = "x") -> None:
    """Raise NaNError where a score to be attributed is NaN or infinite: scores (N, ...), or N tensors."""
    if isinstance(scores, Tensor):
        is_short = scores.ndim == 1 and scores.shape[0] <= MAX_SCORES_CHECKED_IN_PYTHON
        if is_short and all(map(math.isfinite, scores.tolist())):  # isfinite is several ops
            return
        raise_for_nonfinite_scores(~scores.isfinite().view(len(scores), -1).all(1), input_name)
    else:
        raise_for_nonfinite_scores(torch.tensor([not bool(s.isfinite().all()) for s in scores]), input_name)


def raise_for_nonfinite_scores(is_nonfinite: Tensor, input_name: str = "x") -> None:
    """Raise NaNError that names the rows whose scores are NaN or infinite, given as (N,) bool, if there are any."""
    if bad_rows := is_nonfinite.nonzero()[:, 0].tolist():
        where = f"{len(bad_rows)} of {len(is_nonfinite)} inputs ({row_numbers_text(bad_rows)})"
        nothing = "so there is nothing to attribute: choose another target or baseline, if they are the cause"
        raise NaNError(
            f"the score of {input_name} is NaN or infinite for {where}, {nothing}. {NAN_HINT}", bad_rows, input_name
        )
