"""Contract 3: the same seed gives the same answer; randomness is an argument, never global."""

from __future__ import annotations

import torch

from contracts.common import (
    CARDS,
    call_example,
    each_method,
    has_parameters,
    result_difference_texts,
    result_tensors,
    shared_case,
)


@each_method("another seed", lambda card: has_parameters(card, "seed"))
def test_another_seed_another_draw(name: str) -> None:
    model = ("plain", "double")[list(CARDS).index(name) % 2]
    first, second = (result_tensors(call_example(CARDS[name], shared_case(model), seed=s)) for s in (0, 1))
    assert result_difference_texts(first, second, 1e-6) != [], f"on {model}, it takes a seed and does not use it"


@each_method("row seeds", lambda card: has_parameters(card, "seed", "x"))
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
