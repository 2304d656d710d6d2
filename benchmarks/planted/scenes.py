"""Scenes: a background, an object that the answer depends on, and objects as salient that it does not depend on.

A scene is kept in its parts, so that one part can be replaced and the rest left as it is: this is what makes the reason
of an answer known. `Scenes` are images, `Rows` are tables; both have the same methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """Square objects: their pixels, how opaque each is, the corner (top, left) of each, and which class each shows."""

    pixels: Tensor  # (N, C, P, P) in [0, 1]
    alpha: Tensor  # (N, 1, P, P) in [0, 1]
    corners: Tensor  # (N, 2)
    labels: Tensor  # (N,)

    def __getitem__(self, index: Tensor | slice) -> Patches:
        return Patches(self.pixels[index], self.alpha[index], self.corners[index], self.labels[index])

    def moved_to(self, other: Patches) -> Patches:
        """These objects at the places of others."""
        return replace(self, corners=other.corners)

    def paste(self, x: Tensor, shown: Tensor) -> Tensor:
        """x (N, C, H, W) with these objects on it, in the rows in which they are `shown` (N,)."""
        n, _, p, _ = self.pixels.shape
        offsets = torch.arange(p)
        rows = (self.corners[:, :1] + offsets)[:, :, None]  # (N, P, 1)
        columns = (self.corners[:, 1:] + offsets)[:, None]  # (N, 1, P)
        index = torch.arange(n)[:, None, None], rows, columns
        image = x.permute(0, 2, 3, 1).clone()  # (N, H, W, C)
        alpha = (self.alpha * shown.view(-1, 1, 1, 1)).permute(0, 2, 3, 1)
        image[index] = image[index] * (1 - alpha) + self.pixels.permute(0, 2, 3, 1) * alpha
        return image.permute(0, 3, 1, 2).contiguous()

    def mask(self, side: int) -> Tensor:
        """(N, 1, H, W) bool: the squares in which the objects are."""
        square = torch.ones_like(self.alpha)
        patches = replace(self, pixels=square, alpha=square)
        return patches.paste(torch.zeros(len(square), 1, side, side), torch.ones(len(square))) > 0


@dataclass(frozen=True)
class Scenes:
    """Images in their parts. The label of each is its causal object's class.

    `several`: the answer says of every class whether it is there, in the causal object or in a distractor.
    """

    background: Tensor  # (N, C, H, W)
    causal: Patches
    distractors: tuple[Patches, ...]
    several: bool = False
    cue: Patches | None = None  # what says which object is the causal one, where the object itself does not

    def __len__(self) -> int:
        return len(self.background)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        distractors = tuple(d[index] for d in self.distractors)
        cue = None if self.cue is None else self.cue[index]
        return Scenes(self.background[index], self.causal[index], distractors, self.several, cue)

    @property
    def labels(self) -> Tensor:
        return self.causal.labels

    def distractor_labels(self) -> Tensor:
        """(N, D)."""
        return torch.stack([d.labels for d in self.distractors], 1)

    @property
    def n_distractors(self) -> int:
        return len(self.distractors)

    def present(self, n_classes: int, causal: Tensor, distractors: Tensor) -> Tensor:
        """(N, K), 1 for the classes of the objects that are shown: masks (N,) and (N, D), as in `render`."""
        shown = torch.cat([causal[:, None], distractors], 1)  # (N, 1 + D)
        labels = torch.cat([self.labels[:, None], self.distractor_labels()], 1)
        return torch.zeros(len(self), n_classes).scatter_reduce(1, labels, shown, "amax")

    def with_distractors_of(self, others: Scenes) -> Scenes:
        """The distractors of as many other scenes, at the places of these."""
        pairs = zip(others.distractors, self.distractors, strict=True)
        return replace(self, distractors=tuple(theirs.moved_to(own) for theirs, own in pairs))

    def with_background_of(self, others: Scenes) -> Scenes:
        return replace(self, background=others.background)

    def with_causal_of(self, others: Scenes) -> Scenes:
        """The causal objects of as many other scenes, at the places of these."""
        return replace(self, causal=others.causal.moved_to(self.causal))

    def render(self, causal: Tensor | None = None, distractors: Tensor | None = None) -> Tensor:
        """The images (N, C, H, W); objects are left out where `causal` (N,) or `distractors` (N, D) is 0."""
        causal = torch.ones(len(self)) if causal is None else causal
        distractors = torch.ones(len(self), self.n_distractors) if distractors is None else distractors
        x = self.background if self.cue is None else self.cue.paste(self.background, torch.ones(len(self)))
        for patches, shown in zip(self.distractors, distractors.unbind(1), strict=True):
            x = patches.paste(x, shown)
        return self.causal.paste(x, causal)

    def masks(self) -> tuple[Tensor, Tensor]:
        """The pixels (N, 1, H, W) of the causal object, and those of all distractors."""
        side = self.background.shape[-1]
        return self.causal.mask(side), torch.stack([d.mask(side) for d in self.distractors]).any(0)


@dataclass(frozen=True)
class Rows:
    """Rows of a table, and which columns of each row its class depends on."""

    values: Tensor  # (N, F)
    causal: Tensor  # (N, F) bool
    labels: Tensor  # (N,)
    several = False
    n_distractors = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.values[index], self.causal[index], self.labels[index])

    def with_distractors_of(self, others: Rows) -> Rows:
        """All columns that the class does not depend on, of as many other rows."""
        return replace(self, values=torch.where(self.causal, self.values, others.values))

    def with_background_of(self, others: Rows) -> Rows:
        """A table has none."""
        return self

    def with_causal_of(self, others: Rows) -> Rows:
        """The columns that the class of as many other rows depends on, and their labels."""
        return Rows(torch.where(others.causal, others.values, self.values), others.causal, others.labels)

    def render(self, causal: Tensor | None = None, distractors: Tensor | None = None) -> Tensor:
        """The table (N, F); columns that are left out, where `causal` (N,) or `distractors` (N, 1) is 0, are 0."""
        shown = torch.ones_like(self.values)
        if causal is not None and distractors is not None:
            shown = torch.where(self.causal, causal[:, None], distractors)
        return self.values * shown

    def masks(self) -> tuple[Tensor, Tensor]:
        """The columns (N, F) that the class depends on, and the others."""
        return self.causal, ~self.causal


def place_apart(n: int, side: int, patch: int, gap: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Corners (n, 2) of two squares in each image, at random places with `gap` pixels or more between them."""
    corners = torch.empty(n, 4, dtype=torch.long)
    open_ = torch.arange(n)
    while len(open_):
        drawn = torch.randint(0, side - patch + 1, (len(open_), 4), generator=generator)
        apart = (drawn[:, :2] - drawn[:, 2:]).abs().amax(1) >= patch + gap
        corners[open_[apart]] = drawn[apart]
        open_ = open_[~apart]
    return corners[:, :2], corners[:, 2:]


def place_in_cells(n: int, side: int, patch: int, grid: tuple[int, int], generator: torch.Generator) -> list[Tensor]:
    """Corners (n, 2) of one square in each cell of a grid, the cells of an image in random order, with some jitter."""
    rows, columns = grid
    order = torch.rand(n, rows * columns, generator=generator).argsort(1)  # (n, cells)
    height, width = side // rows, side // columns
    corner = torch.stack([order // columns * height, order % columns * width], 2)  # (n, cells, 2)
    slack = torch.tensor([height - patch, width - patch])
    reach = (slack / 2).clamp(max=side // 10)
    jitter = (torch.rand(corner.shape, generator=generator) * (reach + 1)).long() + (slack - reach).long() // 2
    return list((corner + torch.minimum(jitter, slack)).unbind(1))
