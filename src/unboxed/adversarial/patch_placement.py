"""Where a patch may be on an image, and one random placement per image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class PatchPlacement:
    """A patch that covers a fraction `area` of the image, inside it, anywhere, rotated and scaled a little.

    One that is neither rotated nor scaled is aligned with the pixels, so that its own are shown as they are.
    """

    area: float = 0.1
    shape: Literal["square", "circle"] = "square"
    max_rotation: float = 22.5  # degrees to either side
    scale_range: float = 0.1  # the side is up to this fraction smaller or larger

    @property
    def is_pixel_aligned(self) -> bool:
        return self.max_rotation == 0 and self.scale_range == 0

    def radius(self, height: int, width: int) -> float:
        """The circle's radius, or half the square's side, in pixels, at scale 1."""
        pixels = self.area * height * width
        radius = math.sqrt(pixels / math.pi) if self.shape == "circle" else math.sqrt(pixels) / 2
        return max(1, round(2 * radius)) / 2 if self.is_pixel_aligned else radius

    def patch_side(self, height: int, width: int) -> int:
        """The side of the patch in its own pixels. Raises InputError where it would not fit into the image."""
        radius = self.radius(height, width)
        max_radius = radius * (1 + self.scale_range) * self._max_rotation_extent_factor()
        if (overflow := 2 * max_radius / min(height, width)) > 1:
            message = f"a {self.shape} of area {self.area:g} does not fit into {height}x{width} at every rotation"
            raise InputError(f"{message} and scale: make the area {self.area / overflow**2:.2g} or less")
        return math.ceil(2 * radius - 1e-9)

    def _max_rotation_extent_factor(self) -> float:
        """By how much rotation enlarges the extent of a square, at most."""
        angle = math.radians(min(self.max_rotation, 45))
        return 1.0 if self.shape == "circle" else math.cos(angle) + math.sin(angle)

    def contains_points(self, u_across: Tensor, u_down: Tensor) -> Tensor:
        """Whether points, in units of the radius from the patch's center, belong to it."""
        if self.shape == "circle":
            return u_across**2 + u_down**2 <= 1
        return torch.maximum(u_across.abs(), u_down.abs()) <= 1

    def mask(self, side: int, device: torch.device) -> Tensor:
        """Which of the patch's own pixels (side, side) belong to it, by their centers."""
        centers = (2 * torch.arange(side, device=device, dtype=torch.float64) + 1 - side) / side
        return self.contains_points(centers[None, :], centers[:, None])

    def paste(self, patch: Tensor, x: Tensor, uniform: Tensor) -> Tensor:
        """Images x (N, C, H, W) with the patch (1, C, h, w), placed by uniform draws (N, 4) in [0, 1)."""
        u_across, u_down = self._pixels_in_patch_coordinates(x, uniform.to(x.dtype))  # (N, H, W)
        grid = torch.stack([u_across, u_down], -1)
        color = F.grid_sample(patch.expand(len(x), -1, -1, -1), grid, padding_mode="border", align_corners=False)
        return torch.where(self.contains_points(u_across, u_down)[:, None], color, x)

    def _pixels_in_patch_coordinates(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The centers of all pixels in the patch's coordinates, (N, H, W) across and down, in units of its radius."""
        height, width = x.shape[-2:]
        angle = (2 * uniform[:, 0] - 1) * math.radians(self.max_rotation)
        radius = self.radius(height, width) * (1 + self.scale_range * (2 * uniform[:, 1] - 1))
        cos, sin = angle.cos(), angle.sin()
        half_extent = radius if self.shape == "circle" else radius * (cos.abs() + sin.abs())
        dx = _pixel_centers(width, x)[None, None, :] - _broadcast_to_pixels(
            self._center_from_uniform(uniform[:, 2], width, half_extent)
        )
        dy = _pixel_centers(height, x)[None, :, None] - _broadcast_to_pixels(
            self._center_from_uniform(uniform[:, 3], height, half_extent)
        )
        cos, sin, radius = _broadcast_to_pixels(cos), _broadcast_to_pixels(sin), _broadcast_to_pixels(radius)
        return (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius

    def _center_from_uniform(self, uniform: Tensor, image_side: int, half_extent: Tensor) -> Tensor:
        """A center (N,) such that a patch of this half extent (N,) stays inside."""
        free_range = (image_side - 2 * half_extent).clamp_min(0)
        return half_extent + ((uniform * (free_range + 1)).floor() if self.is_pixel_aligned else uniform * free_range)

    def __str__(self) -> str:
        """In words."""
        rotation_text = f"rotated by up to {self.max_rotation:g}° to either side" if self.max_rotation else "upright"
        scale_text = f", up to {self.scale_range:.0%} smaller or larger" if self.scale_range else ""
        where_text = f"a {self.shape} that covers {self.area:.3g} of the image, inside it, anywhere"
        return f"{where_text}, {rotation_text}{scale_text}"


def _pixel_centers(n_pixels: int, like: Tensor) -> Tensor:
    return torch.arange(n_pixels, device=like.device, dtype=like.dtype) + 0.5


def _broadcast_to_pixels(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1)."""
    return values[:, None, None]
