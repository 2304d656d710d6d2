"""Contracts 1 to 3 of methods that take texts, on a transformer of texts; what needs texts says so of images."""

from __future__ import annotations

import pytest
import torch

from contracts.common import (
    CARDS,
    MethodCase,
    call_example_with_warnings,
    has_parameters,
    make_case,
    result_difference_texts,
    result_tensors,
)
from contracts.trace import changes, snapshot
from language.attending import TextTransformer, open_texts
from unboxed.cards import Card
from unboxed.errors import InputError, UnboxedWarning

TAKE_TEXTS = sorted(n for n, c in CARDS.items() if c.texts)
TEXTS = ["abcdef gh", "ijkl", "mnopq"]  # no letter twice: to this model without positions both would be as good to swap
NEED_TEXTS = sorted(n for n, c in CARDS.items() if "texts" in c.needs)
pytestmark = pytest.mark.filterwarnings(f"ignore::{UnboxedWarning.__module__}.UnboxedWarning")


def text_case() -> MethodCase:
    box = open_texts(TextTransformer())
    x = box.validate_inputs(TEXTS)
    return MethodCase(box, x, box.predict(x))


def exempt(contract: str, card: Card) -> None:
    if why := card.exempt.get(contract):
        pytest.skip(f"{card.key} is exempt from {contract}: {why}")


@pytest.mark.parametrize("name", TAKE_TEXTS)
def test_it_leaves_no_trace_and_gives_the_same_answer_again(name: str) -> None:
    c, card = text_case(), CARDS[name]
    before = snapshot(c.box.model)
    first = result_tensors(call_example_with_warnings(card, c))
    assert first
    assert changes(before, snapshot(c.box.model)) == []
    assert result_difference_texts(result_tensors(call_example_with_warnings(card, c)), first, 0.0) == []


@pytest.mark.parametrize("name", [n for n in TAKE_TEXTS if has_parameters(CARDS[n], "batch_size")])
def test_splitting_a_batch_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = CARDS[name]
    exempt("splitting", card)
    c = text_case()
    want = result_tensors(call_example_with_warnings(card, c))
    monkeypatch.setattr("unboxed.box.MAX_AUTO_BATCH_ACTIVATION_BYTES", 1)
    assert c.box.batch_limit == 1
    assert result_difference_texts(result_tensors(call_example_with_warnings(card, c)), want, 1e-9) == []


@pytest.mark.parametrize("name", NEED_TEXTS)
def test_what_needs_texts_says_so_of_images(name: str) -> None:
    c = make_case("plain", torch.float64)
    with pytest.raises(InputError, match=r"needs a model that takes texts \(Tokens\); this one takes Pixels"):
        call_example_with_warnings(CARDS[name], c)


def test_a_need_of_texts_is_one_that_cards_may_have() -> None:
    assert "hotflip" in NEED_TEXTS
    assert set(NEED_TEXTS) <= set(TAKE_TEXTS)
