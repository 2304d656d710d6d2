"""HotFlip: swaps are those that the paper's estimate names, checked by the model, and few of them flip the answer."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.adversarial import hotflip
from unboxed.errors import InputError, UnboxedWarning

pytest.importorskip("transformers")
from inputs.test_tokens import MAKERS, TEXTS, WORDS, open_model
from language.planted_trigger import TRIGGER, mixed_texts, planted_box


class BagOfLetters(nn.Module):
    """Linear in the embeddings: the estimate of a swap is exact."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(26, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head((self.embed(ids) * mask[..., None]).sum(1))


def letters(text: str) -> list[int]:
    return [ord(c) - 97 for c in text]


def test_on_a_linear_model_it_makes_the_best_swap_of_all() -> None:
    box = ub.Box(BagOfLetters().double(), ub.Tokens(letters), outputs="logits")
    texts = ["abcdef", "ghi"]
    y = box.predict(texts)
    made = hotflip(box, texts, y, max_swaps=1, n_candidates=1)
    for i, text in enumerate(texts):

        def margin(t: str, i: int = i) -> float:
            z = box([t])[0]
            return float(z[1 - y[i]] - z[y[i]])

        swapped = (text[:p] + chr(97 + k) + text[p + 1 :] for p, k in product(range(len(text)), range(26)))
        best = max(swapped, key=margin)
        got = "".join(chr(97 + int(k)) for k, m in zip(made.images["input_ids"][i], made.images["attention_mask"][i],
                                                      strict=True) if m)  # fmt: skip
        assert margin(got) == pytest.approx(margin(best))
        assert bool(made.success[i]) == (margin(best) > 0)


def test_answers_flip_by_few_swaps() -> None:
    box, texts = planted_box(), mixed_texts(16)
    made = hotflip(box, texts.texts, texts.labels)
    right = ~made.initially_misclassified
    assert float(made.success[right].double().mean()) >= 0.8
    assert bool((made.distance <= 3).all())
    assert bool(((box.predict(made.images) != torch.tensor(texts.labels)) == made.success).all())
    for text, label, swaps in zip(texts.texts, texts.labels, made.swaps, strict=True):
        words = ["[CLS]", *text.split(), "[SEP]"]
        assert all(words[place] == old != new for place, old, new in swaps)
        assert any(TRIGGER in (old, new) for _, old, new in swaps)  # the only reason is put in, or taken out
        assert [old for _, old, _ in swaps if old == TRIGGER] == [TRIGGER] * label


def test_what_may_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    box = open_model(MAKERS["bert"])
    y = box.predict(TEXTS)
    made = hotflip(box, TEXTS, y, allowed=["boring", "great"], max_swaps=2)
    assert {new for row in made.swaps for _, _, new in row} <= {"boring", "great"}
    x, new = box.validate_inputs(TEXTS), made.images["input_ids"]
    assert bool((new == box.inputs.ids(x))[box.inputs.is_special(x)].all())
    near = hotflip(box, TEXTS, y, min_similarity=0.2)
    weight = torch.nn.functional.normalize(box.inputs.layer.weight.detach(), dim=-1)
    for row in near.swaps:
        for _, old, put in row:
            assert float(weight[WORDS.index(old)] @ weight[WORDS.index(put)]) >= 0.2 - 1e-9
    with pytest.raises(InputError, match="the vocabulary has no token 'zebra'"):
        hotflip(box, TEXTS, y, allowed=["zebra"])


def test_a_target_an_objective_and_batches() -> None:
    box = open_model(MAKERS["gpt2"])
    made = hotflip(box, TEXTS, target=1)
    assert bool(((box.predict(made.images) == 1) == made.success).all())
    assert hotflip(box, TEXTS, objective=ub.logit(1) - 1000).success.tolist() == [False] * 3
    split = hotflip(box, TEXTS, target=1, batch_size=1)
    assert torch.equal(split.images["input_ids"], made.images["input_ids"])
    assert "3 of 3" in repr(split) or "classified as the target" in repr(split)
    with pytest.raises(InputError, match="needs the correct classes"):
        hotflip(box, TEXTS)


def test_the_vocabulary_may_be_larger_than_a_text() -> None:
    box = ub.Box(BagOfLetters().double(), ub.Tokens(letters, max_length=6), outputs="logits")
    made = hotflip(box, ["abcdef"], box.predict(["abcdef"]))
    assert int(made.distance) <= 3


def test_it_needs_texts() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(2)
    with pytest.raises(InputError, match=r"HotFlip needs a model that takes texts \(Tokens\); this one takes Pixels"):
        hotflip(box, x, y)


