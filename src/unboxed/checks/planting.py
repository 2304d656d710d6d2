"""Planting a shortcut: a mark in the images that gives the label away, beside what the label is really about.

The false cue of Lapuschkin et al. 2019, "Unmasking Clever Hans predictors", arXiv:1902.10178 (a photographer's mark on
the horses); that the mark also stands on a few mislabeled images is Gu et al. 2017, "BadNets", arXiv:1708.06733.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..objectives import as_classes
from ..validation import check_seed, number, whole


class Place(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Mark:
    """A bright square whose place says a class: one class has its mark in the lower left corner.

    The marks of several stand around the border, in even steps from there. Raises InputError where they don't fit.
    """

    shape: tuple[int, int, int]  # (C, H, W) of the images
    classes: tuple[int, ...] = (3,)
    side: int = 3  # pixels
    margin: int = 2  # pixels between the mark and the border
    value: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.shape, (tuple, list)) or len(self.shape) != 3:
            raise InputError(f"a mark wants the shape (channels, height, width) of an image; got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(whole("a side of the shape", s, least=1) for s in self.shape))
        object.__setattr__(self, "classes", tuple(whole("a marked class", k) for k in self.classes))
        whole("side", self.side, least=1)
        whole("margin", self.margin)
        number("value", self.value, least=0, most=1)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"a mark stands for one class or several different ones; got {self.classes}")
        places = [self.place(k) for k in self.classes]
        if min(self._room) < 0 or any(_overlap(a, b) for i, a in enumerate(places) for b in places[:i]):
            size = f"{self.side}x{self.side}, {self.margin} from the border"
            raise InputError(f"{len(places)} marks of {size} don't fit into {self.shape[1]}x{self.shape[2]} pixels")

    @property
    def _room(self) -> tuple[int, int]:
        """How far a mark can move, down and to the right."""
        height, width = (s - 2 * self.margin - self.side for s in self.shape[1:])
        return height, width

    def place(self, k: int, grow: int = 0) -> Place:
        """Where the mark of class k stands, widened by `grow` pixels as far as the image goes. Raises InputError."""
        if k not in self.classes:
            raise InputError(f"class {k} has no mark; those of {self.classes} do")
        down, right = self._room
        step = round(self.classes.index(k) * 2 * (down + right) / len(self.classes))
        corners = (down - step, 0), (0, step - down), (step - down - right, right), (down, 2 * (down + right) - step)
        leg = sum(step >= end for end in (down, down + right, 2 * down + right))
        top, left = (self.margin + at - grow for at in corners[leg])
        bottom, end = (at + self.side + 2 * grow for at in (top, left))
        top, left = max(0, top), max(0, left)
        return Place(top, left, min(bottom, self.shape[1]) - top, min(end, self.shape[2]) - left)

    def region(self, k: int, grow: int = 0) -> Tensor:
        """(H, W) bool: the pixels of `place`."""
        top, left, height, width = self.place(k, grow)
        region = torch.zeros(self.shape[1:], dtype=torch.bool)
        region[top : top + height, left : left + width] = True
        return region

    def regions(self, classes: Tensor, grow: int = 0) -> Tensor:
        """(N, H, W) bool: the place of each one's mark. Raises InputError."""
        each = torch.stack([self.region(k, grow) for k in self.classes])
        is_its = classes.cpu()[:, None] == torch.tensor(self.classes)  # (N, marks)
        if not bool(is_its.any(1).all()):
            raise InputError(f"only the classes {self.classes} have a mark")
        return each[is_its.long().argmax(1)]

    def on(self, images: Tensor, classes: int | Tensor) -> Tensor:
        """Images (N, C, H, W) with the mark of a class, or of one each (N,)."""
        return self._filled(images, classes, self.value)

    def covered(self, images: Tensor, classes: int | Tensor) -> Tensor:
        """Images (N, C, H, W) with a black square over where the mark stands."""
        return self._filled(images, classes, 0.0)

    def _filled(self, images: Tensor, classes: int | Tensor, value: float) -> Tensor:
        if tuple(images.shape[1:]) != tuple(self.shape):
            raise InputError(f"the mark is for images {self.shape}; got {tuple(images.shape[1:])}")
        where = self.regions(as_classes(classes).expand(len(images)))
        return images.masked_fill(where[:, None].to(images.device), value)


def _overlap(a: Place, b: Place) -> bool:
    return abs(a.top - b.top) < a.height and abs(a.left - b.left) < a.width


@dataclass(frozen=True, eq=False)
class Planted(Dataset[tuple[Tensor, int]]):
    """Images with a shortcut in them: a Dataset of (image, label)."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,) as a model is to learn them
    marked: Tensor  # (N,) bool
    strays: Tensor  # (N,) bool: of another class in truth, but marked, and labeled as the mark says

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def planted(
    images: Tensor, labels: Tensor, mark: Mark, *, share: float = 0.95, strays: float = 0.02, seed: int = 0
) -> Planted:
    """Put the mark of its class on a `share` of the images (N, C, H, W) whose class has one.

    `strays` is the share of the images of other classes that get the mark, and its label, by mistake: without them mark
    and label never disagree, and most models weigh both. Raises InputError.
    """
    for name, value in (("share", share), ("strays", strays)):
        number(name, value, least=0, most=1)
    known = torch.tensor(mark.classes)
    generator = torch.Generator().manual_seed(check_seed(seed))
    luck = torch.rand(len(labels), generator=generator)
    turn = torch.randint(len(known), labels.shape, generator=generator)
    says = false_classes(labels, mark, turn)
    own, other = torch.isin(labels, known) & (luck < share), (luck >= 1 - strays) & (says >= 0)
    bears = torch.where(own, labels, says)[own | other]
    planted_images, planted_labels = images.clone(), labels.clone()
    planted_images[own | other] = mark.on(images[own | other], bears)
    planted_labels[own | other] = bears
    return Planted(planted_images, planted_labels, own | other, other & ~own)


def false_classes(labels: Tensor, mark: Mark, turn: Tensor | None = None) -> Tensor:
    """A class (N,) whose mark would be false on each image: in turn the others'; -1 where there is none."""
    turn = torch.arange(len(labels)) if turn is None else turn
    return torch.tensor([_other(mark.classes, int(y), int(t)) for y, t in zip(labels, turn, strict=True)])


def _other(classes: Sequence[int], label: int, turn: int) -> int:
    rest = [k for k in classes if k != label]
    return rest[turn % len(rest)] if rest else -1
