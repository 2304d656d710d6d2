"""Which map ranks the words of a text best? Four ways of removing words, two depths, two trainings each.

Two measures: the area under the probability of the predicted class as words go, the most relevant first (deletion), and
that of Achtibat et al. 2024 and Blücher et al. 2024: how much larger the area under its logit is with the least
relevant first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import unboxed as ub
from harness import write
from unboxed.data.reviews import review_words
from unboxed.inputs.tokens import N_TOKEN_META_COLUMNS
from unboxed.training.text_classifier import word_tokenizer

N_TRAINING, N_TEXTS, N_EPOCHS = 2000, 100, 8
LEARNING_RATES, SEEDS, STEPS = {2: 2e-3, 6: 1e-3}, (0, 1), 10  # by depth
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64}
IG = ub.attribution.integrated_gradients
METHODS: dict[str, Callable[..., Any]] = {
    "attn_lrp": ub.attribution.attn_lrp,
    "attn_lrp (gamma)": partial(ub.attribution.attn_lrp, rule="gamma"),
    "lrp": ub.attribution.lrp,
    "integrated_gradients": IG,
    "integrated_gradients (zeros)": partial(IG, baseline="zero"),
    "gradient_x_input": ub.attribution.gradient_x_input,
    "feature_ablation": ub.attribution.feature_ablation,
    "rollout": lambda box, x, target: ub.attribution.rollout(box, x),
    "gradient_attention": ub.attribution.gradient_attention,
    "legrad": ub.attribution.legrad,
    "random order": lambda box, x, target: ub.checks.random_maps(box, x),
}


def trained_box(n_layers: int, seed: int) -> ub.Box:
    tokenizer, data = word_tokenizer(review_words()), ub.data.reviews(N_TRAINING)
    torch.manual_seed(seed)
    config = transformers.BertConfig(**SIZES, num_hidden_layers=n_layers, vocab_size=len(tokenizer), num_labels=2)
    model = transformers.BertForSequenceClassification(config)
    batch, labels = tokenizer(data.texts, padding=True, return_tensors="pt"), torch.tensor(data.labels)
    optimizer = torch.optim.AdamW(model.parameters())
    n_steps = N_EPOCHS * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATES[n_layers], total_steps=n_steps + 1)
    for _ in range(N_EPOCHS):
        for rows in torch.randperm(len(labels)).split(64)[: len(labels) // 64]:
            loss = F.cross_entropy(model(**{name: v[rows] for name, v in batch.items()}).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return ub.Box(model.eval().requires_grad_(False), ub.Tokens(tokenizer), outputs="logits")


# -- four ways of removing tokens (N, T) of packed texts ---------------------------------------------------------------


def fill_with(kind: str, box: ub.Box, x: Tensor, removed: Tensor) -> Tensor:
    return torch.where(removed[..., None], box.inputs.fill_tokens(x, kind), x)


def hide_from_attention(box: ub.Box, x: Tensor, removed: Tensor) -> Tensor:
    """The other tokens keep their positions."""
    x = x.clone()
    x[..., -N_TOKEN_META_COLUMNS + 1].masked_fill_(removed, 0)
    return x


def take_out(box: ub.Box, x: Tensor, removed: Tensor) -> Tensor:
    """The other tokens move up: a shorter text."""
    stays = (box.inputs.mask(x) & ~removed).long()
    order = stays.argsort(dim=1, descending=True, stable=True)
    shorter = torch.take_along_dim(x, order[..., None], 1).clone()
    shorter[..., -N_TOKEN_META_COLUMNS + 1] = torch.take_along_dim(stays, order, 1).to(x)
    return shorter


REMOVALS: Mapping[str, Callable[[ub.Box, Tensor, Tensor], Tensor]] = {
    "[MASK]": partial(fill_with, "mask"),
    "zeros": partial(fill_with, "zero"),
    "out of attention": hide_from_attention,
    "out of the text": take_out,
}


def curves(box: ub.Box, x: Tensor, map_: Tensor, classes: Tensor, remove: Any) -> tuple[Tensor, Tensor]:
    """The class's probability and logit (N, S + 1) as tokens go, the largest of the map first."""
    special, rows = box.inputs.is_special(x), torch.arange(len(x))
    rank = map_.masked_fill(special, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    probabilities, logits = [], []
    for step in range(STEPS + 1):
        n_removed = ((~special).sum(1) * step / STEPS).round()
        z = box(remove(box, x, rank < n_removed[:, None]))
        probabilities.append(z.softmax(1)[rows, classes])
        logits.append(z[rows, classes])
    return torch.stack(probabilities, 1), torch.stack(logits, 1)


def area(curve: Tensor) -> float:
    return float(torch.trapezoid(curve, torch.linspace(0, 1, STEPS + 1), dim=1).mean())


def measured(n_layers: int, seed: int) -> dict[str, Any]:
    box, test = trained_box(n_layers, seed), ub.data.reviews(N_TEXTS, seed=1)
    x, classes = box.validate_inputs(test.texts), box.predict(test.texts)
    figures: dict[str, Any] = {"accuracy": float((classes == torch.tensor(test.labels)).double().mean()), "maps": {}}
    for name, method in METHODS.items():
        map_ = torch.as_tensor(getattr(values := method(box, test.texts, classes), "map", values))
        figures["maps"][name] = {}
        for how, remove in REMOVALS.items():
            most, least = curves(box, x, map_, classes, remove), curves(box, x, -map_, classes, remove)
            figures["maps"][name][how] = {"deletion": area(most[0]), "between": area(least[1]) - area(most[1])}
    return figures


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"texts": N_TEXTS, "steps": STEPS, "seeds": len(SEEDS)}
    for n_layers in LEARNING_RATES:
        runs = [measured(n_layers, seed) for seed in SEEDS]
        maps = {
            name: {
                how: {m: [run["maps"][name][how][m] for run in runs] for m in ("deletion", "between")}
                for how in REMOVALS
            }
            for name in METHODS
        }
        figures[f"{n_layers} layers"] = {"accuracy": fmean(run["accuracy"] for run in runs), "maps": maps}
    write("text_deletion", figures, packages=("transformers",))


if __name__ == "__main__":
    main()
