"""Law 2: splitting a batch changes nothing, in float64 to 1e-9, in float32 in the verdict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from laws.common import CARDS, REFUSED, TORCH_WARNS, Case, call, case, close, methods, takes, tensors

pytestmark = pytest.mark.filterwarnings(TORCH_WARNS)


@methods("splitting", lambda card: takes(card, "x") and not takes(card, "seed"))
@pytest.mark.parametrize("net", ["batchnorm_in_train_mode", "clamped_logits", "dropout_always_on"])
def test_rows_alone(name: str, net: str) -> None:
    """Each row in a call of its own: the same as in the batch, in every part that has a row an example."""
    if (name, net) in REFUSED:
        return
    c = case(net, torch.float64)
    whole = tensors(call(CARDS[name], c))
    for i in range(3):
        alone = tensors(call(CARDS[name], Case(c.box, c.x[i : i + 1], c.y[i : i + 1])))
        for at, h in whole.items():
            mine, row = alone[at], axis_of_rows(h)
            if row is None:
                continue
            picked = h.narrow(row, i, 1)
            if row == 1:  # frames (T, N, ...): a row alone may be done sooner, and then stays as it is
                picked, mine = picked[-1], mine[-1]
            assert close({at: mine}, {at: picked}, 1e-9) == []


def axis_of_rows(h: Tensor) -> int | None:
    """0 for (N, ...), 1 for (T, N, ...), None where no axis has a row an example."""
    sizes = tuple(h.shape)
    if len(sizes) > 1 and sizes[0] != 3 and sizes[1] == 3:
        return 1
    return 0 if sizes and sizes[0] == 3 else None


@methods("splitting", lambda card: takes(card, "batch_size"))
def test_more_rows_than_the_automatic_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case("plain", torch.float64, n=7)
    want = tensors(call(CARDS[name], c))
    monkeypatch.setattr("unboxed.box.BATCH_BYTES", 1)
    assert c.box.batch_limit == 1
    assert close(tensors(call(CARDS[name], c)), want, 1e-9) == []
