"""Where a patch may lie on an image: the rules, and one draw of them for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..validation import check_float

SHAPES = ("square", "circle")


@dataclass(frozen=True)
class PatchPlacement:
    """A patch that covers a share `area` of the image, wholly inside it, anywhere, a little turned and scaled.

    One that is neither turned nor scaled lies on whole pixels, and shows its own as they are.
    """

    area: float = 0.1
    shape: str = "square"
    max_rotation: float = 22.5  # degrees, at most, to either side
    scale_range: float = 0.1  # the side is up to so much of itself smaller or larger

    def __post_init__(self) -> None:
        check_float("area", self.area, above=0, below=1)
        if self.shape not in SHAPES:
            raise InputError(f"shape is one of {', '.join(SHAPES)}; got {self.shape!r}")
        check_float("rotation", self.max_rotation, minimum=0, maximum=180)
        check_float("scale", self.scale_range, minimum=0, below=1)

    @property
    def is_pixel_aligned(self) -> bool:
        return self.max_rotation == 0 and self.scale_range == 0

    def radius(self, height: int, width: int) -> float:
        """Of the circle, or half the square's side, in pixels, at scale 1."""
        pixels = self.area * height * width
        radius = math.sqrt(pixels / math.pi) if self.shape == "circle" else math.sqrt(pixels) / 2
        return max(1, round(2 * radius)) / 2 if self.is_pixel_aligned else radius

    def patch_side(self, height: int, width: int) -> int:
        """How many pixels the patch itself has a side. Raises InputError where it would not fit into the image."""
        radius = self.radius(height, width)
        max_radius = radius * (1 + self.scale_range) * self._rotation_reach()
        if (overflow := 2 * max_radius / min(height, width)) > 1:
            message = f"a {self.shape} of area {self.area:g} does not fit into {height}x{width} however it is turned"
            raise InputError(f"{message} and scaled: make the area {self.area / overflow**2:.2g} or less")
        return math.ceil(2 * radius - 1e-9)

    def _rotation_reach(self) -> float:
        """How much farther than upright a square reaches when it is turned the worst way."""
        angle = math.radians(min(self.max_rotation, 45))
        return 1.0 if self.shape == "circle" else math.cos(angle) + math.sin(angle)

    def is_inside(self, u_across: Tensor, u_down: Tensor) -> Tensor:
        """Whether points, in units of the radius from the patch's center, lie on it."""
        if self.shape == "circle":
            return u_across**2 + u_down**2 <= 1
        return torch.maximum(u_across.abs(), u_down.abs()) <= 1

    def mask(self, n_pixels: int, device: torch.device) -> Tensor:
        """Which of the patch's own pixels (side, side) are part of it, by their centers."""
        centers = (2 * torch.arange(n_pixels, device=device, dtype=torch.float64) + 1 - n_pixels) / n_pixels
        return self.is_inside(centers[None, :], centers[:, None])

    def paste(self, patch: Tensor, x: Tensor, uniform: Tensor) -> Tensor:
        """Images x (N, C, H, W) with the patch (1, C, h, w) where the draws u (N, 4) in [0, 1) say."""
        u_across, u_down = self._patch_coordinates(x, uniform.to(x.dtype))  # (N, H, W)
        grid = torch.stack([u_across, u_down], -1)
        color = F.grid_sample(patch.expand(len(x), -1, -1, -1), grid, padding_mode="border", align_corners=False)
        return torch.where(self.is_inside(u_across, u_down)[:, None], color, x)

    def _patch_coordinates(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Each pixel's center as the patch sees it, (N, H, W) across and down, in units of its radius."""
        height, width = x.shape[-2:]
        angle = (2 * uniform[:, 0] - 1) * math.radians(self.max_rotation)
        radius = self.radius(height, width) * (1 + self.scale_range * (2 * uniform[:, 1] - 1))
        cos, sin = angle.cos(), angle.sin()
        half_extent = radius if self.shape == "circle" else radius * (cos.abs() + sin.abs())
        dx = _pixel_centers(width, x)[None, None, :] - _expand_to_image(
            self._sample_center(uniform[:, 2], width, half_extent)
        )
        dy = _pixel_centers(height, x)[None, :, None] - _expand_to_image(
            self._sample_center(uniform[:, 3], height, half_extent)
        )
        cos, sin, radius = _expand_to_image(cos), _expand_to_image(sin), _expand_to_image(radius)
        return (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius

    def _sample_center(self, uniform: Tensor, image_side: int, half_extent: Tensor) -> Tensor:
        """Anywhere, (N,), such that the patch, which reaches so far (N,), stays inside."""
        free_range = (image_side - 2 * half_extent).clamp_min(0)
        return half_extent + ((uniform * (free_range + 1)).floor() if self.is_pixel_aligned else uniform * free_range)

    def __str__(self) -> str:
        """The rules in words."""
        rotation_text = f"turned by up to {self.max_rotation:g}° to either side" if self.max_rotation else "upright"
        scale_text = f", up to {self.scale_range:.0%} smaller or larger" if self.scale_range else ""
        return f"a {self.shape} that covers {self.area:.3g} of the image, wholly inside it, anywhere, {rotation_text}{scale_text}"


def _pixel_centers(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=like.dtype) + 0.5


def _expand_to_image(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1)."""
    return values[:, None, None]
