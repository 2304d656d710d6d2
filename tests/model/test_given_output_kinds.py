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
