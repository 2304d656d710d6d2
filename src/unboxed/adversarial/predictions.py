"""The model's predictions, checked for NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..box import Box
from ..errors import NaNError
from ..model.batching import BatchSize
from ..model.nan_checks import check_no_nan


def top_other_classes(logits: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """The most probable classes (n, n_classes) other than the labels (n,), in descending order, given logits (n, K).

    Masked classes, of logit -inf, come last; the label itself never comes.
    """
    clamped = logits.detach().clamp_min(torch.finfo(logits.dtype).min)
    return clamped.scatter(1, labels[:, None], -torch.inf).topk(n_classes).indices


def nan_checked_logits(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
    """The logits (N, K) of packed inputs x. Raises NaNError where some are NaN."""
    return check_no_nan(box(box.restore_structure(x), batch_size=batch_size))


@contextmanager
def naming_originals_of_nan(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Iterator[None]:
    """Where a NaNError is raised inside, it names the rows of the packed inputs x themselves, if they give NaN."""
    try:
        yield
    except NaNError:
        nan_checked_logits(box, x, batch_size)
        raise


def predict_classes(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
    """The classes (N,) of packed inputs x. Raises NaNError, and OutputError where the box predicts none."""
    return nan_checked_logits_of_classifier(box, x, batch_size).argmax(1)


def nan_checked_logits_of_classifier(box: Box, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
    """As `nan_checked_logits`. Raises OutputError, too, where the box predicts no class."""
    if box.outputs == "regression":
        box.predict(box.restore_structure(x[:1]))  # raises, and says why
    return nan_checked_logits(box, x, batch_size)
