"""Concepts of digits: a segmenter of bright strokes on a dark ground, without a model and without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

DIRECTIONS = ("horizontal stroke", "falling stroke", "vertical stroke", "rising stroke")  # by eighths of a turn
NAMES = ("ink", *DIRECTIONS, "hole", "stroke end", "upper left", "upper right", "lower left", "lower right")
REFERENCE_SIDE_PIXELS = 28  # pixels of the image that the lengths below are meant for
STRUCTURE_TENSOR_BLUR_STD_PIXELS, STROKE_END_RADIUS_PIXELS = 1.5, 2  # pixels
FOUR_NEIGHBORS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)


@dataclass(frozen=True)
class DigitConcepts:
    """A segmenter of digits: ink, strokes by direction, holes, stroke ends, and the ink of each quadrant.

    For `dissect` and `causal_units`; it may be called by itself. The four directions (quarter turns apart in the
    double angle: 0, 45, 90 and 135 degrees) share the ink among them, and so do the four quadrants.

    Args:
        level: Brightness, in [0, 1], from which a pixel is ink.

    Example:
        >>> import unboxed as ub
        >>> x, _ = ub.data.digits("test").first(4)
        >>> masks = ub.concepts.digit_concepts(x)
        >>> masks.shape, masks.dtype, ub.concepts.digit_concepts.names[:2]
        (torch.Size([11, 4, 28, 28]), torch.bool, ('ink', 'horizontal stroke'))
    """

    level: float = 0.5

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the concepts, in the order of the masks."""
        return NAMES

    def __call__(self, images: Tensor) -> Tensor:
        """Masks (11, N, H, W) of images (N, C, H, W) in [0, 1]; several channels count by their mean."""
        if images.ndim != 4:
            raise InputError(f"digit_concepts takes images (N, C, H, W); got shape {tuple(images.shape)}")
        gray = images.detach().double().mean(1)  # (N, H, W)
        ink = gray >= self.level
        on_cpu = ink.cpu().numpy()
        rest = [torch.from_numpy(part(on_cpu)).to(ink.device) for part in (holes, stroke_ends)]
        return torch.stack([ink, *(ink & stroke_directions(gray)), *rest, *(ink & quadrants(ink))])


digit_concepts = DigitConcepts()


def stroke_directions(gray: Tensor) -> Tensor:
    """Masks (4, N, H, W) by the direction of the stroke at each pixel of images (N, H, W): `DIRECTIONS`.

    The direction is that of least change: the eigenvector of the smoothed structure tensor with the smaller eigenvalue.
    """
    std = STRUCTURE_TENSOR_BLUR_STD_PIXELS * min(gray.shape[-2:]) / REFERENCE_SIDE_PIXELS
    padded = F.pad(gray[:, None], [1, 1, 1, 1], mode="replicate")[:, 0]
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    rows, columns = (_blur_matrix(n, std, gray) for n in gray.shape[-2:])
    xy, difference = (rows @ h @ columns for h in (dx * dy, dy * dy - dx * dx))
    double_angle = torch.atan2(-2 * xy, difference)  # of the stroke, twice; y points down: half a turn is vertical
    nearest = (double_angle / (math.pi / 2)).round().long() % len(DIRECTIONS)
    return torch.stack([nearest == k for k in range(len(DIRECTIONS))])


def _blur_matrix(n: int, std: float, like: Tensor) -> Tensor:
    """The band matrix (n, n) of a Gaussian of this standard deviation in pixels."""
    at = torch.arange(n, device=like.device, dtype=like.dtype)
    return torch.exp(-(((at[:, None] - at) / std) ** 2) / 2)


def holes(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The ground (N, H, W) that ink encloses: no path over 4-neighbors leads from it to the border."""
    from scipy.ndimage import binary_fill_holes

    filled: NDArray[np.bool_] = binary_fill_holes(ink, FOUR_NEIGHBORS[None])  # each image by itself
    return filled & ~ink


def stroke_ends(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The ink (N, H, W) near the ends of its skeleton: pixels of it with one neighbor of eight."""
    from scipy.ndimage import convolve, maximum_filter
    from skimage.morphology import skeletonize

    n, height, width = ink.shape
    apart = np.zeros((n, height + 2, width + 2), dtype=bool)  # images that do not touch: one call for all of them
    apart[:, 1:-1, 1:-1] = ink
    skeleton: NDArray[np.bool_] = skeletonize(apart.reshape(-1, width + 2))  # type: ignore[no-untyped-call]
    skeleton = skeleton.reshape(apart.shape)[:, 1:-1, 1:-1]
    neighbors = convolve(skeleton.astype(np.int8), np.ones((1, 3, 3), dtype=np.int8), mode="constant")
    radius = max(1, round(STROKE_END_RADIUS_PIXELS * min(height, width) / REFERENCE_SIDE_PIXELS))
    near = maximum_filter(skeleton & (neighbors == 2), size=(1, 2 * radius + 1, 2 * radius + 1), mode="constant")
    return np.asarray(near) & ink


def quadrants(ink: Tensor) -> Tensor:
    """Masks (4, 1, H, W) of the quadrants of images (N, H, W), row by row."""
    height, width = ink.shape[-2:]
    upper = torch.arange(height, device=ink.device)[:, None] < height / 2 - 0.25  # the middle row of odd sides is lower
    left = torch.arange(width, device=ink.device)[None] < width / 2 - 0.25
    return torch.stack([upper & left, upper & ~left, ~upper & left, ~upper & ~left])[:, None]
