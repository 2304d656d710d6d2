"""Law 2: splitting a batch changes nothing, in float64 to 1e-9, in float32 in the verdict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from laws.common import CARDS, REFUSED, TORCH_WARNS, Case, call, case, close, methods, pairs, takes, tensors

pytestmark = pytest.mark.filterwarnings(TORCH_WARNS)


@pairs("splitting")
def test_in_double_precision(name: str, net: str) -> None:
    card = CARDS[name]
    whole = tensors(call(card, case(net, torch.float64), batch_size=3))
    for size in (1, 2) if takes(card, "batch_size") else ():
        part = tensors(call(card, case(net, torch.float64), batch_size=size))
        assert close(part, whole, 1e-9) == [], f"batch_size={size}"


@pairs("splitting")
def test_the_verdict_in_the_nets_own_precision(name: str, net: str) -> None:
    card, c = CARDS[name], case(net)
    whole, part = (tensors(call(card, c, batch_size=size)) for size in (3, 1))
    assert {k: v.shape for k, v in whole.items()} == {k: v.shape for k, v in part.items()}
    of = {at: whole.get(at.replace(".error", ".difference"), h) for at, h in whole.items()}  # what is left of it
    assert {at: same_verdict(h, part[at], c, of[at]) for at, h in whole.items()} == dict.fromkeys(whole, True)


def same_verdict(a: Tensor, b: Tensor, c: Case, of: Tensor) -> bool:
    """What a reader takes from it: flags and counts exactly, an image by what the net says of it, a map roughly."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.shape[1:] == c.x.shape[1:] and a.min() >= 0 and a.max() <= 1:
        return torch.equal(c.box.predict(a), c.box.predict(b))
    off = (a.double() - b.double()).norm() / of.double().norm().clamp_min(1e-6)
    return bool(off < (0.1 if c.box.net_dtype == torch.bfloat16 else 1e-3))


@methods("splitting", lambda card: takes(card, "x") and not takes(card, "seed"))
@pytest.mark.parametrize(
    "net", ["plain", "batchnorm_in_train_mode", "inplace_relu", "clamped_logits", "dropout_always_on"]
)
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
