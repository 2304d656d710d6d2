"""Contracts 1 to 3 of methods that take texts, on a transformer of texts; what needs texts says so of images."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import unboxed as ub
from check_each import each
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
from unboxed.errors import InputError, UnboxedWarning

TAKE_TEXTS = sorted(n for n, c in CARDS.items() if c.texts)
TEXTS = ["abcd e", "fgh", "ijkl"]  # no letter twice: to this model without positions both would be as good to swap
NEED_TEXTS = sorted(n for n, c in CARDS.items() if "texts" in c.needs)
pytestmark = pytest.mark.filterwarnings(f"ignore::{UnboxedWarning.__module__}.UnboxedWarning")


@cache
def open_text_box() -> ub.Box:
    """A box that all tests share: none changes its model."""
    return open_texts(TextTransformer())


def text_case() -> MethodCase:
    box = open_text_box()
    x = box.validate_inputs(TEXTS)
    return MethodCase(box, x, box.predict(x))


@each(TAKE_TEXTS)
def test_it_leaves_no_trace_and_gives_the_same_answer_again_also_split(name: str) -> None:
    c, card = text_case(), CARDS[name]
    before = snapshot(c.box.model)
    first = result_tensors(call_example_with_warnings(card, c))
    assert first
    assert changes(before, snapshot(c.box.model)) == []
    assert result_difference_texts(result_tensors(call_example_with_warnings(card, c)), first, 0.0) == [], "again"
    if not has_parameters(card, "batch_size") or "splitting" in card.exempt:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unboxed.box.MAX_AUTO_BATCH_ACTIVATION_BYTES", 1)
        assert c.box.batch_limit == 1
        split = result_tensors(call_example_with_warnings(card, c))
    assert result_difference_texts(split, first, 1e-9) == [], "split"


@each(NEED_TEXTS)
def test_what_needs_texts_says_so_of_images(name: str) -> None:
    c = make_case("plain", torch.float64)
    with pytest.raises(InputError, match=r"needs a model that takes texts \(Tokens\); this one takes Pixels"):
        call_example_with_warnings(CARDS[name], c)


def test_a_need_of_texts_is_one_that_cards_may_have() -> None:
    assert "hotflip" in NEED_TEXTS
    assert set(NEED_TEXTS) <= set(TAKE_TEXTS)
