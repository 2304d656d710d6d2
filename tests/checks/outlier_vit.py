"""A small vision transformer, written by hand, in which one neuron makes outlier tokens of white patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub

SIDE, PATCH, D, HIDDEN, N_BLOCKS = 16, 4, 24, 48, 3
PLANTED = ("blocks.1.fc2:input", 7)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, h: Tensor) -> Tensor:
        n, t, d = h.shape
        q, k, v = (z.view(n, t, 2, -1).transpose(1, 2) for z in self.qkv(h).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attend, self.norm2 = nn.LayerNorm(D), Attend(), nn.LayerNorm(D)
        self.fc1, self.act, self.fc2 = nn.Linear(D, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, D)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attend(self.norm1(h))
        return h + self.fc2(self.act(self.fc1(self.norm2(h))))


class OutlierViT(nn.Module):
    """`strength` 0 plants nothing. The last block's heads attend to outliers."""

    def __init__(self, strength: float, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(1, D, PATCH, PATCH)
        self.first = nn.Parameter(0.5 * torch.randn(1, 1, D))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 1 + (SIDE // PATCH) ** 2, D))
        self.blocks = nn.ModuleList([Block() for _ in range(N_BLOCKS)])
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 3)
        if strength:
            self._plant(strength)

    @torch.no_grad()
    def _plant(self, strength: float) -> None:
        self.patches.weight[0].fill_(6 / PATCH**2)  # channel 0 is a patch's brightness
        self.patches.bias[0] = -2.0
        block, (_, unit) = self.blocks[1], PLANTED
        block.fc1.weight[unit].zero_()
        block.fc1.weight[unit, 0], block.fc1.bias[unit] = 8.0, -20.0
        block.fc2.weight[:, unit].zero_()
        block.fc2.weight[1, unit] = strength  # written to channel 1
        last = self.blocks[-1].attend.qkv
        last.bias[:D:6].fill_(2.0)  # a query that all tokens have
        last.weight[D : 2 * D : 6, 1] = 2.0  # which outliers' keys answer

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT
        h = torch.cat([self.first.expand(len(x), -1, -1), h], 1) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])


def outlier_box(strength: float = 3.0) -> ub.Box:
    return ub.Box(OutlierViT(strength).eval(), ub.Pixels((1, SIDE, SIDE)), outputs="logits")


def images_with_white_patches(n: int = 8) -> tuple[Tensor, Tensor]:
    """Dim noise with one or two white patches, and which these are (N, P)."""
    generator = torch.Generator().manual_seed(0)
    x = 0.4 * torch.rand(n, 1, SIDE, SIDE, generator=generator)
    side = SIDE // PATCH
    white = torch.zeros(n, side, side, dtype=torch.bool)
    for i in range(n):
        for k in torch.randperm(side * side, generator=generator)[: 1 + i % 2].tolist():
            row, column = divmod(k, side)
            white[i, row, column] = True
            x[i, 0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 1.0
    return x, white.flatten(1)
