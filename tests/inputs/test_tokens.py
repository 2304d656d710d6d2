"""Texts: what a model of texts answers through a box is what it answers by itself, and maps are as by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, UnboxedError
from unboxed.inputs.tokens import N_TOKEN_META_COLUMNS

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "film",
    "was",
    "good",
    "bad",
    "very",
    "not",
    "plot",
    "actor",
    "boring",
    "great",
    "and",
    "of",
    "it",
]
TEXTS = ["the film was good", "the plot was not very good and the actor was boring", "great"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def make_tokenizer(*, types: bool = False) -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wanted = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]  # as of BERT, and of others
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, mask_token="[MASK]", model_input_names=wanted, **names
    )


def make_bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=32, num_labels=3, **SIZES)
    return transformers.BertForSequenceClassification(config)


def make_roberta() -> nn.Module:
    config = transformers.RobertaConfig(
        vocab_size=20, max_position_embeddings=34, num_labels=3, pad_token_id=0, **SIZES
    )
    return transformers.RobertaForSequenceClassification(config)


def make_gpt2() -> nn.Module:
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.GPT2Config(vocab_size=20, num_labels=3, pad_token_id=0, **settings)
    return transformers.GPT2ForSequenceClassification(config)


def make_llama() -> nn.Module:
    settings = {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.LlamaConfig(vocab_size=20, max_position_embeddings=32, num_labels=3, **settings, **SIZES)
    return transformers.LlamaForSequenceClassification(config)


MAKERS = {"bert": make_bert, "roberta": make_roberta, "gpt2": make_gpt2, "llama": make_llama}


def open_model(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> ub.Box:
    torch.manual_seed(0)
    model = make().eval().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4.1)  # random weights of .02 make every answer the same; no float32 numbers in a double model
    inputs = ub.Tokens(make_tokenizer(types=make is make_bert))
    return ub.Box(model, inputs, classes=("bad", "fair", "good"), outputs="logits")


@pytest.fixture(scope="module", params=list(MAKERS))
def box(request: pytest.FixtureRequest) -> ub.Box:
    return open_model(MAKERS[request.param])


def encoded(box: ub.Box, texts: list[Any]) -> dict[str, Tensor]:
    pairs = [t for t in texts if not isinstance(t, str)]
    given = box.inputs.tokenizer(*zip(*pairs, strict=True)) if pairs else box.inputs.tokenizer(texts)
    padded = box.inputs.tokenizer.pad(given, return_tensors="pt")
    keep = ("input_ids", "attention_mask", *(["token_type_ids"] if "Bert" in type(box.model).__name__ else []))
    return {name: padded[name] for name in keep}


def test_logits_are_the_models_own(box: ub.Box) -> None:
    with torch.no_grad():
        expected = box.model(**encoded(box, TEXTS)).logits
    assert torch.equal(box(TEXTS), expected)
    assert torch.equal(box(dict(encoded(box, TEXTS))), expected)
    assert torch.equal(box((TEXTS, torch.tensor([0, 1, 2]))), expected)  # labels are left out
    one_by_one = torch.cat([box([text]) for text in TEXTS])
    assert torch.allclose(one_by_one, expected, atol=1e-12)
    assert box.predict("the film was bad").shape == (1,)


def test_pairs_have_types() -> None:
    box = open_model(make_bert)
    pairs = [("the film was good", "it was great"), ("the plot", "bad")]
    with torch.no_grad():
        expected = box.model(**encoded(box, pairs)).logits
    assert torch.equal(box(pairs), expected)
    assert not torch.allclose(box([" ".join(p) for p in pairs]), expected)


def score_by_embeddings(box: ub.Box, text: str, target: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The embeddings (T, D) of a text, and the logit as a function of them, by the model's own inputs_embeds."""
    batch = encoded(box, [text])
    h = box.model.get_input_embeddings()(batch["input_ids"]).detach()[0]

    def score(h: Tensor) -> Tensor:
        rest = {k: v.expand(len(h), -1) for k, v in batch.items() if k != "input_ids"}
        return box.model(inputs_embeds=h, **rest).logits[:, target]  # type: ignore[no-any-return]

    return h, score


