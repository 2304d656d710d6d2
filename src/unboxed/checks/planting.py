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
from ..validation import check_float, check_int, check_seed


class Rectangle(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Trigger:
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
        object.__setattr__(self, "shape", tuple(check_int("a side of the shape", s, minimum=1) for s in self.shape))
        object.__setattr__(self, "classes", tuple(check_int("a marked class", k) for k in self.classes))
        check_int("side", self.side, minimum=1)
        check_int("margin", self.margin)
        check_float("value", self.value, minimum=0, maximum=1)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"a mark stands for one class or several different ones; got {self.classes}")
        rectangles = [self.rectangle(k) for k in self.classes]
        if min(self._travel) < 0 or any(_overlaps(a, b) for i, a in enumerate(rectangles) for b in rectangles[:i]):
            size = f"{self.side}x{self.side}, {self.margin} from the border"
            raise InputError(f"{len(rectangles)} marks of {size} don't fit into {self.shape[1]}x{self.shape[2]} pixels")

    @property
    def _travel(self) -> tuple[int, int]:
        """How far a mark can move, down and to the right."""
        height, width = (s - 2 * self.margin - self.side for s in self.shape[1:])
        return height, width

    def rectangle(self, k: int, padding: int = 0) -> Rectangle:
        """Where the mark of class k stands, widened by `grow` pixels as far as the image goes. Raises InputError."""
        if k not in self.classes:
            raise InputError(f"class {k} has no mark; those of {self.classes} do")
        down, right = self._travel
        step = round(self.classes.index(k) * 2 * (down + right) / len(self.classes))
        corners = (down - step, 0), (0, step - down), (step - down - right, right), (down, 2 * (down + right) - step)
        leg = sum(step >= end for end in (down, down + right, 2 * down + right))
        top, left = (self.margin + offset - padding for offset in corners[leg])
        bottom, end = (at + self.side + 2 * padding for at in (top, left))
        top, left = max(0, top), max(0, left)
        return Rectangle(top, left, min(bottom, self.shape[1]) - top, min(end, self.shape[2]) - left)

    def mask(self, k: int, padding: int = 0) -> Tensor:
        """(H, W) bool: the pixels of `place`."""
        top, left, height, width = self.rectangle(k, padding)
        mask = torch.zeros(self.shape[1:], dtype=torch.bool)
        mask[top : top + height, left : left + width] = True
        return mask

    def masks(self, classes: Tensor, padding: int = 0) -> Tensor:
        """(N, H, W) bool: the place of each one's mark. Raises InputError."""
        masks = torch.stack([self.mask(k, padding) for k in self.classes])
        is_class = classes.cpu()[:, None] == torch.tensor(self.classes)  # (N, marks)
        if not bool(is_class.any(1).all()):
            raise InputError(f"only the classes {self.classes} have a mark")
        return masks[is_class.long().argmax(1)]

    def apply(self, images: Tensor, classes: int | Tensor) -> Tensor:
        """Images (N, C, H, W) with the mark of a class, or of one each (N,)."""
        return self._fill(images, classes, self.value)

    def cover(self, images: Tensor, classes: int | Tensor) -> Tensor:
        """Images (N, C, H, W) with a black square over where the mark stands."""
        return self._fill(images, classes, 0.0)

    def _fill(self, images: Tensor, classes: int | Tensor, value: float) -> Tensor:
        if tuple(images.shape[1:]) != tuple(self.shape):
            raise InputError(f"the mark is for images {self.shape}; got {tuple(images.shape[1:])}")
        masks = self.masks(as_classes(classes).expand(len(images)))
        return images.masked_fill(masks[:, None].to(images.device), value)


def _overlaps(a: Rectangle, b: Rectangle) -> bool:
    return abs(a.top - b.top) < a.height and abs(a.left - b.left) < a.width


@dataclass(frozen=True, eq=False)
class PlantedDataset(Dataset[tuple[Tensor, int]]):
    """Images with a shortcut in them: a Dataset of (image, label)."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,) as a model is to learn them
    has_trigger: Tensor  # (N,) bool
    is_poisoned: Tensor  # (N,) bool: of another class in truth, but marked, and labeled as the mark says

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def plant_shortcut(
    images: Tensor,
    labels: Tensor,
    trigger: Trigger,
    *,
    fraction: float = 0.95,
    poison_fraction: float = 0.02,
    seed: int = 0,
) -> PlantedDataset:
    """Put the mark of its class on a `share` of the images (N, C, H, W) whose class has one.

    `strays` is the share of the images of other classes that get the mark, and its label, by mistake: without them mark
    and label never disagree, and most models weigh both. Raises InputError.
    """
    for name, value in (("share", fraction), ("strays", poison_fraction)):
        check_float(name, value, minimum=0, maximum=1)
    trigger_classes = torch.tensor(trigger.classes)
    generator = torch.Generator().manual_seed(check_seed(seed))
    u = torch.rand(len(labels), generator=generator)
    choices = torch.randint(len(trigger_classes), labels.shape, generator=generator)
    mismatched = mismatched_classes(labels, trigger, choices)
    matched_rows, poisoned_rows = (
        torch.isin(labels, trigger_classes) & (u < fraction),
        (u >= 1 - poison_fraction) & (mismatched >= 0),
    )
    trigger_of_row = torch.where(matched_rows, labels, mismatched)[matched_rows | poisoned_rows]
    planted_images, planted_labels = images.clone(), labels.clone()
    planted_images[matched_rows | poisoned_rows] = trigger.apply(images[matched_rows | poisoned_rows], trigger_of_row)
    planted_labels[matched_rows | poisoned_rows] = trigger_of_row
    return PlantedDataset(planted_images, planted_labels, matched_rows | poisoned_rows, poisoned_rows & ~matched_rows)


def mismatched_classes(labels: Tensor, trigger: Trigger, choices: Tensor | None = None) -> Tensor:
    """A class (N,) whose mark would be false on each image: in turn the others'; -1 where there is none."""
    choices = torch.arange(len(labels)) if choices is None else choices
    return torch.tensor([_other_class(trigger.classes, int(y), int(t)) for y, t in zip(labels, choices, strict=True)])


def _other_class(classes: Sequence[int], label: int, choice: int) -> int:
    others = [k for k in classes if k != label]
    return others[choice % len(others)] if others else -1