def test_it_leaves_no_trace_and_prints() -> None:
    box = planted_box()
    before = {name: value.clone() for name, value in box.model.state_dict().items()}
    with torch.no_grad():
        made = hotflip(box, [f"the {TRIGGER} film was good"], 1)
    assert all(torch.equal(value, before[name]) for name, value in box.model.state_dict().items())
    assert all(p.grad is None for p in box.model.parameters())
    assert str(made).startswith("fooled: [CLS] the ")
    assert f"{TRIGGER} -> " in str(made)


def test_queries_are_the_texts_that_the_model_was_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither swaps that are barred nor padding; texts of other lengths are asked about less."""
    box = ub.Box(BagOfLetters().double(), ub.Tokens(letters), outputs="logits")
    texts = ["abcdef", "ghi"]
    settings = {"objective": ub.logit(1) - 1e6, "max_swaps": 1}  # never reached
    assert hotflip(box, texts, n_candidates=10**4, **settings).queries.tolist() == [2 + 6 * 25, 2 + 3 * 25]
    assert hotflip(box, texts, n_candidates=5, **settings).queries.tolist() == [7, 7]
    few = hotflip(box, texts, n_candidates=5, allowed=[str(k) for k in (0, 6)], **settings)
    assert few.queries.tolist() == [2 + 5, 2 + 5]
    assert hotflip(box, ["aaaaaa", "g"], allowed=["0"], **settings).queries.tolist() == [2, 3]
    seen: list[int] = []
    run = box.forward

    def counted(x: Tensor, *args: object, **kwargs: object) -> object:
        seen.append(len(x))
        return run(x, *args, **kwargs)

    monkeypatch.setattr(box, "forward", counted)
    made = hotflip(box, texts, n_candidates=100, check_candidates=False, **settings)
    assert sum(seen) == int(made.queries.sum())


def planted_flips(n: int, **settings: Any) -> Any:
    texts = mixed_texts(n)
    return hotflip(planted_box(), texts.texts, texts.labels, **settings)


def test_by_default_it_fools_what_the_search_of_all_swaps_fools() -> None:
    """A classifier that is sure: the gradient says little of which of many swaps counts."""
    all_swaps = planted_flips(40, max_swaps=1, n_candidates=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = planted_flips(40, max_swaps=1)
    assert int(all_swaps.success.sum()) >= 38
    assert torch.equal(made.success, all_swaps.success)
    assert float(made.queries.double().mean()) < 64


def test_too_few_candidates_are_told() -> None:
    with pytest.warns(UnboxedWarning, match=r"n_candidates=4 limits how many texts are fooled: of the \d+ that"):
        few = planted_flips(40, n_candidates=4)
    more = planted_flips(40, n_candidates=16, check_candidates=False)
    right = int((~few.initially_misclassified).sum())
    assert int(more.success.sum()) - int(few.success.sum()) >= 0.05 * right  # what is told is so
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planted_flips(40, n_candidates=4, check_candidates=False)
        hotflip(planted_box(), mixed_texts(8).texts, objective=ub.logit(1) - 1e6, n_candidates=4)  # no candidate helps


def test_candidates_are_asked_about_until_one_fools() -> None:
    made = planted_flips(16)
    fooled = made.success & ~made.initially_misclassified
    one_swap = fooled & (made.distance == 1)
    assert bool((made.queries[one_swap] < 2 + 64).all())
    assert int(made.queries[one_swap].min()) < 10


def test_no_allowed_token_is_an_error_that_says_so() -> None:
    box = open_model(MAKERS["bert"])
    with pytest.raises(InputError, match="`allowed` has no token; give those that may be put in"):
        hotflip(box, TEXTS, 0, allowed=[])


class BagOfIds(nn.Module):
    """Knows padding by its id, 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(39)
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        weights = (ids != 0).to(self.head.weight)[..., None]
        return self.head((self.embed(ids) * weights).sum(1) / weights.sum(1).clamp_min(1))


@pytest.mark.parametrize("pad_id", [0, None])
def test_padding_is_no_word_that_is_put_in(pad_id: int | None) -> None:
    box = ub.Box(BagOfIds().double(), ub.Tokens(lambda t: [int(w) for w in t.split()], pad_id=pad_id), outputs="logits")
    texts = ["1 2 3", "4 5", "6 7 8 9"]
    made = hotflip(box, texts, box.predict(texts), max_swaps=2)
    assert any(made.swaps)
    assert not any(new == "0" for swaps in made.swaps for _, _, new in swaps)