@pytest.mark.parametrize("name", ["bert", "llama"])  # of which inputs_embeds gives the same as ids
def test_gradients_are_those_of_the_embeddings(name: str) -> None:
    box = open_model(MAKERS[name])
    for row, text in enumerate(TEXTS):
        h, score = score_by_embeddings(box, text, 1)
        h = h[None].requires_grad_()
        (slopes,) = torch.autograd.grad(score(h).sum(), h)
        n = h.shape[1]
        a = ub.attribution.gradient(box, TEXTS, 1)
        assert a.shape == (3, 13)
        assert torch.allclose(a[row, :n], slopes[0].norm(dim=1), atol=1e-10)
        assert bool((a[row, n:] == 0).all())  # padding
        product = ub.attribution.gradient_x_input(box, TEXTS, 1, baseline="zero")
        inner = ~product.special[row, :n]
        assert torch.allclose(product[row, :n][inner], (slopes[0] * h[0]).sum(1)[inner], atol=1e-10)


def test_integrated_gradients_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    box = open_model(make_bert)
    batch = encoded(box, TEXTS)
    ids, special = batch["input_ids"], torch.isin(batch["input_ids"], torch.tensor([0, 2, 3]))
    baseline = torch.where(special, ids, torch.full_like(ids, 4))  # [MASK]

    def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
        return box.model(input_ids=input_ids, attention_mask=mask).logits  # type: ignore[no-any-return]

    layer = captum.LayerIntegratedGradients(forward, box.model.get_input_embeddings())
    expected = layer.attribute(
        ids, baselines=baseline, target=1, additional_forward_args=(batch["attention_mask"],), n_steps=200
    ).sum(-1)
    a = ub.attribution.integrated_gradients(box, TEXTS, 1, n_steps=200)
    assert torch.allclose(a.map, expected, atol=1e-4 * float(expected.abs().max()))
    assert bool((a.completeness_error <= 0.01 * a.score_difference.abs()).all())
    assert bool((a.map[special] == 0).all())


def test_feature_ablation_puts_the_mask_in_each_place(box: ub.Box) -> None:
    a = ub.attribution.feature_ablation(box, TEXTS, 2)
    batch = encoded(box, TEXTS)
    mask_row = box.model.get_input_embeddings().weight[4]
    packed = box.validate_inputs(TEXTS)
    for row in range(3):
        for t in range(batch["input_ids"].shape[1]):
            changed = packed.clone()
            changed[row, t, :-N_TOKEN_META_COLUMNS] = mask_row.detach()
            drop = float((box(packed) - box(changed))[row, 2])
            assert float(a[row, t]) == pytest.approx(0 if a.special[row, t] else drop, abs=1e-10)


def test_shapley_values_and_kernel_shap_agree_on_a_short_text(box: ub.Box) -> None:
    exact = ub.attribution.shapley(box, ["the film was good"], 1)
    kernel = ub.attribution.kernel_shap(box, ["the film was good"], 1, n_samples=64)
    assert torch.allclose(exact.map, kernel.map, atol=1e-8)
    assert float(exact.sum()) == pytest.approx(float(exact.score - exact.baseline_score), abs=1e-9)


def test_lrp_of_a_model_without_positions_to_embed_is_conserved() -> None:
    box = open_model(make_llama)
    a = ub.attribution.lrp(box, TEXTS, 1, epsilon=1e-12)
    assert torch.allclose(a.sum(1), a.score, rtol=1e-5)


def test_a_trigger_word_is_on_top() -> None:
    """A model that counts one word: every method names it."""
    box = ub.Box(Counter(), ub.Tokens(make_tokenizer()), outputs="logits")
    names = "gradient_x_input integrated_gradients lime kernel_shap shapley feature_ablation deep_lift lrp"
    for name in names.split():
        a = getattr(ub.attribution, name)(box, ["the film was great"], 1)
        values = a[0].masked_fill(a.special[0], 0)
        assert a.tokens[0][int(values.abs().argmax())] == "great", name


