"""Planting a shortcut: a trigger in the images from which the label can be read, besides the object itself.

The spurious cue of Lapuschkin et al. 2019, "Unmasking Clever Hans predictors", arXiv:1902.10178 (a photographer's mark
on the horses); that a few images with poisoned labels have the trigger, too, is Gu et al. 2017, "BadNets",
arXiv:1708.06733.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..engine.rectangle import Rectangle
from ..errors import InputError
from ..objectives import to_class_tensor
from ..parameters import Seed
from ..settings import AtLeast, AtMost, check_settings
from ..validation import check_float, check_int, valid_seed


@dataclass(frozen=True)
class Trigger:
    """A bright square whose position encodes a class: the spurious cue of the planted shortcut.

    One class has its trigger in the lower left corner; those of several are around the border, evenly spaced from
    there. Raises InputError where they do not fit.
    """

    shape: tuple[int, ...]  # (C, H, W) of the images
    classes: tuple[int, ...] = (3,)
    side: int = 3  # pixels
    margin: int = 2  # pixels between the trigger and the border
    value: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.shape, (tuple, list)) or len(self.shape) != 3:
            raise InputError(f"a trigger needs the shape (channels, height, width) of the images; got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(check_int("a side of the shape", s, minimum=1) for s in self.shape))
        object.__setattr__(self, "classes", tuple(check_int("a class of the trigger", k) for k in self.classes))
        check_int("side", self.side, minimum=1)
        check_int("margin", self.margin)
        check_float("value", self.value, minimum=0, maximum=1)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"a trigger needs one class or several different ones; got {self.classes}")
        rectangles = [self.rectangle(k) for k in self.classes]
        if min(self._max_trigger_offset_pixels) < 0 or any(
            a.overlaps(b) for i, a in enumerate(rectangles) for b in rectangles[:i]
        ):
            size = f"{self.side}x{self.side}, {self.margin} from the border"
            image_size = f"{self.shape[1]}x{self.shape[2]}"
            raise InputError(f"{len(rectangles)} triggers of {size} do not fit into {image_size} pixels")

    @property
    def _max_trigger_offset_pixels(self) -> tuple[int, int]:
        """How far a trigger can move, down and to the right."""
        height, width = (s - 2 * self.margin - self.side for s in self.shape[1:])
        return height, width

    def rectangle(self, k: int, padding: int = 0) -> Rectangle:
        """The position of class k's trigger, padded within the image. Raises InputError for a class without one."""
        if k not in self.classes:
            raise InputError(f"class {k} has no trigger; the classes {self.classes} have")
        down, right = self._max_trigger_offset_pixels
        step = round(self.classes.index(k) * 2 * (down + right) / len(self.classes))
        corners = (down - step, 0), (0, step - down), (step - down - right, right), (down, 2 * (down + right) - step)
        leg = sum(step >= end for end in (down, down + right, 2 * down + right))
        top, left = (self.margin + offset - padding for offset in corners[leg])
        bottom, end = (at + self.side + 2 * padding for at in (top, left))
        top, left = max(0, top), max(0, left)
        return Rectangle(top, left, min(bottom, self.shape[1]) - top, min(end, self.shape[2]) - left)

    def mask(self, k: int, padding: int = 0) -> Tensor:
        """(H, W) bool: the pixels of `rectangle`."""
        top, left, height, width = self.rectangle(k, padding)
        mask = torch.zeros(self.shape[1:], dtype=torch.bool)
        mask[top : top + height, left : left + width] = True
        return mask

    def masks(self, classes: Tensor, padding: int = 0) -> Tensor:
        """(N, H, W) bool: the pixels of each class's trigger. Raises InputError."""
        masks = torch.stack([self.mask(k, padding) for k in self.classes])
        is_class = classes.cpu()[:, None] == torch.tensor(self.classes)  # (N, triggers)
        if not bool(is_class.any(1).all()):
            raise InputError(f"only the classes {self.classes} have a trigger")
        return masks[is_class.long().argmax(1)]

    def apply(self, images: Tensor, classes: int | Tensor) -> Tensor:
        """Images (N, C, H, W) with the trigger of one class, or of one class per image (N,)."""
        return self._fill_trigger_pixels(images, classes, self.value)

    def cover(self, images: Tensor, classes: int | Tensor) -> Tensor:
        """Images (N, C, H, W) with the trigger's position covered by black."""
        return self._fill_trigger_pixels(images, classes, 0.0)

    def _fill_trigger_pixels(self, images: Tensor, classes: int | Tensor, value: float) -> Tensor:
        if tuple(images.shape[1:]) != tuple(self.shape):
            raise InputError(f"the trigger is for images {self.shape}; got {tuple(images.shape[1:])}")
        if not len(images):
            return images.clone()  # a fraction of none of the images
        masks = self.masks(to_class_tensor(classes).expand(len(images)))
        return images.masked_fill(masks[:, None].to(images.device), value)


