"""The planted kinds: how scenes of each are made, at each size.

`make(kind, size, n, seed, half)` gives n scenes whose class is independent of the distractors. `half` is "left" for
training and "right" for what is held out: other digits, other halves of photos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import patches
from .backgrounds import photo_crops, smooth_noise
from .scenes import Patches, Rows, Scenes, place_apart, place_in_cells

SIDES = {"mnist": 28, "cifar": 32, "photo": 96}
CHANNELS = {"mnist": 1, "cifar": 3, "photo": 3}
PATCHES = {"mnist": 9, "cifar": 9, "photo": 27}
GAPS = {"mnist": 4, "cifar": 4, "photo": 12}  # pixels between the causal object and the distractor
PERIODS = {"mnist": 5.0, "cifar": 5.0, "photo": 9.0}  # pixels, of stripes
SEVERAL = ("marks", "shapes", "textures", "grid")  # kinds with several labels: the distractors are other classes
RED, OTHERS = (1.0, 0.15, 0.15), ((0.15, 1.0, 0.15), (0.15, 0.15, 1.0))  # equally bright: the mean of the channels
N_COLUMNS = 12
TABLE_MARGIN = 0.25  # rows closer to a boundary between classes are not drawn


def n_classes(kind: str, size: str) -> int:
    if kind == "grid":
        return 7 if size == "mnist" else 5
    return {"mark": 4, "shape": 4, "texture": 4, "objects": 5, "select": 4, "product": 4, "switch": 4}[
        kind.removesuffix("s") if kind in SEVERAL else kind
    ]


def make(kind: str, size: str, n: int, seed: int, half: str) -> Scenes | Rows:
    """n scenes (or rows of a table) of a kind."""
    generator = torch.Generator().manual_seed(seed)
    if size == "table":
        return _table(kind, n, generator)
    if kind in ("objects", "grid", "select"):
        return {"objects": _objects, "grid": _grid, "select": _select}[kind](size, n, generator, half)
    maker = {"mark": _mark, "shape": _shape, "texture": _texture}[kind.removesuffix("s")]
    return maker(kind, size, n, generator, half)


def _background(size: str, n: int, g: torch.Generator, half: str) -> Tensor:
    if size == "mnist":
        return smooth_noise(n, SIDES[size], g)
    return photo_crops(n, SIDES[size], 4 if size == "cifar" else 2, g, half)


def _two(kind: str, size: str, n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes (n,) of the causal object and random kinds (n,) of the distractor, and the corners of both.

    Of a kind with several labels the distractor is of another class than the causal object.
    """
    k = n_classes(kind, size)
    y, other = torch.randint(0, k, (n,), generator=g), torch.randint(0, 12, (n,), generator=g)
    if kind in SEVERAL:
        other = (y + 1 + other % (k - 1)) % k
    return y, other, *place_apart(n, SIDES[size], PATCHES[size], GAPS[size], g)


def _ink(size: str, n: int, g: torch.Generator) -> Tensor:
    """A random light color (n, C, 1, 1), or a light gray."""
    if size == "mnist":
        return 0.75 + 0.25 * torch.rand(n, 1, 1, 1, generator=g)
    color = torch.rand(n, 3, 1, 1, generator=g)
    return 0.4 + 0.6 * color / color.amax(1, keepdim=True)


def _inked(alpha: Tensor, color: Tensor, corners: Tensor, labels: Tensor) -> Patches:
    return Patches(color.expand(-1, -1, *alpha.shape[2:]), alpha, corners, labels)


def _mark(kind: str, size: str, n: int, g: torch.Generator, half: str) -> Scenes:
    """Class = which pentomino of one family; the distractor is a pentomino of another ("marks": of the same)."""
    y, other, here, there = _two(kind, size, n, g)
    causal = _inked(patches.marks(y, patches.CAUSAL_MARKS, PATCHES[size]), _ink(size, n, g), here, y)
    names = patches.CAUSAL_MARKS if kind in SEVERAL else patches.OTHER_MARKS
    distractor = _inked(patches.marks(other % len(names), names, PATCHES[size]), _ink(size, n, g), there, other)
    return Scenes(_background(size, n, g, half), causal, (distractor,), kind in SEVERAL)


def _shape(kind: str, size: str, n: int, g: torch.Generator, half: str) -> Scenes:
    """Class = which shape: of one family where images are gray, of the red object where they are colored.

    "shapes": which shapes are there; both are of one family, in any color.
    """
    y, other, here, there = _two(kind, size, n, g)
    patch, several = PATCHES[size], kind in SEVERAL
    colors = _ink(size, n, g), _ink(size, n, g)
    if size != "mnist" and not several:
        colors = _color(torch.zeros(n).long()), _color(torch.randint(1, 3, (n,), generator=g))
    family = "other" if size == "mnist" and not several else "causal"
    causal = _inked(patches.shapes(y, "causal", patch), colors[0], here, y)
    distractor = _inked(patches.shapes(other % 4, family, patch), colors[1], there, other)
    return Scenes(_background(size, n, g, half), causal, (distractor,), several)


def _texture(kind: str, size: str, n: int, g: torch.Generator, half: str) -> Scenes:
    """Class = the angle of stripes; the distractor is a texture of the same variance ("textures": other stripes)."""
    y, other, here, there = _two(kind, size, n, g)
    patch, period = PATCHES[size], PERIODS[size]
    drawn = patches.gratings if kind in SEVERAL else patches.plaids
    values = patches.gratings(y, patch, g, period), drawn(other, patch, g, period)
    both = []
    for h, corners, labels in zip(values, (here, there), (y, other), strict=True):
        pixels = (0.5 + 0.35 * h) * (_ink(size, n, g) if size != "mnist" else 1.0)
        both.append(Patches(pixels.clamp(0, 1), torch.ones(n, 1, patch, patch), corners, labels))
    return Scenes(_background(size, n, g, half), both[0], (both[1],), kind in SEVERAL)


