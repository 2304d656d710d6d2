"""What is pasted into scenes: marks, shapes, textures and digits, each as a causal family and a family of distractors.

The two families are as salient as one another by construction: marks have the same number of pixels and the same
perimeter, shapes the same area, textures the same mean and variance, digits are the same digits under another cue.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

PENTOMINOES = {  # five cells and a perimeter of twelve, all within 3 x 3 cells
    "X": (".#.", "###", ".#."),
    "U": ("#.#", "###", "..."),
    "V": ("#..", "#..", "###"),
    "Z": ("##.", ".#.", ".##"),
    "T": ("###", ".#.", ".#."),
    "F": (".##", "##.", ".#."),
    "W": ("#..", "##.", ".##"),
}
CAUSAL_MARKS, OTHER_MARKS, ALL_MARKS = "XUVZ", "TFW", "XUVZTFW"
DIGITS = (0, 1, 4, 6, 7)  # those that scikit-learn's digits tell apart best
SHAPE_AREA = 0.38  # of the square that a shape is drawn in


def marks(index: Tensor, names: str, patch: int) -> Tensor:
    """Pentominoes (N, 1, P, P), 1 where there is ink: the one of `names` that `index` (N,) says."""
    cells = torch.tensor([[[c == "#" for c in row] for row in PENTOMINOES[name]] for name in names]).float()
    cell = patch // 3
    large = F.pad(cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2), (0, patch - 3 * cell) * 2)
    return large[index][:, None]


def shapes(index: Tensor, family: str, patch: int) -> Tensor:
    """Filled shapes (N, 1, P, P) of equal area, 1 inside: `family` is "causal" or "other"."""
    side = (torch.arange(patch) + 0.5) / patch * 2 - 1
    v, u = torch.meshgrid(side, side, indexing="ij")
    families = {
        "causal": (
            (u**2 + v**2).sqrt(),  # disk
            torch.maximum(1.7 * u.abs() + v, -2 * v) + 0.3 * v,  # triangle
            torch.minimum(u.abs(), v.abs()) + 0.05 * torch.maximum(u.abs(), v.abs()),  # plus
            torch.maximum(u.abs() * 2.4, v.abs()),  # upright bar
        ),
        "other": (
            u.abs() + v.abs(),  # diamond
            ((u**2 + v**2).sqrt() - 0.65).abs(),  # ring
            torch.minimum((u + v).abs(), (u - v).abs()) + 0.05 * (u**2 + v**2),  # cross
            torch.maximum((u + v).abs() * 1.7, (u - v).abs()),  # slanted bar
        ),
    }
    drawn = []
    for f in families[family]:
        level = f.flatten().quantile(SHAPE_AREA)
        drawn.append(((level - f) * patch / 3 + 0.5).clamp(0, 1))  # antialiased
    return torch.stack(drawn)[index][:, None]


def gratings(index: Tensor, patch: int, generator: torch.Generator, period: float) -> Tensor:
    """Stripes (N, 1, P, P) in [-1, 1] at one of four angles (0, 45, 90, 135 degrees), at a random phase."""
    angle = index * (torch.pi / 4)
    return _waves(angle, patch, generator, period)


def plaids(index: Tensor, patch: int, generator: torch.Generator, period: float) -> Tensor:
    """Textures (N, 1, P, P) of the gratings' variance without their angles: plaids, rings and mixed waves."""
    a, b = (_waves(torch.full(index.shape, angle), patch, generator, period) for angle in (0.0, torch.pi / 2))
    c, d = (_waves(torch.full(index.shape, angle), patch, generator, period) for angle in (torch.pi / 4, -torch.pi / 4))
    kinds = torch.stack([a * b * 2, c * d * 2, (a + b + c + d) / 2])  # (3, N, 1, P, P)
    return _standardize(kinds[index % 3, torch.arange(len(index))]) * 0.7


def _waves(angle: Tensor, patch: int, generator: torch.Generator, period: float) -> Tensor:
    position = torch.arange(patch).float()
    v, u = torch.meshgrid(position, position, indexing="ij")
    along = angle.cos().view(-1, 1, 1) * u + angle.sin().view(-1, 1, 1) * v
    phase = torch.rand(len(angle), 1, 1, generator=generator) * 2 * torch.pi
    return (along * (2 * torch.pi / period) + phase).sin()[:, None]


def _standardize(h: Tensor) -> Tensor:
    """Each (1, P, P) at mean 0 and standard deviation 1, without what is beyond three of them."""
    centered = h - h.mean((2, 3), keepdim=True)
    return (centered / centered.std((2, 3), keepdim=True).clamp_min(1e-3)).clamp(-3, 3)


@functools.lru_cache
def _digit_images(half: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)
    rows = slice(0, 1300) if half == "left" else slice(1300, None)
    return images[rows], labels[rows]


def digits(index: Tensor, patch: int, generator: torch.Generator, half: str) -> Tensor:
    """Handwritten digits (N, 1, P, P), 1 where there is ink: the class `index` (N,) of DIGITS."""
    images, labels = _digit_images(half)
    out = torch.empty(len(index), 8, 8)
    for k, digit in enumerate(DIGITS):
        rows = (index == k).nonzero().flatten()
        pool = (labels == digit).nonzero().flatten()
        out[rows] = images[pool[torch.randint(0, len(pool), (len(rows),), generator=generator)]]
    large = F.interpolate(out[:, None], (patch, patch), mode="bilinear", align_corners=False)
    return large.clamp(0, 1)
