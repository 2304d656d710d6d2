"""What the model answers, where an answer is to be used: NaN is none, though argmax takes it for a class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import NaNError

SHOWN = 5  # rows that an error names
FEW = 64  # numbers that Python looks at faster than torch
LOOK = (
    "Look for NaN in the model's weights, or for values that overflow on the way; mend the model, or leave these rows "
    "out"
)


def named(rows: Sequence[int]) -> str:
    """The first rows, as an error names them: "row 3", "rows 0, 1, 2, 3, 4, ..."."""
    shown = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
    return f"row{'s' * (len(rows) > 1)} {shown}"


def nan_error(rows: list[int], what: str) -> NaNError:
    """The error that names the rows: `what` of theirs gave NaN."""
    why = "NaN is no answer, though argmax takes it for a class"
    return NaNError(f"the model gives NaN for {what} of {named(rows)}: {why}. {LOOK}", rows, what)


def among(error: NaNError, rows: Tensor) -> NaNError:
    """The same error, its rows named as in the whole of which `rows` (n,) were asked."""
    return nan_error(rows[error.rows].tolist(), error.what)


def without_nan(values: Tensor, rows: Tensor | None = None, what: str = "the input") -> Tensor:
    """The values (n, ...) as they are: logits, or a score of them. -inf, a class that is masked, is no NaN.

    Raises NaNError that names the rows (n,) for which they are NaN, by default by their place.
    """
    bad = values.isnan()
    if bad.any():
        at = bad.flatten(1).any(1).nonzero()[:, 0] if values.ndim > 1 else bad.nonzero()[:, 0]
        raise nan_error(sorted(set((at if rows is None else rows[at]).tolist())), what)
    return values


def check_scores(scores: Tensor | Sequence[Tensor], of: str = "x") -> None:
    """Raise NaNError where a score to be attributed is NaN or infinite: any of a row's, of (N, ...) or N tensors."""
    if isinstance(scores, Tensor):
        if scores.numel() <= FEW and all(map(math.isfinite, scores.flatten().tolist())):  # isfinite is several ops
            return
        refuse_scores(~scores.isfinite().view(len(scores), -1).all(1), of)
    else:
        refuse_scores(torch.tensor([not bool(s.isfinite().all()) for s in scores]), of)


def refuse_scores(rows: Tensor, of: str = "x") -> None:
    """Raise NaNError that names the rows (N,) bool, whose scores are NaN or infinite; nothing where there are none."""
    if bad := rows.nonzero()[:, 0].tolist():
        where = f"{len(bad)} of {len(rows)} inputs ({named(bad)})"
        nothing = "so there is nothing to attribute: take another target or baseline, if it is theirs"
        raise NaNError(f"the score of {of} is NaN or infinite for {where}, {nothing}. {LOOK}", bad, of)
