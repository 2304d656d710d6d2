"""What words change in an answer: against direct calls of the model, and where they change nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import feature_ablation, gradient_x_input
from unboxed.report.text_explanations import explain_texts
from unboxed.report.text_page import colored_words
from unboxed.report.word_effects import WordEffects, word_effects

TEXTS = ["good film", "not so good"]


class Model(nn.Module):
    """Scores by the mean embedding, times `strength`."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.strength = nn.Embedding(128, 8), nn.Linear(8, 3), strength

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(ids) * mask[..., None]
        return self.head.bias + self.strength * (self.head(h.sum(1)) - self.head.bias)


def opened(strength: float = 1.0) -> ub.Box:
    return ub.Box(Model(strength), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")


def effects_of(box: ub.Box, versus: int | None = None) -> WordEffects:
    x = box.validate_inputs(TEXTS)
    return word_effects(box, box.inputs, x, torch.tensor([0, 2]), versus)


@pytest.mark.parametrize("versus", [None, 1])
def test_against_the_model_itself(versus: int | None) -> None:
    box = opened()
    effects, model = effects_of(box, versus), box.model
    for i, (text, k) in enumerate(zip(TEXTS, (0, 2), strict=True)):
        bias = model.head.bias.detach()
        added = (model.embed.weight[[ord(c) for c in text]] @ model.head.weight.T).detach()  # (T, K) of each character
        if versus is not None:
            bias, added = bias - bias[versus], added - added[:, [versus]]
        torch.testing.assert_close(effects.filled_scores[i], bias[k])
        torch.testing.assert_close(effects.scores[i], bias[k] + added[:, k].sum())
        torch.testing.assert_close(effects.single_changes[i], added[:, k].abs().max())
    assert effects.fill == "zeros"
    assert not effects.is_negligible(0)


def test_words_that_count_for_nothing() -> None:
    effects = effects_of(opened(1e-6))
    assert effects.is_negligible(0)
    assert (
        "does not need the words of the text: with all of them replaced by zeros the model still" in effects.sentence(0)
    )
    alone = dataclasses.replace(effects, single_changes=effects.leads)  # two words that cancel each other
    assert not alone.is_negligible(0)


@pytest.mark.parametrize("strength", [1e-6, 1.0])
def test_only_words_that_count_are_colored(strength: float) -> None:
    made = explain_texts(opened(strength), TEXTS, {"feature_ablation": feature_ablation})
    words = colored_words(made, "feature_ablation", 0)
    assert any(word.background for word in words.words) == (strength == 1.0)
    largest = float(made.maps["feature_ablation"][0, : len(TEXTS[0])].abs().max())
    assert ("not colored: the answer does not need these words" in words.lines) == (strength != 1.0)
    assert any(made.verdicts["feature_ablation"].reason in line for line in words.lines) == (strength == 1.0)
    assert words.lines[-1] == f"scale ±{largest:.2g}"


def test_of_yes_no_labels_those_over_a_half_are_predicted() -> None:
    model = Model()
    box = ub.Box(model, ub.Tokens(lambda text: [ord(c) for c in text]), outputs="multilabel", classes=["a", "b", "c"])
    for bias, predicted in ((-50.0, "no label"), (50.0, "a, b, c")):
        with torch.no_grad():
            model.head.bias.fill_(bias)
        made = explain_texts(box, TEXTS[:1], {"feature_ablation": feature_ablation})
        assert made.predictions[0].startswith(f"{predicted}; likeliest: ")


def test_maps_of_one_class_against_another_are_their_difference() -> None:
    box, methods = opened(), {"gradient_x_input": gradient_x_input}
    a, b, both = (explain_texts(box, TEXTS, methods, k, versus=v) for k, v in ((0, None), (2, None), (0, 2)))
    own, other, difference = (made.maps["gradient_x_input"] for made in (a, b, both))
    torch.testing.assert_close(difference, own - other)
    assert both.question(0) == "Why 0 and not 2?"