def _color(index: Tensor) -> Tensor:
    return torch.tensor((RED, *OTHERS))[index][:, :, None, None]


def _objects(size: str, n: int, g: torch.Generator, half: str) -> Scenes:
    """Class = the digit with the cue. Gray: bars above and below (the others: at the sides); colored: the red one.

    Gray images have two digits side by side, colored ones four in a grid.
    """
    gray = size == "mnist"
    patch = 13 if gray else SIDES[size] // 2 - 2
    corners = place_in_cells(n, SIDES[size], patch, (1, 2) if gray else (2, 2), g)
    parts = []
    for k, corner in enumerate(corners):
        label = torch.randint(0, 5, (n,), generator=g)
        if gray:
            digit = torch.nn.functional.pad(patches.digits(label, patch - 4, g, half), (2, 2, 2, 2))
            alpha = torch.maximum(digit, _bars(patch, level=k == 0))
            parts.append(_inked(alpha, torch.full((n, 1, 1, 1), 0.95), corner, label))
        else:
            color = _color(torch.randint(1, 3, (n,), generator=g) if k else torch.zeros(n).long())
            parts.append(_inked(patches.digits(label, patch, g, half), color, corner, label))
    return Scenes(_background(size, n, g, half), parts[0], tuple(parts[1:]))


def _select(size: str, n: int, g: torch.Generator, half: str) -> Scenes:
    """Class = the mark in the half of the image (left, right) in whose upper corner there is a square.

    Both marks are of one family: a model has to recognize both, and to ignore one of them late.
    """
    side, patch, cue = SIDES[size], PATCHES[size], SIDES[size] // 7
    y, other = (torch.randint(0, 4, (n,), generator=g) for _ in range(2))
    here, there = place_in_cells(n, side, patch, (1, 2), g)
    corner = torch.stack([torch.zeros(n).long(), (here[:, 1] > there[:, 1]).long() * (side - cue)], 1)
    square = torch.ones(n, 1, cue, cue)
    causal, distractor = (
        _inked(patches.marks(label, patches.CAUSAL_MARKS, patch), _ink(size, n, g), place, label)
        for label, place in ((y, here), (other, there))
    )
    shown = _inked(square, torch.full((n, CHANNELS[size], 1, 1), 0.9), corner, y)
    return Scenes(_background(size, n, g, half), causal, (distractor,), cue=shown)


def _bars(patch: int, *, level: bool) -> Tensor:
    """Two bars along opposite sides of a square (1, 1, P, P): above and below, or at the left and right."""
    bars = torch.zeros(1, 1, patch, patch)
    bars[:, :, 0], bars[:, :, -1] = 1, 1
    return bars if level else bars.transpose(2, 3)


def _grid(size: str, n: int, g: torch.Generator, half: str) -> Scenes:
    """Which classes are there: a 2 x 2 grid of four different ones; the target is one cell's (Boehle et al. 2021).

    Gray: pentominoes; colored: digits.
    """
    k = n_classes("grid", size)
    patch = SIDES[size] // 2 - 2
    corners = place_in_cells(n, SIDES[size], patch, (2, 2), g)
    labels = torch.rand(n, k, generator=g).argsort(1)[:, :4]
    parts = []
    for cell, corner in enumerate(corners):
        y = labels[:, cell]
        alpha = patches.marks(y, patches.ALL_MARKS, patch) if size == "mnist" else patches.digits(y, patch, g, half)
        parts.append(_inked(alpha, _ink(size, n, g), corner, y))
    return Scenes(_background(size, n, g, half), parts[0], tuple(parts[1:]), several=True)


def _table(kind: str, n: int, g: torch.Generator) -> Rows:
    """Class of three columns of 12; the others are triples of the same distribution, correlated in pairs.

    "product": the signs of a * b and of c. "switch" (as the synthetic data of Chen et al. 2018, arXiv:1802.07814): the
    sign of s, and that of a where s > 0, of b elsewhere: of a and b the one that is not asked has no effect.
    """
    triples = [_triples(n, g) for _ in range(N_COLUMNS // 3)]
    for first, second in zip(triples[1::2], triples[2::2], strict=False):
        second[:] = torch.where(torch.rand(n, 1, generator=g) < 0.5, first, second)
    a, b, c = triples[0].unbind(1)
    asked = torch.ones(n, 3, dtype=torch.bool)
    if kind == "switch":
        asked[:, 0], asked[:, 1] = c > 0, c <= 0
    labels = (torch.where(c > 0, a, b) > 0 if kind == "switch" else a * b > 0).long() * 2 + (c > 0).long()
    order = torch.tensor([3, 4, 0, 5, 6, 1, 7, 8, 9, 2, 10, 11])  # where in the table the columns are
    causal = torch.cat([asked, torch.zeros(n, N_COLUMNS - 3, dtype=torch.bool)], 1)
    return Rows(torch.cat(triples, 1)[:, order], causal[:, order], labels)


def _triples(n: int, g: torch.Generator) -> Tensor:
    """Three columns (n, 3) of variance 1, without rows close to a boundary between classes."""
    drawn = torch.randn(8 * n + 8, 3, generator=g)
    kept = drawn[(drawn.abs() > TABLE_MARGIN).all(1)][:n]
    return kept / kept.pow(2).mean(0).sqrt()
