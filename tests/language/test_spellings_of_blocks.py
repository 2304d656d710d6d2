"""A lens and LeGrad read the residual stream in whatever modules a block is written, or say that they can't."""

from __future__ import annotations

import pytest
import torch

import unboxed as ub
from language.attending import LETTERS, ResidualOutside, TextTransformer, encoded_letters, open_texts
from unboxed.attribution import legrad
from unboxed.errors import LayerError
from unboxed.language import logit_lens, tuned_lens

SPELLINGS = {
    "sequence": {"in_sequence": True},
    "attributes": {"in_sequence": False},
    "no list": {"in_sequence": True, "in_list": False},
    "one block": {"in_sequence": True, "n_blocks": 1},
    "one block of attributes": {"in_sequence": False, "n_blocks": 1},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_lens_is_the_end_of_the_model_on_each_blocks_output(spelling: str) -> None:
    model = TextTransformer(**SPELLINGS[spelling])
    lens = logit_lens(open_texts(model), LETTERS)
    ids, mask = encoded_letters(LETTERS)
    with torch.no_grad():
        want = torch.stack([model.end(h, mask) for h in model.states(ids, mask)], 1)
    assert lens.logits.shape == want.shape
    assert torch.allclose(lens.logits, want, atol=1e-12)


def test_a_feed_forward_in_a_sequence_changes_nothing() -> None:
    plain, sequence = (open_texts(TextTransformer(in_sequence)) for in_sequence in (False, True))
    a, b = legrad(plain, LETTERS, 1), legrad(sequence, LETTERS, 1)
    assert a.layers == b.layers == ("blocks.0", "blocks.1", "blocks.2")
    assert float(a.map.max()) > 1e-4
    assert torch.equal(a.map, b.map)
    a, b = (tuned_lens(box, LETTERS, ["foo bar", "as df gh"], n_steps=5) for box in (plain, sequence))
    assert torch.equal(a.logits, b.logits)


def test_blocks_whose_residual_connection_is_outside_are_refused() -> None:
    box = open_texts(ResidualOutside())
    for method in (logit_lens, legrad):
        with pytest.raises(LayerError, match=r"what 'blocks\.2\.0' gives is not all that the rest of the model reads"):
            method(box, LETTERS)
    with pytest.raises(LayerError, match="the answer still changes with the input"):
        tuned_lens(box, LETTERS, LETTERS, n_steps=1)
    assert ub.language.attention(box, LETTERS).layers == ("blocks.0.0", "blocks.1.0", "blocks.2.0")