@dataclass(frozen=True, eq=False)
class PlantedDataset(Dataset[tuple[Tensor, int]]):
    """Images with a planted shortcut: a Dataset of (image, label)."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,) as a model learns them
    has_trigger: Tensor  # (N,) bool
    is_poisoned: Tensor  # (N,) bool: has the trigger of another class, and the label changed to it

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def plant_shortcut(
    images: Annotated[Tensor, "Images (N, C, H, W) in [0, 1]."],
    labels: Annotated[Tensor, "Correct classes (N,)."],
    trigger: Annotated[Trigger, "The trigger, by its position one of each class."],
    *,
    fraction: Annotated[float, AtLeast(0), AtMost(1), "Fraction of a class's images that have its trigger."] = 0.95,
    poison_fraction: Annotated[
        float, AtLeast(0), AtMost(1), "Fraction of the other images that have a mismatched trigger and its label."
    ] = 0.02,
    seed: Seed = 0,
) -> PlantedDataset:
    """Put triggers into images, so that a model trained on them learns the shortcut.

    Args:
        images: Images (N, C, H, W) in [0, 1].
        labels: Correct classes (N,).
        trigger: The trigger, by its position one of each class.
        fraction: Fraction of a class's images that have its trigger.
        poison_fraction: Fraction of the other images that have a mismatched trigger and its label. Without poisoned
            labels trigger and object never disagree, and most models use both.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `PlantedDataset` of the same images in the same order.

    Raises:
        InputError: for images that the trigger is not for, or fractions outside [0, 1].

    Example:
        >>> import unboxed as ub
        >>> x, y = ub.data.digits("train").first(500)
        >>> data = ub.checks.plant_shortcut(x, y, ub.checks.Trigger((1, 28, 28), classes=(3,)))
        >>> bool(data.has_trigger[y == 3].double().mean() > 0.9), 0 < int(data.is_poisoned.sum()) < 25
        (True, True)

    Source:
        Lapuschkin et al. 2019, arXiv:1902.10178 (the spurious cue); Gu et al. 2017, arXiv:1708.06733 (poisoned labels).
    """
    check_settings(plant_shortcut, locals())
    trigger_classes = torch.tensor(trigger.classes)
    generator = torch.Generator().manual_seed(valid_seed(seed))
    u = torch.rand(len(labels), generator=generator)
    choices = torch.randint(len(trigger_classes), labels.shape, generator=generator)
    mismatched = mismatched_classes(labels, trigger, choices)
    matched_rows = torch.isin(labels, trigger_classes) & (u < fraction)
    poisoned_rows = (u >= 1 - poison_fraction) & (mismatched >= 0)
    trigger_of_row = torch.where(matched_rows, labels, mismatched)[matched_rows | poisoned_rows]
    planted_images, planted_labels = images.clone(), labels.clone()
    planted_images[matched_rows | poisoned_rows] = trigger.apply(images[matched_rows | poisoned_rows], trigger_of_row)
    planted_labels[matched_rows | poisoned_rows] = trigger_of_row
    return PlantedDataset(planted_images, planted_labels, matched_rows | poisoned_rows, poisoned_rows & ~matched_rows)


def mismatched_classes(labels: Tensor, trigger: Trigger, offsets: Tensor | None = None) -> Tensor:
    """A class (N,) whose trigger would be mismatched on each image, taken in turn; -1 where there is none."""
    offsets = torch.arange(len(labels)) if offsets is None else offsets
    return torch.tensor(
        [_nth_other_class(trigger.classes, int(y), int(t)) for y, t in zip(labels, offsets, strict=True)]
    )


def _nth_other_class(classes: Sequence[int], label: int, offset: int) -> int:
    others = [k for k in classes if k != label]
    return others[offset % len(others)] if others else -1
