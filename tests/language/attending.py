"""Small transformers of texts in the spellings that people write, with nothing but torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub

LETTERS = ["some text", "another one!", "a bc", "hello there you"]


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def encoded_letters(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and masks (N, T)."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = torch.tensor(letters(text)), 1
    return ids, mask


def open_texts(model: nn.Module) -> ub.Box:
    return ub.Box(model.double().eval(), ub.Tokens(letters), outputs="logits")


class Attend(nn.Module):
    """Scaled dot products, in torch's fused op."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        n, t, d = h.shape
        q, k, v = (z.view(n, t, 2, -1).transpose(1, 2) for z in self.qkv(h).chunk(3, -1))
        keys = mask[:, None, None].bool().expand(n, 2, t, t)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).reshape(n, t, d))


class FeedForward(nn.Module):
    """The same three layers as attributes, in no list."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = layers

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(h)))


class Block(nn.Module):
    def __init__(self, d: int, in_sequence: bool) -> None:
        super().__init__()
        self.attend, self.norm1, self.norm2 = Attend(d), nn.LayerNorm(d), nn.LayerNorm(d)
        layers = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.ff = layers if in_sequence else FeedForward(layers)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = h + self.attend(self.norm1(h), mask)
        return h + self.ff(self.norm2(h))


class TextTransformer(nn.Module):
    """Blocks in a list, or each an attribute."""

    def __init__(self, in_sequence: bool = True, n_blocks: int = 3, in_list: bool = True, d: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Embedding(128, d), nn.LayerNorm(d), nn.Linear(d, 3)
        blocks = [Block(d, in_sequence) for _ in range(n_blocks)]
        if in_list:
            self.blocks = nn.ModuleList(blocks)
        else:
            self.first, self.second, self.third = blocks

    def listed(self) -> list[Any]:
        return list(self.blocks) if hasattr(self, "blocks") else [self.first, self.second, self.third]

    def end(self, h: Tensor, mask: Tensor) -> Tensor:
        h = self.norm(h) * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """What goes into the first block, and what each gives."""
        states = [self.embed(ids)]
        for block in self.listed():
            states.append(block(states[-1], mask))
        return states

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.end(self.states(ids, mask)[-1], mask)


class ResidualOutside(TextTransformer):
    """Lists of attention and feed-forward, whose residual connections are in no module."""

    def __init__(self, d: int = 16) -> None:
        super().__init__(n_blocks=1)
        self.blocks = nn.ModuleList(nn.ModuleList([Attend(d), FeedForward(Block(d, True).ff)]) for _ in range(3))

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        h = self.embed(ids)
        for attend, ff in self.blocks:
            h = h + attend(h, mask)
            h = h + ff(h)
        return [h]


class HeadsFirst(nn.Module):
    """Heads and examples in one axis, in either order, or in two."""

    def __init__(self, order: str = "heads first", d: int = 8, n_blocks: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.order = nn.Embedding(128, d), nn.Linear(d, 3), order
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.off: int | None = None

    def split(self, h: Tensor) -> Tensor:
        """(2N, T, D / 2), or (2, N, T, D / 2)."""
        h = h.view(*h.shape[:2], 2, -1)
        h = h.permute(0, 2, 1, 3) if self.order == "examples first" else h.permute(2, 0, 1, 3)
        return h if self.order == "two axes" else h.flatten(0, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = 2 * self.embed(ids)
        n, t, d = h.shape
        shape = (n, 2) if self.order == "examples first" else (2, n)
        away = (mask == 0)[:, None].expand(n, 2, t) if shape[0] == n and self.order == "examples first" else (
            (mask == 0)[None].expand(2, n, t))  # fmt: skip
        z = self.split(self.q(h)) @ self.split(self.k(h)).mT
        w = z.masked_fill(away.reshape(*z.shape[:-2], 1, t), -1e9).softmax(-1)
        if self.off is not None:
            keep = torch.ones(shape, dtype=w.dtype)
            keep[(slice(None), self.off) if self.order == "examples first" else self.off] = 0
            w = w * keep.reshape(*w.shape[:-2], 1, 1)
        out = (w @ self.split(self.v(h))).view(*shape, t, -1)
        out = out.permute(0, 2, 1, 3) if self.order == "examples first" else out.permute(1, 2, 0, 3)
        h = (h + self.o(out.reshape(n, t, d))) * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))
