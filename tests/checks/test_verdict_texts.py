"""Verdicts on maps of texts: a planted reason is found and believed, and the same maps of a random model are not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.checks.perturbing import removable_tokens
from unboxed.checks.relevance_gain import fill_fn_by_name, removal_curves
from unboxed.errors import InputError
from unboxed.objectives import logit

pytest.importorskip("transformers")
from language.planted_trigger import TRIGGER, mixed_texts, planted_box, random_box, triggered_texts

METHODS = {
    "integrated_gradients": ub.attribution.integrated_gradients,
    "feature_ablation": ub.attribution.feature_ablation,
    "lime": partial(ub.attribution.lime, n_samples=100),
    "attn_lrp": ub.attribution.attn_lrp,
}


def top_words(a: Any) -> list[str]:
    """The word of each text with the largest value."""
    values = a.map.masked_fill(a.special, -torch.inf)
    return [tokens[int(row.argmax())] for tokens, row in zip(a.tokens, values, strict=True)]


@pytest.mark.parametrize("name", METHODS)
def test_a_planted_word_is_on_top_and_believed(name: str) -> None:
    box, texts = planted_box(), mixed_texts(16)
    assert bool((box.predict(texts) == torch.tensor(texts.labels)).all())
    words = top_words(METHODS[name](box, triggered_texts(10), 1))
    assert words.count(TRIGGER) >= 0.95 * len(words)
    assert ub.checks.verdict(box, texts.texts, METHODS[name]).grade == "pass"


def test_of_a_random_model_nothing_is_believed() -> None:
    random = ub.checks.verdict(random_box(), mixed_texts(8).texts, METHODS["attn_lrp"])
    assert (random.grade, random.reason) == ("fail", "the model has learned nothing")


def lengths(box: ub.Box, x: Any, target: Any = None) -> Tensor:
    """A map that is the same for any model: how long each word is."""
    x = box.validate_inputs(x)
    tokens, width = box.inputs.token_texts(x), x.shape[1]
    return torch.tensor([[float(len(t)) for t in row] + [0.0] * (width - len(row)) for row in tokens])


def test_a_map_of_the_text_alone_fails() -> None:
    v = ub.checks.verdict(planted_box(), mixed_texts(8).texts, lengths)
    assert (v.grade, v.reason) == ("fail", "same map for random weights")


def test_the_same_everywhere_among_the_texts_own_tokens_is_constant() -> None:
    def only_special(box: ub.Box, x: Any, target: Any = None) -> Tensor:
        return box.inputs.is_special(box.validate_inputs(x)).float()

    v = ub.checks.verdict(planted_box(), mixed_texts(8).texts, only_special)
    assert (v.grade, v.reason) == ("fail", "constant map")


def test_removal_takes_as_many_of_each_texts_own_tokens() -> None:
    """In each step the same share of each text, never what the tokenizer added; and as by hand."""
    box = planted_box()
    x = box.validate_inputs(["the cobalt film was good", "the plot was dull and the acting felt hollow cobalt"])
    maps = ub.attribution.gradient_x_input(box, x, 1).map
    removable = removable_tokens(box, x)
    assert removable is not None
    assert removable.sum(1).tolist() == [5, 10]
    (name, fill), *_ = fill_fn_by_name(box, x, 0).items()
    assert name == "mask"
    curves = removal_curves(box, x, maps, logit(1), {name: fill}, signed=True, seed=0)
    mask_id = box.inputs.tokenizer.mask_token_id
    for i in range(2):
        n = int(removable[i].sum())
        order = maps[i].masked_fill(~removable[i], -torch.inf).argsort(descending=True)[:n]
        for step in range(7):
            count = round(n * step / 6)
            for curve, gone in ((curves.morf, order[:count]), (curves.lerf, order[n - count :])):
                ids = box.inputs.ids(x[i : i + 1]).index_fill(1, gone, mask_id)
                score = box({"input_ids": ids, "attention_mask": box.inputs.mask(x[i : i + 1])})[0, 1]
                assert torch.isclose(curve[i, 0, step].float(), score, atol=1e-4)


def test_padding_changes_no_figure() -> None:
    box, texts = planted_box(), triggered_texts(6)
    both = [*texts, "the film was good and the plot was good while the cast was not very dull " + TRIGGER]
    curves = [
        ub.checks.deletion(box, t, ub.attribution.attn_lrp(box, t, 1), 1, n_steps=4, baseline="mask").curve[0]
        for t in ([texts[0]], both)
    ]
    assert torch.allclose(*curves, atol=1e-4)


def test_deletion_and_insertion_of_texts() -> None:
    box, texts = planted_box(), triggered_texts(12)
    maps, random = ub.attribution.attn_lrp(box, texts, 1), ub.checks.random_maps(box, texts)
    for check, better in ((ub.checks.deletion, -1), (ub.checks.insertion, 1)):
        own, other = (check(box, texts, m, 1).auc.mean() for m in (maps, random))
        assert better * (own - other) > 0.1
    with pytest.raises(InputError, match=r"wanted maps of shape \(12, \d+\), like the inputs"):
        ub.checks.deletion(box, texts, maps.map[:, :3], 1)
    with pytest.raises(InputError, match="n_steps must be at most one per pixel, column or token"):
        ub.checks.deletion(box, texts, maps, 1, n_steps=99)


def test_randomization_layer_by_layer() -> None:
    r = ub.checks.randomization(planted_box(), triggered_texts(4), ub.attribution.gradient_x_input)
    assert r.signed.shape == (len(r.layers), 4)
    assert float(r.signed[-1].nanmean()) < 0.6
    assert bool(r.ssim.isnan().all())


def test_candidates_take_texts_alone() -> None:
    methods = ub.checks.candidates(planted_box())
    assert {"attn_lrp", "lime", "integrated_gradients"} <= methods.keys()
    assert not {"grad_cam", "occlusion", "guided_backprop"} & methods.keys()


def test_an_unknown_word_is_one_of_the_texts_own() -> None:
    box = planted_box()
    x = box.validate_inputs(["the zebra was good"])
    assert box.inputs.is_special(x).tolist() == [[True, False, False, False, False, True]]


def test_a_verdict_on_texts_is_drawn() -> None:
    v = ub.checks.verdict(planted_box(), mixed_texts(8).texts, ub.attribution.gradient)
    assert [*ub.checks.explain_verdict(v)] == ["tests", "words", "removal"]