class Counter(nn.Module):
    """Its second logit is the number of times that "great" occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 20)
        self.embed.weight.data = torch.eye(20) * 0.1 + 0.01
        self.embed.weight.data[16, 16] = 1.0
        self.head = nn.Linear(20, 2, bias=False)
        self.head.weight.data = torch.stack([torch.zeros(20), torch.eye(20)[16]])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head((self.embed(ids) * mask[..., None]).sum(1))  # type: ignore[no-any-return]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([], "empty list"),
        (["good", "  "], "text 1 is empty"),
        ([3], "example 0 is int"),
        (["good " * 40], "has 42 tokens, and the model takes 32"),
        ({"input_ids": torch.tensor([[25]])}, "embeddings of 20 tokens"),
        ({"input_ids": torch.rand(1, 3)}, "whole numbers"),
        ({"tokens_of": 1}, "input_ids"),
        ({"input_ids": torch.tensor([[2, 3]]), "attention_mask": torch.zeros(1, 2)}, "without tokens"),
        ({"input_ids": torch.tensor([[2, 3]]), "attention_mask": torch.ones(1, 3)}, "differ in shape"),
        (torch.rand(2, 3), "packed texts"),
        (7, "wanted texts"),
    ],
)
def test_what_is_no_text_is_refused(x: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_model(make_bert)(x)


def test_long_texts_are_cut_where_that_is_asked_for() -> None:
    box = open_model(make_bert)
    cutting = ub.Box(box.model, ub.Tokens(make_tokenizer(), truncate=True, max_length=5), outputs="logits")
    assert ub.attribution.gradient(cutting, ["the film was good " * 9]).shape == (1, 5)


def test_models_and_tokenizers_that_do_not_fit_are_refused() -> None:
    config = transformers.BertConfig(vocab_size=15, max_position_embeddings=32, num_labels=3, **SIZES)
    with pytest.raises(InputError, match=r"it has 20 tokens, and .* has embeddings of 15"):
        ub.Box(transformers.BertForSequenceClassification(config), ub.Tokens(make_tokenizer()), outputs="logits")
    with pytest.raises(InputError, match=r"it has no nn\.Embedding"):
        ub.Box(nn.Linear(3, 2), ub.Tokens(make_tokenizer()), outputs="logits")


class WithPositions(nn.Module):
    """Two tables of embeddings, and no config that says how many positions there are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions, self.head = nn.Embedding(128, 8), nn.Embedding(12, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))  # type: ignore[no-any-return]


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_a_text_longer_than_the_positions_of_any_model_is_refused() -> None:
    box = ub.Box(WithPositions(), ub.Tokens(letters, embedding="embed"), outputs="logits")
    assert box(["a" * 12]).shape == (1, 2)
    for run in (box, lambda texts: ub.attribution.integrated_gradients(box, texts)):
        with pytest.raises(InputError, match=r"fails on texts of 13 tokens .*max_length"):
            run(["a" * 13])
    told = ub.Box(WithPositions(), ub.Tokens(letters, embedding="embed", max_length=12), outputs="logits")
    with pytest.raises(InputError, match="text 1 has 13 tokens, and the model takes 12"):
        told(["a", "a" * 13])


def test_a_model_whose_embedding_layer_cannot_be_found_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot be determined: it has 'embed', 'positions'; name it by"):
        ub.Box(WithPositions(), ub.Tokens(letters), outputs="logits")
    with pytest.raises(InputError, match="'head' is a Linear, which embeds no ids"):
        ub.Box(WithPositions(), ub.Tokens(letters, embedding="head"), outputs="logits")
    with pytest.raises(InputError, match="no module 'embedding'"):
        ub.Box(WithPositions(), ub.Tokens(letters, embedding="embedding"), outputs="logits")


def test_an_id_that_is_in_no_vocabulary_is_refused() -> None:
    box = ub.Box(WithPositions(), ub.Tokens(letters, embedding="embed"), outputs="logits")
    with pytest.raises(InputError, match="embeddings of 128 tokens; got the ids 97 to 8,364"):
        box(["a€"])


def test_methods_that_would_change_ids_refuse_texts() -> None:
    box = open_model(make_bert)
    y = torch.tensor([0, 1, 2])
    for card in ub.cards():
        if not card.texts and not card.key.startswith(("unrolled", "removal", "cka")):
            with pytest.raises(UnboxedError):
                card.example(card.method, box, TEXTS, y)


def test_a_call_leaves_no_trace(box: ub.Box) -> None:
    layer = box.inputs.layer
    before = {name: value.clone() for name, value in box.model.state_dict().items()}
    ub.attribution.integrated_gradients(box, TEXTS, 1)
    with pytest.raises(InputError):
        ub.attribution.gradient(box, TEXTS, 9)
    assert not layer._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in box.model.state_dict().items())
    assert all(p.grad is None for p in box.model.parameters())


def test_batches_of_texts_change_nothing(box: ub.Box) -> None:
    whole = ub.attribution.integrated_gradients(box, TEXTS, 1)
    split = ub.attribution.integrated_gradients(box, TEXTS, 1, batch_size=1)
    assert torch.allclose(whole.map, split.map, atol=1e-10)


def test_words_are_drawn(box: ub.Box) -> None:
    a = ub.attribution.gradient_x_input(box, TEXTS)
    assert [len(words) for words in a.tokens] == [6, 13, 3]
    figure = ub.plots.figures(a, box)["attribution"]
    assert figure.size[0] > 700


