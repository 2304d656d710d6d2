"""Attacks on outputs that are not one class per example: their loss is raised as far as it goes, with no threshold.

Of a regression that is the distance from the correct numbers, or from what the model gave; of several labels and of
label maps the mean cross-entropy over labels or positions, as attacks on segmentation take it (Arnab et al. 2018,
arXiv:1711.09856; Gu et al. 2022, arXiv:2207.12391).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..engine.read.output_values import IGNORED_POSITION_LABEL, wanted_values_text
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Constant, Objective, RowIndex, layer_objective
from .goal import AttackGoal
from .predictions import nan_checked_logits
from .result import Adversarial

LOSS_NAME_BY_OUTPUTS = {"regression": "error"}  # in the output's own unit
CROSS_ENTROPY_NAME = "cross-entropy"


def loss_name(box: Box) -> str:
    """What the loss of a model's outputs is called."""
    return LOSS_NAME_BY_OUTPUTS.get(box.outputs, CROSS_ENTROPY_NAME)


def output_losses(box: Box, logits: Tensor, values: Tensor) -> Tensor:
    """The loss (N,) of logits (N, K, ...) given the values that the outputs should have (see `check_output_values`)."""
    if box.outputs == "regression":
        return _root_mean_square(logits - values)
    if box.outputs == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, values, reduction="none").flatten(1).mean(1)
    losses = F.cross_entropy(logits, values, ignore_index=IGNORED_POSITION_LABEL, reduction="none").flatten(1)
    return losses.sum(1) / (values != IGNORED_POSITION_LABEL).flatten(1).sum(1)


def _root_mean_square(d: Tensor) -> Tensor:
    """The root of the mean square of each row, (N,): |d| of one number. No square overflows or underflows.

    It has no derivative at zero, where an attack without y starts; there it has that of about the mean, which is one of
    its subgradients: the numbers' weights differ, as those of the mean cancel where the outputs have a constant sum.
    """
    d = d.flatten(1)
    peak = d.detach().abs().amax(1, keepdim=True)
    scale = torch.where(peak > 0, peak, 1.0)
    safe = torch.where(peak > 0, d / scale, 1.0)
    weights = 1 + torch.arange(1, d.shape[1] + 1, device=d.device).cos() / 8
    about_mean = (d * (weights / (1 + 1 / 8)).to(d.dtype)).mean(1)
    return torch.where(peak[:, 0] > 0, scale[:, 0] * safe.square().mean(1).sqrt(), about_mean)


def _objective_of_logits(score_of: Callable[[Tensor, Tensor], Tensor], values: Tensor, name: str) -> Objective:
    """`score_of(logits, values)`, (N,), as an objective."""

    def with_values(constant: Constant) -> Objective:
        def score(z: Tensor) -> Tensor:  # (N, K, ...)
            return score_of(z, constant.to_like(z))

        def select(index: RowIndex) -> Objective:
            return with_values(constant[index])

        return layer_objective("logits", score, name, select, len(constant))

    return with_values(Constant(values))


def make_output_loss_goal(box: Box, x: Tensor, values: Any, loss: str, batch_size: BatchSize) -> AttackGoal:
    """Raise the loss of the outputs of x, which should be `values` (a checked tensor or None), above what it is.

    Raises InputError.
    """
    if loss != "ce":
        raise InputError(f"loss={loss!r} is of classes; this attack raises the {loss_name(box)}: leave loss= out")
    if values is None and box.outputs != "regression":
        raise InputError(f"an untargeted attack needs y, {wanted_values_text(box)}; without it, give objective=")
    before = nan_checked_logits(box, x, batch_size).to(x.dtype)
    values = before if values is None else values
    objective = _objective_of_logits(partial(output_losses, box), values, loss_name(box))
    loss_before = objective({"logits": before})
    increase = objective - loss_before
    is_one_number = box.outputs == "regression" and before[0].numel() == 1
    signed_error = _objective_of_logits(_first_difference, values, "signed error") if is_one_number else None
    return AttackGoal(
        increase, increase, kind="loss", output_before=before, loss_before=loss_before, signed_error=signed_error
    )


def _first_difference(logits: Tensor, values: Tensor) -> Tensor:
    """(N,), of one number each."""
    return (logits - values).flatten(1)[:, 0]


def measured_losses(result: Adversarial, goal: AttackGoal, box: Box, batch_size: BatchSize) -> Adversarial:
    """The result with the outputs of the images that it returns; a success is an example with a larger loss."""
    after = nan_checked_logits(box, box.validate_inputs(result.images), batch_size)
    increase, loss_before = goal.criterion({"logits": after.to(result.distance.dtype)}), goal.loss_before
    return replace(
        result,
        success=increase > 0,
        output_before=goal.output_before,
        output_after=after,
        loss_before=loss_before,
        loss_after=None if loss_before is None else increase + loss_before,
    )
