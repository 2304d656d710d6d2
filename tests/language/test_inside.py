"""Attention, heads and lenses are what one writes by hand for the models that people have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.errors import InputError, LayerError
from unboxed.language import attention, head_ablation, logit_lens, tuned_lens

transformers = pytest.importorskip("transformers")
from inputs.test_tokens import MAKERS, TEXTS, encoded, open_model  # noqa: E402
from language.test_continuation import MAKERS as CAUSAL  # noqa: E402
from language.test_continuation import opened  # noqa: E402
from loading.huggingface_models import build  # noqa: E402

COLOR = ub.Pixels((3, 16, 16), mean=0.5, std=0.5)


@pytest.fixture(scope="module", params=list(MAKERS))
def box(request: pytest.FixtureRequest) -> ub.Box:
    return open_model(MAKERS[request.param])


def vit() -> tuple[ub.Box, Tensor]:
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return ub.Box(build("ViT").double(), COLOR, outputs="logits"), x


def test_attention_is_what_the_plain_model_shows(box: ub.Box) -> None:
    """Fused as loaded, against the model's own eager attention."""
    fused = attention(box, TEXTS)
    box.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            expected = box.model(**encoded(box, TEXTS), output_attentions=True).attentions
        plain = attention(box, TEXTS)
    finally:
        box.model.set_attn_implementation("sdpa")
    rows = ~fused.special[:, None, :, None]  # what padding looks at is nobody's
    assert len(fused.layers) == len(expected)
    for a, b, own in zip(fused.weights.values(), plain.weights.values(), expected, strict=True):
        assert torch.allclose(torch.where(rows, a, 0), torch.where(rows, own, 0), atol=1e-5)
        assert torch.allclose(torch.where(rows, b, 0), torch.where(rows, own, 0), atol=1e-5)
        assert torch.allclose(a.sum(-1), torch.ones_like(a.sum(-1)), atol=1e-12)


def test_attention_of_a_vision_transformer_and_of_chosen_layers() -> None:
    box, x = vit()
    result = attention(box, x)
    assert [tuple(w.shape) for w in result.weights.values()] == [(3, 2, 17, 17)] * 2
    assert torch.allclose(result.weights[result.layers[1]].sum(-1), torch.ones(3, 2, 17, dtype=torch.float64))
    (only,) = attention(box, x, layers=[result.layers[1].rpartition(".")[0]]).layers
    assert only == result.layers[1]
    with pytest.raises(LayerError, match=r"'classifier' is no layer that attends, and holds none; did you mean"):
        attention(box, x, layers=["classifier"])
    split = attention(box, x, batch_size=1)
    for name, w in result.weights.items():
        assert torch.allclose(w, split.weights[name], atol=1e-12)


def test_entropy_is_that_of_the_texts_own_rows() -> None:
    box = open_model(MAKERS["bert"])
    one, many = attention(box, [TEXTS[2]]), attention(box, TEXTS)
    assert torch.allclose(one.entropy[0], many.entropy[2], atol=1e-10)
    w = one.weights[one.layers[0]][0, 0, 1]  # of the only word
    assert torch.isclose(one.entropy[0, 0, 0], -(w * w.log()).sum())


def test_logits_are_as_without_our_hooks(box: ub.Box) -> None:
    before = box(TEXTS)
    attention(box, TEXTS)
    logit_lens(box, TEXTS)
    head_ablation(box, TEXTS[:1], 1)
    assert torch.equal(box(TEXTS), before)


def test_a_head_is_taken_away_as_by_hand() -> None:
    """GPT-2's: the columns of the output projection that belong to the head are zero."""
    box = opened(CAUSAL["gpt2"])
    found = head_ablation(box, TEXTS, 7)
    assert found.drop.shape == (3, 2, 4)
    assert torch.allclose(found.score, box(TEXTS)[:, 7])
    for layer in range(2):
        projection = box.model.transformer.h[layer].attn.c_proj
        for head in range(4):
            rows = slice(8 * head, 8 * head + 8)  # Conv1D: (in, out)
            kept = projection.weight.detach()[rows].clone()
            with torch.no_grad():
                projection.weight[rows] = 0
                without = box(TEXTS)[:, 7]
                projection.weight[rows] = kept
            assert torch.allclose(found.score - without, found.drop[:, layer, head], atol=1e-10)


def test_heads_of_a_vision_transformer_and_of_one_layer() -> None:
    box, x = vit()
    whole = head_ablation(box, x, 1)
    assert whole.drop.shape == (3, 2, 2)
    one = head_ablation(box, x, 1, layers=[whole.layers[1]], batch_size=2)
    assert torch.allclose(one.drop[:, 0], whole.drop[:, 1], atol=1e-10)


