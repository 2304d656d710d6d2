"""Language models: next tokens as classes, continuations as targets, token by token, as the models themselves say."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, OutputError
from unboxed.language import attribute_continuation, continuation
from unboxed.objectives import tokens_logprob

transformers = pytest.importorskip("transformers")
from inputs.test_tokens import SIZES, TEXTS, WORDS, make_tokenizer  # noqa: E402

ADDED = [" very good", " boring", " and great"]


def gpt2() -> nn.Module:
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 2, "eos_token_id": 3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, pad_token_id=0, **settings))


def llama() -> nn.Module:
    settings = {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, max_position_embeddings=32, **settings, **SIZES)
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {"gpt2": gpt2, "llama": llama}


def opened(make: Callable[[], nn.Module]) -> ub.Box:
    torch.manual_seed(0)
    model = make().eval().double()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(3)
    return ub.Box(model, ub.Tokens(make_tokenizer()))


@pytest.fixture(scope="module", params=list(MAKERS))
def box(request: pytest.FixtureRequest) -> ub.Box:
    return opened(MAKERS[request.param])


def ids_of(text: str, *, end: bool = True) -> list[int]:
    ids = make_tokenizer()(text)["input_ids"]
    return ids if end else ids[:-1]


def test_classes_are_the_vocabulary(box: ub.Box) -> None:
    assert box.predicts_tokens
    assert box.classes == tuple(WORDS)
    assert box.output_map_shape == ()
    got = box(TEXTS)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            want = box.model(torch.tensor([ids_of(text)])).logits[0, -1]
        assert torch.allclose(got[row], want, atol=1e-12)
    assert torch.equal(box.predict(TEXTS), got.argmax(1))


@pytest.mark.parametrize("method", [c.key for c in ub.cards("attribution") if c.texts])
def test_every_method_explains_a_next_token(box: ub.Box, method: str) -> None:
    run = getattr(ub.attribution, method)
    settings = {"n_samples": 50} if "n_samples" in run.card.settings else {}
    texts = ["the film was good", "great"]
    a = run(box, texts, **settings) if "target" not in run.card.settings else run(box, texts, "good", **settings)
    assert a.shape == (2, 6)
    if method != "lime":  # whose regression gives what changes nothing about nothing
        assert bool((a[1, 3:] == 0).all())
    if a.score is not None and method not in ("kernel_shap", "shapley", "lime"):
        assert torch.allclose(a.score, box(texts)[:, WORDS.index("good")], atol=1e-6)


def test_attn_lrp_of_a_next_token_is_conserved(box: ub.Box) -> None:
    made = ub.attribution.attn_lrp(box, TEXTS, "good").conservation
    assert made.max_error <= 1e-4
    assert made.layers[-1] in ("lm_head", "score")


def logprob_by_hand(box: ub.Box, start: list[int], added: list[int]) -> Tensor:
    with torch.no_grad():
        logits = box.model(torch.tensor([start + added])).logits[0]
    return torch.stack([logits[len(start) + j - 1].log_softmax(-1)[k] for j, k in enumerate(added)])


def test_a_given_continuation_has_the_models_log_probability(box: ub.Box) -> None:
    asked = continuation(box, TEXTS, ADDED)
    assert asked.words == (("very", "good"), ("boring",), ("and", "great"))
    total = asked.logprob({"output": box.read(asked.x, ["output"])["output"]})
    for row, (text, added) in enumerate(zip(TEXTS, ADDED, strict=True)):
        start, rest = ids_of(text, end=False), ids_of(added)[1:-1]
        want = logprob_by_hand(box, start, rest)
        assert torch.allclose(asked.logprobs[row, : len(want)], want, atol=1e-9)
        assert bool((asked.logprobs[row, len(want) :] == 0).all())
        assert float(total[row]) == pytest.approx(float(want.sum()), abs=1e-9)
        assert asked.tokens[row] == tuple(WORDS[k] for k in start + rest)


def test_its_own_continuation_is_greedy(box: ub.Box) -> None:
    asked = continuation(box, TEXTS, n_tokens=4)
    for row, text in enumerate(TEXTS):
        ids = ids_of(text, end=False)
        for k in asked.ids[row].tolist():
            if k == -1:
                assert ids[-1] == 3  # it has ended the text
                break
            with torch.no_grad():
                assert int(box.model(torch.tensor([ids])).logits[0, -1].argmax()) == k
            ids.append(k)


def test_the_whole_is_the_sum_of_its_tokens(box: ub.Box) -> None:
    asked = continuation(box, TEXTS, ADDED)
    whole = ub.attribution.gradient_x_input(box, asked.x, asked.logprob, baseline="zero")
    parts = attribute_continuation(ub.attribution.gradient_x_input, box, TEXTS, ADDED, baseline="zero")
    assert parts.map.shape == (3, 2, whole.shape[1])
    assert torch.allclose(parts.map.sum(1), whole.map, atol=1e-9)
    for row in range(3):
        for j, position in enumerate(asked.positions[row].tolist()):
            assert bool((parts.map[row, j, position + 1 :] == 0).all())  # nothing comes from what follows
    assert bool((parts.map[1, 1] == 0).all())  # that text has one token less


def test_integrated_gradients_are_complete(box: ub.Box) -> None:
    asked = continuation(box, TEXTS, ADDED)
    a = ub.attribution.integrated_gradients(box, asked.x, asked.logprob)
    assert bool((a.completeness_error <= 0.01 * a.score_difference.abs() + 1e-9).all())


def test_batches_and_pickles(box: ub.Box) -> None:
    asked = continuation(box, TEXTS, ADDED)
    whole = ub.attribution.gradient(box, asked.x, asked.logprob)
    split = ub.attribution.gradient(box, asked.x, asked.logprob, batch_size=1)
    assert torch.allclose(whole.map, split.map, atol=1e-10)
    again = pickle.loads(pickle.dumps(asked.logprob))
    assert again == asked.logprob
    assert asked.token(0) != asked.logprob


def test_it_is_drawn(box: ub.Box) -> None:
    a = attribute_continuation(ub.attribution.attn_lrp, box, TEXTS[:1], ADDED[:1])
    assert repr(a).startswith("ContinuationAttribution(")
    assert a.image().size[0] > 300


def test_a_masked_language_model_is_asked_at_its_mask() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=32, **SIZES)
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    box = ub.Box(model, ub.Tokens(make_tokenizer(types=True)))
    texts = ["the film was [MASK]", "[MASK] was not very good"]
    got = box(texts)
    for row, text in enumerate(texts):
        ids = torch.tensor([ids_of(text)])
        with torch.no_grad():
            want = box.model(input_ids=ids).logits[0, int((ids[0] == 4).nonzero()[0])]
        assert torch.allclose(got[row], want, atol=1e-5)
    with pytest.raises(OutputError, match="sees what comes after"):
        continuation(box, ["the film was"], [" good"])


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_is_no_language_model_is_refused() -> None:
    box = ub.Box(nn.Linear(2, 3), ub.Features(("a", "b")), outputs="logits")
    with pytest.raises(OutputError, match="needs a language model"):
        continuation(box, ["a"], ["b"])


@pytest.mark.parametrize(
    ("texts", "added", "words"),
    [
        (TEXTS, ADDED[:2], "3 texts and 2 continuations"),
        (TEXTS[:1], [""], "a continuation is empty"),
        ([" "], ["good"], "is empty"),
        (["good " * 30], [" very good"], "takes 32"),
    ],
)
def test_bad_texts(texts: Any, added: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        continuation(opened(gpt2), texts, added)


def test_methods_without_texts_are_refused() -> None:
    with pytest.raises(InputError, match="occlusion takes no texts"):
        attribute_continuation(ub.attribution.occlusion, opened(gpt2), TEXTS[:1], ADDED[:1])


@pytest.mark.parametrize(
    ("ids", "positions"), [(torch.zeros(2), torch.zeros(2)), (torch.zeros(1, 2).long(), torch.zeros(1, 3).long())]
)
def test_bad_ids(ids: Tensor, positions: Tensor) -> None:
    with pytest.raises(InputError, match=r"\(N, C\)"):
        tokens_logprob(ids, positions)
    score = tokens_logprob(torch.tensor([[1]]), torch.tensor([[5]]))
    with pytest.raises(InputError, match="not below 3"):
        score({"output": torch.zeros(1, 4, 3)})
    with pytest.raises(InputError, match="language model"):
        score({"output": torch.zeros(1, 4)})
