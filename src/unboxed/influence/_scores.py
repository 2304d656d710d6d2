"""What methods that compare examples by their gradients or features share."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ..box import Box
from ..engine.example_gradients.losses import ExampleLoss, resolve_loss
from .result import (
    HALF_SQUARED_ERROR_UNIT_TEXT,
    LOSS_PER_EXAMPLE_UNIT_TEXT,
    NATS_PER_EXAMPLE_UNIT_TEXT,
    Influence,
)

LossFunction = Annotated[ExampleLoss | None, "Function of (outputs, labels) that returns each example's loss (N,)."]


def loss_change_unit_text(box: Box, loss: ExampleLoss | None = None) -> str:
    """Unit of what leaving an example out changes: cross-entropies are nats, the loss of numbers is not."""
    if box.outputs != "regression":
        return NATS_PER_EXAMPLE_UNIT_TEXT
    is_squared_error = resolve_loss(box, loss) is resolve_loss(box, None)
    return HALF_SQUARED_ERROR_UNIT_TEXT if is_squared_error else LOSS_PER_EXAMPLE_UNIT_TEXT


def class_names_of(box: Box) -> tuple[str, ...]:
    """The names of the classes; none of a regression."""
    return () if box.outputs == "regression" else box.classes


def make_one_run_influence(
    box: Box,
    method: str,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    train_labels: Tensor,
    unit: str,
) -> Influence:
    """The result of queries x (Q, ...) and labels y (Q,) that the model itself was asked about, not others like it."""
    return Influence(
        scores.to(box.dtype), "one run", unit, method, box.restore_structure(x), y, train_labels, class_names_of(box)
    )  # fmt: skip


def products_to_cosines(products: Tensor, lengths: Tensor, train_lengths: Tensor) -> Tensor:
    """Products (Q, N) divided by the lengths (Q,) and (N,); 0 where a length is 0."""
    scale = lengths[:, None] * train_lengths
    return products / scale.where(scale > 0, 1)