@pytest.mark.parametrize("name", list(CAUSAL))
def test_the_logit_lens_is_norm_and_head_of_each_layer(name: str) -> None:
    box = opened(CAUSAL[name])
    lens = logit_lens(box, TEXTS)
    inner: Any = box.model.transformer if name == "gpt2" else box.model.model
    blocks = inner.h if name == "gpt2" else inner.layers
    norm = inner.ln_f if name == "gpt2" else inner.norm
    states: list[Tensor] = []
    handles = [b.register_forward_hook(lambda m, args, out: states.append(out)) for b in blocks]
    first = blocks[0].register_forward_pre_hook(lambda m, args: states.append(args[0]))
    batch = encoded(box, TEXTS)
    with torch.no_grad():
        box.model(**batch)
    for handle in (*handles, first):
        handle.remove()
    last = batch["attention_mask"].sum(1) - 1
    for layer, h in enumerate(states):
        expected = box.model.lm_head(norm(h))[torch.arange(3), last]
        assert torch.allclose(lens.logits[:, layer], expected, atol=1e-5)
    assert torch.allclose(lens.logits[:, -1], box(TEXTS), atol=1e-12)
    assert bool((lens.kl[:, -1] == 0).all())
    own, early = lens.logits[:, -1].log_softmax(-1), lens.logits[:, 0].log_softmax(-1)
    assert torch.allclose(lens.kl[:, 0], (own.exp() * (own - early)).sum(-1))
    assert lens.top(2)[0][-1][0][0] == box.classes[int(box.predict(TEXTS)[0])]


def test_lenses_of_encoders_and_vision_transformers(box: ub.Box) -> None:
    for b, x in ((box, TEXTS), vit()):
        lens = logit_lens(b, x)
        assert lens.logits.shape == (3, 3, 3)
        assert torch.allclose(lens.logits[:, -1], b(x), atol=1e-10)
        assert float(lens.kl[:, 0].min()) > 0


def test_a_tuned_lens_is_nearer_to_the_answer() -> None:
    box = opened(CAUSAL["gpt2"])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (100, 9), generator=generator)
    lens = tuned_lens(box, {"input_ids": ids[:20]}, {"input_ids": ids[20:]}, n_steps=20)
    assert lens.kl_untuned is not None
    assert torch.allclose(lens.kl_untuned, logit_lens(box, {"input_ids": ids[:20]}).kl, atol=1e-10)
    assert float(lens.kl[:, :-1].mean()) < 0.7 * float(lens.kl_untuned[:, :-1].mean())
    again = tuned_lens(box, {"input_ids": ids[:20]}, {"input_ids": ids[20:]}, n_steps=20)
    assert torch.equal(lens.logits, again.logits)
    assert all(p.grad is None for p in box.model.parameters())


def test_what_has_no_attention_is_refused() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, _ = ub.data.digits("test").first(2)
    for method in (attention, head_ablation, logit_lens):
        with pytest.raises(LayerError, match="no layer of this model attends"):
            method(box, x)
    regression = ub.Box(open_model(MAKERS["bert"]).model, open_model(MAKERS["bert"]).inputs, outputs="regression")
    with pytest.raises(InputError, match="a regression model gives none"):
        tuned_lens(regression, TEXTS, TEXTS)
    assert bool(logit_lens(regression, TEXTS).kl.isnan().all())


def test_they_are_drawn() -> None:
    box = open_model(MAKERS["bert"])
    for result, names in (
        (attention(box, TEXTS), ["attention 0", "attention 1", "attention 2"]),
        (head_ablation(box, TEXTS), ["heads"]),
        (logit_lens(box, TEXTS), ["kl", "lens 0", "lens 1", "lens 2"]),
    ):
        assert list(ub.plots.figures(result)) == names


def test_patching_of_layers_tokens_and_neurons_as_by_hand() -> None:
    """GPT-2: a block's output, one token of it, one of its values, from the clean text's run."""
    box = open_model(MAKERS["gpt2"])
    clean, corrupted = ["the film was very good"], ["the plot was very bad"]
    block = box.model.transformer.h[0]

    def run(text: list[str], change: Any = None) -> tuple[float, Tensor]:
        kept: list[Tensor] = []

        def hook(module: Any, args: Any, out: Tensor) -> Tensor:
            kept.append(out.detach().clone())
            return out if change is None else change(out.clone())

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            score = float(box.model(**encoded(box, text)).logits[0, 1])
        handle.remove()
        return score, kept[0]

    _, source = run(clean)

    def with_part(index: Any) -> float:
        def change(h: Tensor) -> Tensor:
            h[index] = source[index]
            return h

        return run(corrupted, change)[0]

    patched = {
        part: ub.activations.patching(box, clean, corrupted, ["transformer.h.0"], 1, part=part).layers[0].score
        for part in ("layer", "position", "channel")
    }
    assert patched["layer"].tolist() == pytest.approx([with_part(...)])
    assert patched["position"][0].tolist() == pytest.approx([with_part((0, t)) for t in range(source.shape[1])])
    assert patched["channel"][0].tolist() == pytest.approx([with_part((0, slice(None), k)) for k in range(32)])
    with pytest.raises(InputError, match="texts must have as many tokens; got 7 and 6"):
        ub.activations.patching(box, clean, ["the film was bad"], ["transformer.h.0"], 1)
