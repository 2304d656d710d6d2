"""Probabilities that are none, where a user says that the outputs are: refused when the model is opened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.errors import OutputError

LAYERS: dict[str, tuple[nn.Module, ...]] = {
    "logits": (),
    "probs": (nn.Softmax(1),),
    "logprobs": (nn.LogSoftmax(1),),
    "sigmoids": (nn.Sigmoid(),),
}


def opened(kind: str, outputs: Any, n: int = 4) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Sequential(nn.Linear(3, n), *LAYERS[kind]), ub.Features(tuple("abc")), outputs=outputs)


@pytest.mark.parametrize(
    ("kind", "said", "advice"),
    [
        ("logits", "probs", 'outputs="logits"'),
        ("logits", "logprobs", 'outputs="logits"'),
        ("logprobs", "probs", 'outputs="logprobs"'),
        ("probs", "logprobs", 'outputs="probs"'),
        ("sigmoids", "probs", 'outputs="multilabel"'),
    ],
)
def test_another_kind_is_refused_with_the_one_that_it_is(kind: str, said: str, advice: str) -> None:
    with pytest.raises(
        OutputError, match=rf'outputs="{said}" are .* the model gives values from \S+ to .*Pass {advice}'
    ):
        opened(kind, said)


@pytest.mark.parametrize(("kind", "advice"), [("probs", 'outputs="probs"'), ("sigmoids", 'outputs="multilabel"')])
def test_probabilities_are_never_read_as_logits(kind: str, advice: str) -> None:
    with pytest.raises(OutputError, match=f'outputs="logits", but the model gives .*Pass {advice}'):
        opened(kind, "logits")
    assert opened("logits", "logits").outputs == opened("logprobs", "logits").outputs == "logits"


class Untrained(nn.Module):
    """Outputs near one value for every input."""

    def __init__(self, end: nn.Module, n: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.end = nn.Conv2d(1, 4, 3), nn.Linear(4, n), end
        with torch.no_grad():
            self.head.weight.mul_(scale)
            self.head.bias.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.head(self.conv(x).relu().mean((2, 3))))


def test_a_softmax_gives_no_labels_of_their_own_also_where_its_outputs_hardly_vary() -> None:
    inputs = ub.Pixels((1, 8, 8))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        with pytest.raises(OutputError, match=r'sum to 1, as those of a softmax.*Pass outputs="probs"'):
            ub.Box(Untrained(nn.Softmax(1)).to(dtype), inputs, outputs="multilabel")
    for model in (
        Untrained(nn.Sigmoid()),
        Untrained(nn.Sigmoid(), 2, scale=0.0),  # one half each
        Untrained(nn.Hardtanh(0.5, 0.6), 2, scale=0.0),  # logits
        Untrained(nn.Sigmoid(), 2, scale=1e-4),
        Untrained(nn.Hardtanh(0.2, 0.3)),
    ):
        assert ub.Box(model, inputs, outputs="multilabel").outputs == "multilabel"


def test_logits_between_0_and_1_are_logits() -> None:
    class Small(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).clamp(0.1, 0.9)

    class Decision(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(super().forward(x).argmax(1), 4).float()

    for model in (Small(3, 4), Decision(3, 4)):
        assert ub.Box(model, ub.Features(tuple("abc")), outputs="logits").outputs == "logits"


def test_one_logit_is_no_probability() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        model[0].bias.add_(3)
    with pytest.raises(OutputError, match='Pass outputs="binary" for a yes/no logit'):
        ub.Box(model, ub.Features(tuple("abc")), outputs="probs")
    assert opened("sigmoids", "probs", 1).outputs == "binary"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["probs", "logprobs"])
def test_what_they_are_is_taken_in_every_precision(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1000), *LAYERS[kind]).to(dtype)
    assert ub.Box(model, ub.Features(tuple("abc")), outputs=kind).outputs == kind


class MeanOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a(x).softmax(1) + self.b(x).softmax(1)) / 2


@pytest.mark.parametrize("outputs", [None, "logits", "probs"])
def test_where_no_softmax_is_seen_the_advice_works(outputs: Any) -> None:
    model, x = MeanOfTwo(), torch.rand(5, 3)
    with pytest.raises(OutputError, match=r'pass Box\(\.\.\., output=lambda p: p\.log\(\), outputs="logits"\)$'):
        ub.Box(model, ub.Features(tuple("abc")), outputs=outputs)(x)
    box = ub.Box(model, ub.Features(tuple("abc")), output=lambda p: p.log(), outputs="logits")
    torch.testing.assert_close(box.probs(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("outputs", [None, "logits"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_outputs_of_least_squares_sum_to_one_and_are_logits(outputs: Any, is_pair: bool) -> None:
    """Fitted to one-hot labels, and near their means where what is learned is little."""

    class LeastSquares(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = super().forward(x)
            return torch.cat([h[:, :1], 1 - h[:, :1]], 1) if is_pair else h

    torch.manual_seed(0)
    model = LeastSquares(3, 4)
    with torch.no_grad():
        model.weight.mul_(0.05).sub_(model.weight.mean(0))
        model.bias.copy_(torch.tensor([0.5, 0.1, 0.2, 0.2]))
    x = torch.rand(5, 3)
    assert bool(((model(x) > 0) & (model(x) < 1)).all())
    box = ub.Box(model, ub.Features(tuple("abc")), outputs=outputs)
    assert box.outputs == "logits"
    torch.testing.assert_close(box(x), model(x), rtol=0, atol=0)


def test_logits_whose_exponentials_happen_to_sum_to_one_are_logits() -> None:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.mul_(0.01)
        model.bias.fill_(-torch.tensor(3.0).log())
    assert ub.Box(model, ub.Features(tuple("abc"))).outputs == "logits"
    assert ub.Box(nn.Sequential(model, nn.LogSoftmax(1)), ub.Features(tuple("abc"))).outputs == "logprobs"
