"""Neurons of a model of texts, ablated one at a time at all tokens: as by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from language.attending import LETTERS, TextTransformer, encoded_letters, open_texts
from unboxed.errors import InputError

LAYER = "blocks.1.ff.1"  # the neurons of a block's feed-forward network


def by_hand(model: TextTransformer, unit: int, value: float) -> Tensor:
    """Logits with a neuron at this value."""

    def put(module: Any, args: Any, h: Tensor) -> Tensor:
        h = h.clone()
        h[..., unit] = value
        return h

    layer: Any = model.blocks[1].ff[1]  # type: ignore[index,union-attr]
    handle = layer.register_forward_hook(put)
    with torch.no_grad():
        logits = model(*encoded_letters(LETTERS))
    handle.remove()
    return logits


def test_neurons_are_ablated_at_all_tokens() -> None:
    model = TextTransformer().double()
    box = open_texts(model)
    found = ub.activations.ablation(box, LETTERS, LAYER, [0, 5, 31], target=1)
    for i, unit in enumerate((0, 5, 31)):
        want = by_hand(model, unit, 0.0)
        assert torch.allclose(found.ablated_logits[:, i], want, atol=1e-10)
        assert torch.allclose(found.ablated_scores[:, i], want[:, 1], atol=1e-10)
    assert found.ablated_logits.shape == (len(LETTERS), 3, 3)
    assert torch.allclose(found.original_logits, box(LETTERS), atol=1e-10)


def test_the_mean_is_that_of_tokens_without_padding() -> None:
    model = TextTransformer().double()
    box = open_texts(model)
    ids, mask = encoded_letters(LETTERS)
    with torch.no_grad():
        block: Any = model.blocks[1]
        h = model.states(ids, mask)[1]
        h = h + block.attend(block.norm1(h), mask)
        neurons = block.ff[1](block.ff[0](block.norm2(h)))[mask.bool()]  # (tokens, 32)
    found = ub.activations.ablation(box, LETTERS, LAYER, [3], target=1, replacement="mean", data=ub.data.Texts(LETTERS))
    assert torch.allclose(found.ablated_logits[:, 0], by_hand(model, 3, float(neurons[:, 3].mean())), atol=1e-10)


def test_units_beyond_the_layer_are_refused() -> None:
    with pytest.raises(InputError, match="has units 0 to 31; got up to 32"):
        ub.activations.ablation(open_texts(TextTransformer()), LETTERS, LAYER, [32])


def test_all_units_of_the_default_layer() -> None:
    found = ub.activations.ablation(open_texts(TextTransformer()), LETTERS[:2])
    assert found.score_change.shape == (2, len(found.units))
    assert set(ub.plots.figures(found))


class PooledTexts(nn.Module):
    """A layer `act` with one vector of 8 values per text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.h, self.act, self.out = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None].to(self.h.weight)
        return self.out(self.act(self.h((self.embed(input_ids) * weights).sum(1) / weights.sum(1))))


def test_the_mean_of_one_vector_per_text_where_texts_have_as_many_tokens_as_it_has_values() -> None:
    model = PooledTexts().double()
    box = ub.Box(model, ub.Tokens(lambda text: [int(w) for w in text.split()]), outputs="logits")
    data = ["1 2 3 4 5", "3 1 4 1 5 9 2 6", "8 8"]
    found = ub.activations.ablation(box, ["1 2"], "act", [0], target=1, replacement="mean", data=data)
    h, own = box.read(data, ["act"])["act"], box.read(["1 2"], ["act"])["act"].clone()
    own[:, 0] = h[:, 0].mean()
    assert torch.allclose(found.ablated_logits[:, 0], model.out(own), atol=1e-10)
