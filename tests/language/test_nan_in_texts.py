"""A model of texts that gives NaN is refused, and the texts are named; padding that attends to nothing is nobody's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from language.attending import LETTERS, HeadsFirst, TextTransformer, open_texts
from unboxed.adversarial import hotflip
from unboxed.errors import NaNError
from unboxed.language import attention, head_ablation, logit_lens, tuned_lens

METHODS: dict[str, Callable[..., Any]] = {
    "attention": attention,
    "head_ablation": head_ablation,
    "head_ablation of a class": partial(head_ablation, target=0),
    "logit_lens": logit_lens,
    "tuned_lens": partial(tuned_lens, train_x=["foo bar"], n_steps=2),
    "hotflip": partial(hotflip, y=0, max_swaps=1, n_candidates=2),
}


def box_with_a_nan(letter: str) -> ub.Box:
    model = TextTransformer(n_blocks=2)
    model.embed.weight.data[ord(letter)] = torch.nan
    return open_texts(model)


@pytest.mark.parametrize("batch_size", ["auto", 1])
@pytest.mark.parametrize("method", METHODS)
def test_texts_whose_answer_is_nan_are_named(method: str, batch_size: Any) -> None:
    with pytest.raises(NaNError) as caught:
        METHODS[method](box_with_a_nan("!"), LETTERS, batch_size=batch_size)
    assert caught.value.rows == [1]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "hotflip"])
def test_other_texts_of_the_same_model_are_taken(method: str) -> None:
    METHODS[method](box_with_a_nan("!"), ["some text", "a bc"])


def test_a_swap_to_a_token_of_nan_is_an_error() -> None:
    box = box_with_a_nan("!")
    y = box.predict(["some text"])
    with pytest.raises(NaNError, match="the gradient by which swaps are estimated") as caught:
        hotflip(box, ["some text"], y)
    assert caught.value.rows == [0]
    assert hotflip(box, ["some text"], y, allowed=["97", "98"]).success.shape == (1,)


def test_training_inputs_of_nan_are_named() -> None:
    with pytest.raises(NaNError, match="NaN for the training input of row 1") as caught:
        tuned_lens(box_with_a_nan("!"), ["some text"], ["a bc", "no!"], n_steps=2)
    assert caught.value.rows == [1]


class PaddingAttendsToNothing(HeadsFirst):
    """Rows of padding have no key, so that their softmax is NaN; the answer does not read them."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(ids)
        z = (h @ h.mT)[:, None].expand(-1, 2, -1, -1)
        both = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
        w = z.masked_fill(~both, -torch.inf).softmax(-1)
        out = (w @ h[:, None]).mean(1)
        out = torch.where(mask[..., None].bool(), out, 0)
        return self.head(out.sum(1) / mask.sum(1, keepdim=True))


def test_nan_of_padding_alone_is_no_error() -> None:
    box = open_texts(PaddingAttendsToNothing())
    (weights,) = attention(box, LETTERS).weights.values()
    assert bool(weights[2, :, 4:].isnan().all())
    assert not bool(weights[2, :, :4].isnan().any())


class NaNAtTheEnd(nn.Module):
    """NaN of the second text alone, though every map is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TextTransformer(n_blocks=2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        out = self.inner(ids, mask)
        return torch.where((ids == ord("!")).any(1, keepdim=True), torch.nan, out)


def test_maps_of_a_model_whose_end_gives_nan_are_shown() -> None:
    box = open_texts(NaNAtTheEnd())
    assert not any(bool(w.isnan().any()) for w in attention(box, LETTERS).weights.values())
    with pytest.raises(NaNError, match="row 1"):
        logit_lens(box, LETTERS)