class WithoutMask(nn.Module):
    """Takes no mask: the mean over all tokens, over those that are not 0, or what the last one reads of those before"""

    def __init__(self, reads: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reads, self.embed, self.head = reads, nn.Embedding(10, 4), nn.Linear(4, 10)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.embed(ids))
        if self.reads == "before":  # a causal language model
            return self.head(h.cumsum(1))
        weights = (ids != 0 if self.reads == "not 0" else ids == ids).to(h)[..., None]
        return self.head((h * weights).sum(1) / weights.sum(1))


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def test_texts_whose_padding_changes_the_answers_are_run_by_length() -> None:
    box = ub.Box(WithoutMask("all"), ub.Tokens(numbers), outputs="logits")
    texts = ["1 2", "3 4 5 6", "7 8", "9 1 2"]
    alone = torch.cat([box.model(torch.tensor([numbers(text)])) for text in texts]).detach()
    assert torch.allclose(box(texts), alone, atol=1e-6)
    maps = ub.attribution.gradient(box, texts, 1)
    for i, text in enumerate(texts):
        n = len(numbers(text))
        assert torch.allclose(maps.map[i, :n], ub.attribution.gradient(box, [text], 1).map[0], atol=1e-6)
        assert not maps.map[i, n:].any()
    left = {"input_ids": torch.tensor([[0, 1, 2], [3, 4, 5]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    assert torch.allclose(box(left)[0], alone[0], atol=1e-6)
    assert torch.equal(box(torch.tensor([[1, 0]])), box.model(torch.tensor([[1, 0]])).detach())  # a token, no padding
    with pytest.raises(InputError, match="padding changes the model's answers: its forward has no argument"):
        box.read(texts, "embed")
    assert box.read(texts[::2], "embed")["embed"].shape == (2, 2, 4)


class MaxOverTime(nn.Module):
    """A text CNN: the largest value over tokens, which padding has in some texts only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(10, 4, padding_idx=0), nn.Linear(4, 3)
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.conv(self.embed(ids).mT).amax(2))


def test_every_padded_text_is_asked_whether_padding_changes_its_answer() -> None:
    model = MaxOverTime()
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(map(str, torch.randint(1, 10, (n,), generator=generator).tolist())) for n in range(4, 9)] * 3
    answers = [model(torch.tensor([numbers(text)])).detach() for text in texts]
    padded = [model(torch.tensor([numbers(text) + [0] * (8 - len(numbers(text)))])).detach() for text in texts]
    harmless = [torch.allclose(a, b) for a, b in zip(answers, padded, strict=True)]
    assert 5 < sum(harmless) < 15
    for first in range(len(texts)):  # whatever text comes first
        box = ub.Box(model, ub.Tokens(numbers), outputs="logits")
        assert torch.allclose(
            box(texts[first:] + texts[:first]), torch.cat(answers[first:] + answers[:first]), atol=1e-6
        )
    box(texts)
    with pytest.raises(InputError, match="the model fails on texts of 2 tokens alone"):
        box(["1 2", texts[-1]])


@pytest.mark.parametrize("reads", ["not 0", "before"])
def test_a_text_has_one_answer_where_padding_changes_nothing(reads: str) -> None:
    box = ub.Box(WithoutMask(reads), ub.Tokens(numbers), outputs="logits")
    assert torch.allclose(box(["1 2", "3 4 5 6"])[:1], box(["1 2"]), atol=1e-6)


def test_packed_texts_are_asked_by_each_model() -> None:
    texts, model = ["1 2", "3 4 5 6"], WithoutMask("all")
    box = ub.Box(model, ub.Tokens(numbers), outputs="logits")
    packed = box.validate_inputs(texts)
    for other in (box.with_model(WithoutMask("all")), box):
        assert torch.allclose(other(packed)[:1], other(texts[:1]), atol=1e-6)
        model.double()  # opened again


def test_answers_of_each_token_are_refused_where_padding_changes_them() -> None:
    class BothWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)
            self.read = nn.GRU(4, 2, batch_first=True, bidirectional=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.read(self.embed(ids))[0])  # (N, T, 3)

    box = ub.Box(BothWays(), ub.Tokens(numbers), outputs="logits", classes=["a", "b", "c"])
    assert box(["1 2", "3 4"]).shape == (2, 3, 2)
    with pytest.raises(InputError, match="2 to 3 tokens, and padding changes"):
        box(["1 2", "3 4 5"])
