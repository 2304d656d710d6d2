"""Contract 3: the same seed gives the same answer; randomness is an argument, never global."""

from __future__ import annotations

import pytest
import torch

from contracts.common import (
    CARDS,
    call_example,
    has_parameters,
    methods,
    result_difference_texts,
    result_tensors,
    shared_case,
)


@methods("another seed", lambda card: has_parameters(card, "seed"))
@pytest.mark.parametrize("model", ["plain", "double"])
def test_another_seed_another_draw(name: str, model: str) -> None:
    c = shared_case(model)
    first, second = (result_tensors(call_example(CARDS[name], c, seed=s)) for s in (0, 1))
    assert result_difference_texts(first, second, 1e-6) != [], f"{name} takes a seed and does not use it"


@methods("row seeds", lambda card: has_parameters(card, "seed", "x"))
def test_rows_draw_for_themselves(name: str) -> None:
    """Two rows with the same image and label start from different draws, and row 0 draws alike in any batch."""
    c = shared_case("plain", torch.float64)
    c.x[1], c.y[1] = c.x[0], c.y[0]
    whole = result_tensors(call_example(CARDS[name], c))
    images = next(h for h in whole.values() if h.shape == c.x.shape)
    assert not torch.allclose(images[0], images[1])
    c.x[2] = 0
    again = next(h for h in result_tensors(call_example(CARDS[name], c)).values() if h.shape == c.x.shape)
    assert torch.equal(again[0], images[0])
