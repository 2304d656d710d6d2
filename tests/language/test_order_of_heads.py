"""Where heads and examples share an axis, in either order, an example has the same maps alone and in any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from language.attending import LETTERS, HeadsFirst, encoded_letters, open_texts
from unboxed.errors import LayerError
from unboxed.language import attention, head_ablation

ORDERS = ("heads first", "examples first")
SAME_LENGTH = ["some text", "another!!", "a bc defg", "hello you", "zz topped"]
METHODS: dict[str, Callable[..., Any]] = {
    "rollout": ub.attribution.rollout,
    "gradient": ub.attribution.gradient_attention,
}


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("order", ORDERS)
def test_maps_are_those_of_each_example_alone(order: str, n: int) -> None:
    box = open_texts(HeadsFirst(order))
    (whole,) = attention(box, SAME_LENGTH[:n]).weights.values()
    alone = torch.cat([next(iter(attention(box, [text]).weights.values())) for text in SAME_LENGTH[:n]])
    assert whole.shape == (n, 2, 9, 9)
    assert float((whole[:, 0] - whole[:, 1]).abs().max()) > 0.1
    assert torch.allclose(whole, alone, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ORDERS)
def test_maps_do_not_depend_on_the_size_of_a_batch(order: str, method: str) -> None:
    box = open_texts(HeadsFirst(order))
    whole, alone = (METHODS[method](box, LETTERS, batch_size=size).map for size in (4, 1))
    assert float(whole.max()) > 1e-3
    assert torch.allclose(whole, alone, atol=1e-9)


@pytest.mark.parametrize("batch_size", ["auto", 3, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_a_head_is_taken_away_of_all_examples(order: str, batch_size: Any) -> None:
    model = HeadsFirst(order)
    found = head_ablation(open_texts(model), LETTERS, 1, batch_size=batch_size)

    def scores(off: int | None) -> Tensor:
        model.off = off
        with torch.no_grad():
            return model(*encoded_letters(LETTERS))[:, 1]

    want = torch.stack([scores(None) - scores(head) for head in range(2)], 1)
    assert float(want.abs().min()) > 1e-4
    assert torch.allclose(found.drop[:, 0], want, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_heads_in_an_axis_of_their_own_before_the_examples_are_never_read_as_these(n: int) -> None:
    """Two heads: of two examples the axes are as long."""
    box = open_texts(HeadsFirst("two axes"))
    if n != 2:
        with pytest.raises(LayerError, match=rf"2 windows of 9 tokens for {n} examples"):
            attention(box, SAME_LENGTH[:n])
        return
    (whole,) = attention(box, SAME_LENGTH[:n]).weights.values()
    (want,) = attention(open_texts(HeadsFirst("heads first")), SAME_LENGTH[:n]).weights.values()
    assert torch.allclose(whole, want, atol=1e-12)


def test_the_order_is_found_once() -> None:
    model = HeadsFirst()
    box = open_texts(model)
    attention(box, SAME_LENGTH)
    runs: list[int] = []
    handle = model.o.register_forward_pre_hook(lambda m, args: runs.append(len(args[0])))
    attention(box, SAME_LENGTH)
    handle.remove()
    assert runs == [5]
