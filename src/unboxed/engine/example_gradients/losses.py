"""The loss of each example, as it fits what a model's output means."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ...box import Box
from ...errors import InputError

ExampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, ...), labels (N, ...)) -> losses (N,); of a yes/no output z, logits are the pair (-z/2, z/2)."""


def loss_input_address(box: Box) -> str:
    """What a loss is made of: the logits, or the output of a regression."""
    return "output" if box.outputs == "regression" else "logits"


def resolve_loss(box: Box, loss: ExampleLoss | None) -> ExampleLoss:
    """The given loss, or the one that fits the box's outputs: in nats, of logits; half the squared error of numbers.

    Raises OutputError where none is given and the model classifies each position: one class is no label of a map.
    """
    if loss is not None:
        return loss
    if box.output_map_shape and box.outputs != "regression":
        box.require_class_scores("the loss of an example")
    return _LOSS_BY_OUTPUTS.get(box.outputs, _cross_entropy)


def check_losses_per_example(losses: Tensor, n: int) -> Tensor:
    """The losses of n examples themselves. Raises InputError unless they are (n,): means and columns are others."""
    if losses.shape == (n,):
        return losses
    hint = "; give reduction='none'" if losses.ndim == 0 else ""
    raise InputError(f"the loss must give a number per example, ({n},); got {tuple(losses.shape)}{hint}")


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:  # (N, K), (N,)
    return F.cross_entropy(z, y.long(), reduction="none")


def _binary_cross_entropy(z: Tensor, y: Tensor) -> Tensor:  # (N, K), labels (N, K) of 0 and 1
    return F.binary_cross_entropy_with_logits(z, _reshape_labels_like(z, y), reduction="none").flatten(1).sum(1)


def _half_squared_error(z: Tensor, y: Tensor) -> Tensor:  # (N, K), (N,) or (N, K)
    return 0.5 * (z - _reshape_labels_like(z, y)).square().flatten(1).sum(1)


def _reshape_labels_like(z: Tensor, y: Tensor) -> Tensor:
    """Labels that are one value per output, in the shape of the outputs."""
    if y.numel() != z.numel():
        raise InputError(f"wanted labels with a value for each of the outputs {tuple(z.shape)}; got {tuple(y.shape)}")
    return y.to(z).reshape(z.shape)


_LOSS_BY_OUTPUTS: dict[str, ExampleLoss] = {"multilabel": _binary_cross_entropy, "regression": _half_squared_error}
"""Others are the cross-entropy of logits: also of one yes/no output, whose box has the logits of no and yes."""
