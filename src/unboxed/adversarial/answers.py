"""What the model answers, where an answer is to be judged: NaN is none, though argmax takes it for a class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..errors import NaNError
from ..net.batching import BatchSize

SHOWN = 5  # rows that an error names
NEITHER = (
    "such an answer is neither right nor wrong, so nothing can be said of robustness. Look for NaN in the model's "
    "weights, or for values that overflow on the way; mend the model, or leave these rows out"
)


def nan_error(rows: list[int], what: str) -> NaNError:
    """The error that names the rows: `what` of theirs gave NaN."""
    named = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
    return NaNError(f"the model gives NaN for {what} of row{'s' * (len(rows) > 1)} {named}: {NEITHER}", rows, what)


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


def likeliest_others(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` likeliest classes (n, count) other than the labels (n,), the likeliest first, given logits (n, K).

    Masked classes, of logit -inf, come last; the label never comes, though nothing may be less likely.
    """
    finite = logits.detach().clamp_min(torch.finfo(logits.dtype).min)
    return finite.scatter(1, labels[:, None], -torch.inf).topk(count).indices


def logits_of(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
    """The logits (N, K) of packed inputs x. Raises NaNError where some are NaN."""
    return without_nan(box(box.shaped(x), batch_size=batch_size))


def predicted(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
    """The classes (N,) of packed inputs x. Raises NaNError, and OutputError where the box predicts none."""
    return class_logits(box, x, batch_size).argmax(1)


def class_logits(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
    """As `logits_of`. Raises OutputError, too, where the box predicts no class."""
    if box.outputs == "regression":
        box.predict(box.shaped(x[:1]))  # which says why not
    return logits_of(box, x, batch_size)
