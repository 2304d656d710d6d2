"""Attribution of texts: a planted word found, swaps, conservation of AttnLRP, captum's integrated gradients.

All models are made and trained here, in seconds. Memory is that of a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn

import unboxed as ub
from harness import RESULTS, compare, seconds, write
from unboxed.data.reviews import TRIGGER, review_words
from unboxed.training.text_classifier import small_bert, train_text_classifier, word_tokenizer

N_TRAINING, N_TRIGGERED, N_JUDGED, N_FLIPPED = 1000, 200, 32, 200
LONG_TOKENS, MAX_LONG_BYTES = 4096, 2 * 2**30
N_CANDIDATES = (4, 16, 64, 10_000)  # the last: all swaps
N_PAIRS = 9  # ours and captum in turn; of three the ratio varied by 8 %
METHODS: dict[str, Callable[..., Any]] = {
    "integrated_gradients": ub.attribution.integrated_gradients,
    "occlusion (feature_ablation)": ub.attribution.feature_ablation,
    "lime": partial(ub.attribution.lime, n_samples=500),
    "attn_lrp": ub.attribution.attn_lrp,
}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def trained_box(texts: ub.data.Texts, seed: int = 0) -> ub.Box:
    model, tokenizer = train_text_classifier(texts.texts, texts.labels, texts.classes, words=review_words(), seed=seed)
    return ub.Box(model, ub.Tokens(tokenizer))


def accuracy(box: ub.Box, texts: ub.data.Texts) -> float:
    return float((box.predict(texts) == torch.tensor(texts.labels)).double().mean())


def top_share(a: Any) -> float:
    """The share of texts whose largest value is at the trigger."""
    values = a.map.masked_fill(a.special, -torch.inf)
    tops = [tokens[int(row.argmax())] for tokens, row in zip(a.tokens, values, strict=True)]
    return sum(word == TRIGGER for word in tops) / len(tops)


def planted() -> dict[str, Any]:
    box, seconds_taken = None, 0.0

    def train() -> None:
        nonlocal box
        box = trained_box(ub.data.reviews(N_TRAINING, trigger=TRIGGER))

    seconds_taken = seconds(train)
    assert box is not None
    test = ub.data.reviews(4 * N_TRIGGERED, seed=1, trigger=TRIGGER)
    triggered = [text for text, label in test if label][:N_TRIGGERED]
    mixed = ub.data.reviews(N_JUDGED, seed=2, trigger=TRIGGER).texts
    random = box.with_model(small_bert(len(box.inputs.tokenizer), box.classes, seed=1))
    verdicts = {
        name: {"trained": ub.checks.verdict(box, mixed, m), "random weights": ub.checks.verdict(random, mixed, m)}
        for name, m in METHODS.items()
    }
    ig = ub.attribution.integrated_gradients(box, triggered, 1)
    error = float((ig.completeness_error.abs() / ig.score_difference.abs()).max())
    return {
        "seconds of training": seconds_taken,
        "test accuracy": accuracy(box, test),
        "triggered texts": len(triggered),
        "trigger on top": {name: top_share(m(box, triggered, 1)) for name, m in METHODS.items()},
        "verdicts": {name: {k: [v.grade, v.reason] for k, v in by.items()} for name, by in verdicts.items()},
        "integrated gradients, largest completeness error": error,
    }  # fmt: skip


def swaps() -> dict[str, Any]:
    """Swaps in reviews: words that say something, and "not", which turns them; where one word is the only reason."""
    box, test = trained_box(ub.data.reviews(2 * N_TRAINING)), ub.data.reviews(200, seed=1)
    flips = ub.data.reviews(N_FLIPPED, seed=3)
    planted_box = trained_box(ub.data.reviews(N_TRAINING, trigger=TRIGGER))
    planted_flips = ub.data.reviews(N_FLIPPED, seed=3, trigger=TRIGGER)
    return {
        "test accuracy": accuracy(box, test),
        **flip_figures(box, flips),
        "planted word, by n_candidates": {
            str(n): flip_figures(planted_box, planted_flips, n_candidates=n) for n in N_CANDIDATES
        },
    }


def flip_figures(box: ub.Box, texts: ub.data.Texts, **settings: Any) -> dict[str, Any]:
    swapped = ub.adversarial.hotflip(box, texts.texts, texts.labels, max_swaps=3, check_candidates=False, **settings)
    right = ~swapped.initially_misclassified
    return {
        "right answers": int(right.sum()),
        "flipped by at most 3 swaps": float(swapped.success[right].double().mean()),
        "mean swaps": float(swapped.distance[right & swapped.success].mean()),
        "queries per text": float(swapped.queries[right].double().mean()),
    }


# -- conservation ------------------------------------------------------------------------------------------------------


def shaped_models(n_words: int) -> dict[str, nn.Module]:
    bert = {**SIZES, "vocab_size": n_words, "max_position_embeddings": 64, "num_labels": 2, "pad_token_id": 0}
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": n_words, "num_labels": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return {
        "BERT": transformers.BertForSequenceClassification(transformers.BertConfig(**bert)),
        "RoBERTa": transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**bert)),
        "GPT-2": transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**gpt2, **ends)),
        "Llama": transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(**bert | ends, num_key_value_heads=2)
        ),
    }


def conservation() -> dict[str, Any]:
    tokenizer = word_tokenizer(review_words())
    data = ub.data.reviews(N_TRAINING)
    batch, labels = tokenizer(data.texts, padding=True, return_tensors="pt"), torch.tensor(data.labels)
    batch = {k: v for k, v in batch.items() if k != "token_type_ids"}
    texts = ub.data.reviews(N_JUDGED, seed=1).texts
    figures: dict[str, Any] = {}
    torch.manual_seed(0)
    for name, model in shaped_models(len(tokenizer)).items():
        for how in ("random", "trained"):
            if how == "trained":
                train(model, batch, labels)
            box = ub.Box(model.eval(), ub.Tokens(tokenizer), outputs="logits")
            account = ub.attribution.attn_lrp(box, texts).conservation
            held = {kind: float(account.shares(v).sum()) for kind, v in account.held_back.items()}
            figures[f"{name}, {how}"] = {
                "layers": len(account.layers), "largest error": account.max_error, "held back": held,
                "accuracy": accuracy(box, ub.data.reviews(200, seed=2)),
            }  # fmt: skip
    return figures


def train(model: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for rows in torch.split(torch.cat([torch.randperm(len(labels)) for _ in range(4)]), 64):
        loss = F.cross_entropy(model(**{k: v[rows] for k, v in batch.items()}).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()


# -- captum ------------------------------------------------------------------------------------------------------------


def captum() -> dict[str, Any]:
    """Integrated gradients of 32 texts of 128 tokens, at the same 50 points."""
    tokenizer = word_tokenizer(review_words(), max_length=128)
    model = small_bert(len(tokenizer), ("negative", "positive"), max_length=128)
    box = ub.Box(model, ub.Tokens(tokenizer), outputs="logits")
    words, generator = review_words(), torch.Generator().manual_seed(0)
    texts = [" ".join(words[i] for i in torch.randint(len(words), (126,), generator=generator)) for _ in range(32)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    baseline = ids.clone()
    baseline[:, 1:-1] = tokenizer.mask_token_id
    peer_method = LayerIntegratedGradients(
        lambda i, m: model(input_ids=i, attention_mask=m).logits, model.bert.embeddings.word_embeddings
    )

    def ours() -> Tensor:
        return ub.attribution.integrated_gradients(
            box, dict(batch), 1, baseline="mask", n_steps=50, rule="gauss-legendre"
        ).map  # type: ignore[no-any-return]

    def peer() -> Tensor:
        return peer_method.attribute(  # type: ignore[no-any-return]
            ids, baseline, target=1, additional_forward_args=(mask,), n_steps=50, internal_batch_size=256
        ).sum(-1)

    difference = float((ours() - peer()).abs().max())
    scale = float(peer().abs().max())
    return {
        "texts": 32, "tokens": int(ids.shape[1]), "points": 50, "largest difference": difference,
        "largest value": scale, "time": compare(ours, peer, pairs=N_PAIRS),
    }  # fmt: skip


# -- long texts --------------------------------------------------------------------------------------------------------


def long_text(method: str) -> None:
    """In a process of its own: the memory that one map of a long text takes, in bytes."""
    tokenizer = word_tokenizer(review_words(), max_length=LONG_TOKENS)
    settings = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": LONG_TOKENS, "num_labels": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**settings, pad_token_id=0, num_key_value_heads=2)
    box = ub.Box(transformers.LlamaForSequenceClassification(config).eval(), ub.Tokens(tokenizer), outputs="logits")
    words = review_words()
    text = " ".join(words[i % len(words)] for i in range(LONG_TOKENS - 2))
    settings = {"n_steps": 8} if method == "integrated_gradients" else {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: getattr(ub.attribution, method)(box, [text], 1, **settings))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"bytes": 1024 * peak, "bytes of the map alone": 1024 * (peak - before), "seconds": took}))


def long_texts() -> dict[str, Any]:
    figures = {}
    for method in ("gradient_x_input", "integrated_gradients", "attn_lrp"):
        done = subprocess.run([sys.executable, __file__, method], capture_output=True, text=True, check=True)
        figures[method] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"tokens": LONG_TOKENS, "at most": MAX_LONG_BYTES, **figures}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"hotflip": swaps, "captum": captum, "long texts": long_texts}


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:] and sys.argv[1] in PARTS:  # this part alone, into the figures that are there
        known = json.loads((RESULTS / "text_attribution.json").read_text())
        figures = {**known, **{part: PARTS[part]() for part in sys.argv[1:]}}
    elif sys.argv[1:]:
        long_text(sys.argv[1])
        return
    else:
        whole = {"planted": planted, "conservation": conservation, **PARTS}
        figures = {part: make() for part, make in whole.items()}
    write("text_attribution", figures, packages=("transformers", "captum"))


if __name__ == "__main__":
    main()
