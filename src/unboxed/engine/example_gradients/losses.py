"""The loss of each example, as it fits what a model's output means."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ...box import Box

ExampleLoss = Callable[[Tensor, Tensor], Tensor]  # (outputs (N, ...), labels (N, ...)) -> losses (N,)


def resolve_loss(box: Box, loss: ExampleLoss | None) -> ExampleLoss:
    """The given loss, or the one that fits the box's outputs: in nats, of logits; half the squared error of numbers."""
    return _LOSS_BY_OUTPUTS.get(box.outputs, _cross_entropy) if loss is None else loss


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:  # (N, K), (N,)
    return F.cross_entropy(z, y.long(), reduction="none")


def _binary_cross_entropy(z: Tensor, y: Tensor) -> Tensor:  # (N, K), (N,) or (N, K)
    return F.binary_cross_entropy_with_logits(z, y.to(z).reshape(z.shape), reduction="none").flatten(1).sum(1)


def _half_squared_error(z: Tensor, y: Tensor) -> Tensor:  # (N, K), (N,) or (N, K)
    return 0.5 * (z - y.to(z).reshape(z.shape)).square().flatten(1).sum(1)


_LOSS_BY_OUTPUTS: dict[str, ExampleLoss] = {
    "binary": _binary_cross_entropy,
    "multilabel": _binary_cross_entropy,
    "regression": _half_squared_error,
}
