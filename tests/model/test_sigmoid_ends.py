"""Models that end in a sigmoid, one yes or no a class: recognized as they are opened, with the logits before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import OutputError

Op = Callable[[Tensor], Tensor]
PIXELS = ub.Pixels((1, 8, 8))


class Ends(nn.Module):
    def __init__(self, end: Op, maps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(1, 5, 3) if maps else nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        self.final_op = end

    def forward(self, x: Tensor) -> Tensor:
        return self.final_op(self.body(x))


def in_place(h: Tensor) -> Tensor:
    return h.sigmoid_()


SPELLINGS: dict[str, Op] = {
    "module": nn.Sigmoid(),
    "torch": torch.sigmoid,
    "functional": F.sigmoid,
    "method": lambda h: h.sigmoid(),
    "in place": in_place,
    "expit": torch.special.expit,
    "after another": lambda h: torch.sigmoid(h * h.sigmoid()),
}


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("maps", [False, True])
def test_a_sigmoid_is_recognized_and_its_logits_found(spelling: str, maps: bool) -> None:
    model, x = Ends(SPELLINGS[spelling], maps), images()
    box = ub.Box(model, PIXELS)
    assert box.outputs == "multilabel"
    assert torch.allclose(box.probs(x), model(x), atol=1e-6)
    assert torch.allclose(box(x).sigmoid(), model(x), atol=1e-6)
    told = ub.Box(model, PIXELS, outputs="multilabel")
    assert torch.equal(box(x), told(x))
    if not maps:
        assert torch.equal(ub.attribution.gradient(box, x, 0), ub.attribution.gradient(told, x, 0))


def test_the_gradient_is_the_logits_not_the_sigmoids() -> None:
    model = Ends(torch.sigmoid)
    want = model.body[1].weight[2].view(1, 1, 8, 8).expand(3, 1, 8, 8)
    assert torch.allclose(ub.attribution.gradient(ub.Box(model, PIXELS), images(), 2), want, atol=1e-6)


UNSURE: dict[str, Op] = {
    "clamped after it": lambda h: h.sigmoid().clamp(0.2, 0.8),
    "hand-written": lambda h: 1 / (1 + torch.exp(-h)),
    "scaled after it": lambda h: (h.sigmoid() + h.sigmoid()) / 2.5,
}


@pytest.mark.parametrize("end", UNSURE)
def test_what_looks_like_probabilities_is_asked_about(end: str) -> None:
    with pytest.raises(OutputError, match=r"between 0 and 1.*outputs="):
        ub.Box(Ends(UNSURE[end]), PIXELS)
    assert ub.Box(Ends(UNSURE[end]), PIXELS, outputs="logits").outputs == "logits"  # said, and not asked again


@pytest.mark.parametrize("end", UNSURE)
@pytest.mark.parametrize("outputs", ["binary", "multilabel"])
def test_probabilities_without_their_logits_are_refused(end: str, outputs: Any) -> None:
    model, columns = Ends(UNSURE[end]), slice(0, 1 if outputs == "binary" else None)
    model.body[1].weight.data *= 4  # as if trained: the probabilities differ
    with pytest.raises(OutputError, match=r"logits cannot be found.*output="):
        ub.Box(model, PIXELS, outputs=outputs, output=lambda p: p[:, columns])
    box = ub.Box(model, PIXELS, outputs=outputs, output=lambda p: p[:, columns].logit())  # the way out
    assert torch.allclose(box.probs(images())[:, -1], model(images())[:, columns][:, -1], atol=1e-6)


def test_small_logits_of_a_linear_layer_are_logits() -> None:
    model = Ends(nn.Identity())
    with torch.no_grad():
        model.body[1].weight.copy_(torch.rand(5, 64) / 100)  # from 0 to .5
    for outputs in (None, "multilabel"):
        box = ub.Box(model, PIXELS, outputs=outputs)
        assert torch.equal(box(images()), model(images()))


@pytest.mark.parametrize("end", [F.relu, torch.tanh, lambda h: 2 * h.sigmoid(), lambda h: h.sigmoid() * h])
def test_other_ends_are_logits_without_a_word(end: Op) -> None:
    assert ub.Box(Ends(end), PIXELS).outputs == "logits"


def test_a_softmax_stays_one() -> None:
    assert ub.Box(Ends(lambda h: (h * h.sigmoid()).softmax(1)), PIXELS).outputs == "probs"
