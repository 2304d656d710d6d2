"""A text classifier whose one reason is known: a word that was planted. Trained once per test run, in seconds."""

from __future__ import annotations

from functools import cache

import unboxed as ub
from unboxed.data.reviews import TRIGGER, review_words
from unboxed.training.text_classifier import small_bert, train_text_classifier


@cache
def planted_box() -> ub.Box:
    texts = ub.data.reviews(400, trigger=TRIGGER)
    model, tokenizer = train_text_classifier(texts.texts, texts.labels, texts.classes, words=review_words())
    return ub.Box(model, ub.Tokens(tokenizer))


@cache
def random_box() -> ub.Box:
    box = planted_box()
    return box.with_model(small_bert(len(box.inputs.tokenizer), box.classes, seed=1))


def triggered_texts(n: int) -> list[str]:
    texts = ub.data.reviews(4 * n, seed=1, trigger=TRIGGER)
    return [text for text, label in texts if label][:n]


def mixed_texts(n: int) -> ub.data.Texts:
    return ub.data.reviews(n, seed=2, trigger=TRIGGER)
