"""A small convolutional encoder of sentences that learns to find swapped neighbors in plain training sentences.

It sees the training sentences of the probing tasks alone, in each of which neighboring words are swapped or not, anew
in each epoch. No other text, no labels of any task: what it knows of word order comes from the swaps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_WORDS, WIDTH, BATCH, LEARNING_RATE = 1500, 128, 64, 2e-3
N_SUFFIX, MIN_CLASS_WORDS = 3, 10
MAX_SWAPS_PER_TEXT, P_DROPPED, TOKEN_LOSS = 3, 0.1, 3.0
PAD, UNKNOWN = 0, 1


class WordClasses:
    """Frequent words as they are; of others the shape and the last three letters, in place of the word."""

    def __init__(self, sentences: Sequence[str]) -> None:
        words = Counter(word for s in sentences for word in s.split())
        self.frequent = {w for w, _ in Counter({w.lower(): 0 for w in words} | _lower(words)).most_common(N_WORDS)}
        classes: Counter[str] = Counter()
        for word, n in words.items():
            classes[self._name(word)] += n
        names = [name for name, n in classes.most_common() if n >= MIN_CLASS_WORDS]
        self.ids = {name: i for i, name in enumerate(["[PAD]", "[UNK]", *names])}

    def _name(self, word: str) -> str:
        low = word.lower()
        if low in self.frequent:
            return low
        if re.fullmatch(r"[\d.,:/-]+", word):
            return "<number>"
        return f"<{'A' if word[0].isupper() else 'a'}..{low[-N_SUFFIX:] if low.isalpha() else '.'}>"

    def __len__(self) -> int:
        return len(self.ids)

    def __call__(self, text: str) -> list[int]:
        return [self.ids.get(self._name(word), UNKNOWN) for word in text.split()]


def _lower(words: Counter[str]) -> Counter[str]:
    low: Counter[str] = Counter()
    for word, n in words.items():
        low[word.lower()] += n
    return low


class Block(nn.Module):
    """A convolution along the words (N, T, D), to which padding is zero."""

    def __init__(self, d_in: int, kernel: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(d_in, WIDTH, kernel, padding=kernel // 2), nn.LayerNorm(WIDTH)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        out = F.gelu(self.conv((h * mask[..., None]).transpose(1, 2))).transpose(1, 2)
        return self.norm(out + h if h.shape == out.shape else out)


class ShiftEncoder(nn.Module):
    """Embeddings, three blocks, and whether words were swapped: from the mean and the largest of the words' values."""

    def __init__(self, n_tokens: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(n_tokens, WIDTH // 2, padding_idx=PAD), nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(WIDTH // 2, 5), Block(WIDTH, 3), Block(WIDTH, 3)])
        self.at_word, self.head = nn.Linear(WIDTH, 1), nn.Linear(2 * WIDTH, 2)

    def read(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embedding(input_ids)
        for block in self.blocks:
            h = block(self.dropout(h), mask)
        return h

    def classify(self, h: Tensor, mask: Tensor) -> Tensor:
        mean = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        largest = h.masked_fill(mask[..., None] == 0, -1e4).amax(1)
        return self.head(self.dropout(torch.cat([mean, largest], 1)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.to(self.embedding.weight.dtype)
        return self.classify(self.read(input_ids, mask), mask)


def swap_neighbors(words: list[int], generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A sentence with neighbors swapped once to three times, or, in half of the cases, as it is; and which words."""
    words, marks = list(words), [0] * len(words)
    n_swaps = int(torch.randint(1 - MAX_SWAPS_PER_TEXT, MAX_SWAPS_PER_TEXT + 1, (), generator=generator).clamp_min(0))
    for at in torch.randint(max(1, len(words) - 1), (n_swaps,), generator=generator).tolist() if len(words) > 1 else []:
        if words[at] != words[at + 1] and not (marks[at] or marks[at + 1]):
            words[at], words[at + 1] = words[at + 1], words[at]
            marks[at] = marks[at + 1] = 1
    return words, marks


def train(
    sentences: Sequence[str], n_epochs: int, seed: int = 0, log: Callable[..., None] | None = None
) -> tuple[ShiftEncoder, WordClasses]:
    """The encoder and its tokenizer, trained on plain sentences."""
    tokenizer, generator = WordClasses(sentences), torch.Generator().manual_seed(seed)
    rows = [tokenizer(s) for s in sentences]
    torch.manual_seed(seed)
    model = ShiftEncoder(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, n_epochs * -(-len(rows) // BATCH))
    for epoch in range(n_epochs):
        examples = [swap_neighbors(row, generator) for row in rows]
        noise = torch.rand(len(examples), generator=generator).tolist()
        order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]) + 4 * noise[i])
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        total = 0.0
        for k in torch.randperm(len(batches), generator=generator).tolist():
            loss = _loss(model, [examples[i] for i in batches[k]], generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if log is not None:
            log(epoch, total / len(batches), model, tokenizer)
    return model.eval(), tokenizer


def _loss(model: ShiftEncoder, examples: list[tuple[list[int], list[int]]], generator: torch.Generator) -> Tensor:
    n = max(len(ids) for ids, _ in examples)
    ids, marks, mask = (torch.zeros(len(examples), n, dtype=torch.long) for _ in range(3))
    for i, (row, row_marks) in enumerate(examples):
        ids[i, : len(row)], marks[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), torch.tensor(row_marks), 1
    dropped = (torch.rand(ids.shape, generator=generator) < P_DROPPED) & mask.bool()
    weights = mask.to(model.embedding.weight)
    h = model.read(ids.masked_fill(dropped, UNKNOWN), weights)
    at_word = F.binary_cross_entropy_with_logits(model.at_word(h)[..., 0][mask.bool()], marks[mask.bool()].float())
    return F.cross_entropy(model.classify(h, weights), marks.amax(1)) + TOKEN_LOSS * at_word
