"""Contract 2: splitting a batch changes nothing: to 1e-9 in float64, up to rounding in float32."""

from __future__ import annotations

import torch

from contracts.common import (
    CARDS,
    REFUSED,
    each_method,
    has_parameters,
    shared_case,
)
from unboxed.testing import rows


@each_method("rows", lambda card: has_parameters(card, "x") and not has_parameters(card, "seed"))
def test_rows_alone(name: str) -> None:
    """Each row in a call of its own: the same as in the batch, in every part that has a row an example."""
    for model in ("batchnorm_in_train_mode", "relu_logits", "dropout_always_on"):
        if (name, model) not in REFUSED:
            rows.check_rows(CARDS[name], model, shared_case(model, torch.float64))


@each_method("row seeds", lambda card: has_parameters(card, "seed"))
def test_the_first_row_alone_draws_as_in_a_batch(name: str) -> None:
    rows.check_rows(CARDS[name], "plain", shared_case("plain", torch.float64))


@each_method("target", lambda card: has_parameters(card, "target"))
def test_another_target_another_map(name: str) -> None:
    rows.check_maps_depend_on_target(CARDS[name])
