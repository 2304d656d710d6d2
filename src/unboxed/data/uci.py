"""The 1,797 UCI digits that scikit-learn carries, brought to the size and the margins of MNIST.

Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, doi:10.24432/C50P49. Each digit was a
bitmap of 32x32, of which only the count of ink in every 4x4 block was kept. Margins: LeCun et al. 1998, section III-A.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..inputs.pixels import Pixels
from ..validation import check_seed
from .sets import InMemory

Split = Literal["all", "train", "test"]
Rows = NDArray[np.int64]

INPUTS = Pixels((1, 28, 28), mean=0.1419, std=0.3233)
HELD_OUT = 0.2  # of each class
FINE = 8  # pixels that a block is drawn with, a side
THINNING = 1.3  # MNIST's pens are finer: a block that is partly ink loses a little of it
ROUNDS = 3


def digits(split: Split = "all", seed: int = 0) -> InMemory:
    """1,797 real handwritten digits, 28x28, in an order shuffled by `seed`; nothing is downloaded.

    `train` (1,438) and `test` (359) part them, the same share of each class. The file does not say who wrote what, so
    a writer may be in both parts. Raises InputError for another split.
    """
    if split not in ("all", "train", "test"):
        raise InputError(f"digits come as 'all', 'train' or 'test'; got {split!r}")
    pixels, labels = _digits()
    rows = torch.from_numpy(_rows(labels.numpy(), split, check_seed(seed)))
    name = "digits" if split == "all" else f"digits ({split})"
    return InMemory(name, pixels[rows], labels[rows], tuple("0123456789"), INPUTS)


def _rows(labels: Rows, split: Split, seed: int) -> Rows:
    """The rows of a split, shuffled."""
    order: Rows = np.random.default_rng(seed).permutation(len(labels))
    if split == "all":
        return order
    held_out = np.concatenate([_share(order[labels[order] == c]) for c in np.unique(labels)])
    chosen: Rows = order[np.isin(order, held_out) == (split == "test")]
    return chosen


def _share(rows: Rows) -> Rows:
    return rows[: round(HELD_OUT * len(rows))]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 28, 28) uint8 and labels, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    counts, labels = load_digits(return_X_y=True)
    share = torch.from_numpy(counts).float().view(-1, 1, 8, 8) / 16
    pixels = _centered(_drawn(share**THINNING))
    return (255 * pixels).round().byte(), torch.from_numpy(labels)


def _drawn(share: Tensor) -> Tensor:
    """Bitmaps (N, 1, 64, 64) whose blocks hold these shares of ink (N, 1, 8, 8), with strokes as smooth as can be.

    Undoes the counting: blur, then in each block keep the brightest pixels, as many as were counted; repeat.
    """
    keep = (share * FINE**2).round().flatten(1).long()  # (N, 64)
    ink = share.repeat_interleave(FINE, 2).repeat_interleave(FINE, 3)
    for _ in range(ROUNDS):
        ink = _brightest(_blur(ink), keep)
    return ink


def _brightest(ink: Tensor, keep: Tensor) -> Tensor:
    """One where a pixel is among the `keep` brightest of its block, else zero."""
    blocks = F.unfold(ink, FINE, stride=FINE).mT  # (N, blocks, pixels)
    on = (keep == FINE**2).to(ink)[..., None].expand_as(blocks).clone()
    some = (keep > 0) & (keep < FINE**2)
    ranked = blocks[some].sort(descending=True).values
    least = ranked.gather(1, keep[some][:, None] - 1)
    on[some] = (blocks[some] >= least).to(ink)
    return F.fold(on.mT, ink.shape[-2:], FINE, stride=FINE)


def _blur(ink: Tensor, sd: float = 0.4 * FINE) -> Tensor:
    """Gaussian blur with nothing beyond the edges, as two products with a band matrix."""
    where = torch.arange(ink.shape[-1]).to(ink)
    bell = torch.exp(-(((where[:, None] - where) / sd) ** 2) / 2)
    bell = bell / bell.sum(1).max()
    return bell @ ink @ bell


def _centered(ink: Tensor) -> Tensor:
    """Bitmaps to 20x20, antialiased, in a field of 28x28 with the center of mass where MNIST has it, at (14, 14)."""
    edge = ink.shape[-1] // 4  # the antialiasing reaches a little beyond the 20x20
    out = F.interpolate(F.pad(ink, [edge] * 4), size=(30, 30), mode="bicubic", antialias=True).clamp(0, 1)
    where = torch.arange(30).to(out)
    mass = out.sum((1, 2, 3))
    down = (14 - (out.sum((1, 3)) @ where) / mass).round().int().tolist()
    right = (14 - (out.sum((1, 2)) @ where) / mass).round().int().tolist()
    moved = [torch.roll(o, (i, j), (1, 2)) for o, i, j in zip(out, down, right, strict=True)]
    return torch.stack(moved)[..., :28, :28]
