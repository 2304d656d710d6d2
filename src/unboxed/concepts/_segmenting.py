"""Segmenters: functions from images to the masks of concepts, and what they gave, checked and packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..settings import ValueRole
from .digit_concepts import digit_concepts

Segmenter = Annotated[
    Callable[[Tensor], Tensor] | None,
    ValueRole("object"),
    "Function from images (N, C, H, W) in [0, 1] to masks (K, N, H, W); its `names` name the concepts.",
]
N_TRIAL_IMAGES = 2  # images that a segmenter is tried on


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmenter with the names of its concepts."""

    segment: Callable[[Tensor], Tensor]
    names: tuple[str, ...]

    @classmethod
    def of(cls, segmenter: Callable[[Tensor], Tensor] | None, images: Tensor) -> Segmentation:
        """A segmenter, tried on some images (N, C, H, W). Raises InputError where it gives no masks."""
        if segmenter is None and images.shape[1] != 1:
            raise InputError(
                f"no concepts are known for images with {images.shape[1]} channels; give segmenter=, a function from "
                "images (N, C, H, W) to masks (K, N, H, W)"
            )
        segment = digit_concepts if segmenter is None else segmenter
        if not callable(segment):
            raise InputError(f"segmenter must be a function from images to masks; got {type(segment).__name__}")
        n_concepts = len(_checked_masks(segment(images[:N_TRIAL_IMAGES]), images[:N_TRIAL_IMAGES]))
        return cls(segment, _concept_names(getattr(segment, "names", None), n_concepts))

    def masks(self, images: Tensor) -> Tensor:
        """Masks (K, N, H, W) bool of images (N, C, H, W). Raises InputError where they do not fit."""
        return _checked_masks(self.segment(images), images, len(self.names))

    def index(self, concept: int | str) -> int:
        """The index of a concept given by its name or index. Raises InputError."""
        if concept in self.names:
            return self.names.index(str(concept))
        if isinstance(concept, int) and not isinstance(concept, bool) and 0 <= concept < len(self.names):
            return concept
        raise InputError(f"there is no concept {concept!r}; the segmenter has {', '.join(map(repr, self.names))}")


def _concept_names(given: Any, n_concepts: int) -> tuple[str, ...]:
    names = tuple(f"concept {k}" for k in range(n_concepts)) if given is None else tuple(map(str, given))
    if len(names) != n_concepts or len({*names}) != n_concepts:
        raise InputError(f"the segmenter gives {n_concepts} masks per image, and its names are {list(names)}")
    return names


def _checked_masks(masks: Any, images: Tensor, n_concepts: int | None = None) -> Tensor:
    """Masks (K, N, H, W) as bool: numbers are in [0, 1], and half or more is inside. Raises InputError."""
    n, _, height, width = images.shape
    masks = torch.as_tensor(masks) if isinstance(masks, np.ndarray) else masks
    wanted = f"wanted ({n_concepts or 'K'}, {n}, {height}, {width}), a mask per concept, image and pixel"
    if not isinstance(masks, Tensor):
        raise InputError(f"the segmenter gives {type(masks).__name__}; {wanted}")
    if masks.ndim != 4 or masks.shape[1:] != (n, height, width) or len(masks) != (n_concepts or len(masks) or 1):
        raise InputError(f"the segmenter gives masks of shape {tuple(masks.shape)} for {n} images; {wanted}")
    masks = masks.detach().to(images.device)
    if masks.is_complex() or bool((masks < 0).any()) or not bool((masks <= 1).all()):
        raise InputError("the segmenter's masks must be True and False, or numbers in [0, 1]")
    inside: Tensor = masks if masks.dtype == torch.bool else masks >= 0.5
    return inside


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """The masks of all examples, eight pixels to a byte."""

    bits: NDArray[np.uint8]  # (N, K, ceil(H * W / 8))
    size: tuple[int, int]
    areas: Tensor  # (K,) pixels of each concept in all examples

    @classmethod
    def of(cls, masks: Tensor) -> PackedMasks:
        """Of masks (K, n, H, W)."""
        bits = np.packbits(masks.movedim(1, 0).flatten(2).cpu().numpy(), axis=2)
        return cls(bits, (masks.shape[2], masks.shape[3]), masks.sum((1, 2, 3)).cpu())

    @classmethod
    def joined(cls, parts: list[PackedMasks]) -> PackedMasks:
        """Of all examples."""
        return cls(np.concatenate([p.bits for p in parts]), parts[0].size, torch.stack([p.areas for p in parts]).sum(0))

    def rows(self, rows: slice | Tensor) -> Tensor:
        """Masks (n, K, H * W) of some of the examples."""
        selected = self.bits[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return torch.from_numpy(np.unpackbits(selected, axis=2, count=self.size[0] * self.size[1])).bool()


def bright_and_left_masks(images: Tensor) -> Tensor:
    """Masks (2, N, H, W) of bright pixels and of the left half, for the examples of cards."""
    bright = images.mean(1) > 0.5
    left = torch.zeros_like(bright)
    left[..., : images.shape[-1] // 2] = True
    return torch.stack([bright, left])
