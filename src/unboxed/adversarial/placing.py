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
class Placing:
    """A patch that covers a share `area` of the image, wholly inside it, anywhere, a little turned and scaled.

    One that is neither turned nor scaled lies on whole pixels, and shows its own as they are.
    """

    area: float = 0.1
    shape: str = "square"
    rotation: float = 22.5  # degrees, at most, to either side
    scale: float = 0.1  # the side is up to so much of itself smaller or larger

    def __post_init__(self) -> None:
        check_float("area", self.area, above=0, below=1)
        if self.shape not in SHAPES:
            raise InputError(f"shape is one of {', '.join(SHAPES)}; got {self.shape!r}")
        check_float("rotation", self.rotation, minimum=0, maximum=180)
        check_float("scale", self.scale, minimum=0, below=1)

    @property
    def on_pixels(self) -> bool:
        return self.rotation == 0 and self.scale == 0

    def radius(self, height: int, width: int) -> float:
        """Of the circle, or half the square's side, in pixels, at scale 1."""
        pixels = self.area * height * width
        radius = math.sqrt(pixels / math.pi) if self.shape == "circle" else math.sqrt(pixels) / 2
        return max(1, round(2 * radius)) / 2 if self.on_pixels else radius

    def side(self, height: int, width: int) -> int:
        """How many pixels the patch itself has a side. Raises InputError where it would not fit into the image."""
        radius = self.radius(height, width)
        reach = radius * (1 + self.scale) * self._widest()
        if (over := 2 * reach / min(height, width)) > 1:
            said = f"a {self.shape} of area {self.area:g} does not fit into {height}x{width} however it is turned"
            raise InputError(f"{said} and scaled: make the area {self.area / over**2:.2g} or less")
        return math.ceil(2 * radius - 1e-9)

    def _widest(self) -> float:
        """How much farther than upright a square reaches when it is turned the worst way."""
        turn = math.radians(min(self.rotation, 45))
        return 1.0 if self.shape == "circle" else math.cos(turn) + math.sin(turn)

    def inside(self, across: Tensor, down: Tensor) -> Tensor:
        """Whether points, in units of the radius from the patch's center, lie on it."""
        if self.shape == "circle":
            return across**2 + down**2 <= 1
        return torch.maximum(across.abs(), down.abs()) <= 1

    def mask(self, side: int, device: torch.device) -> Tensor:
        """Which of the patch's own pixels (side, side) are part of it, by their centers."""
        at = (2 * torch.arange(side, device=device, dtype=torch.float64) + 1 - side) / side
        return self.inside(at[None, :], at[:, None])

    def put(self, patch: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Images x (N, C, H, W) with the patch (1, C, h, w) where the draws u (N, 4) in [0, 1) say."""
        across, down = self._seen(x, u.to(x.dtype))  # (N, H, W)
        grid = torch.stack([across, down], -1)
        color = F.grid_sample(patch.expand(len(x), -1, -1, -1), grid, padding_mode="border", align_corners=False)
        return torch.where(self.inside(across, down)[:, None], color, x)

    def _seen(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Each pixel's center as the patch sees it, (N, H, W) across and down, in units of its radius."""
        height, width = x.shape[-2:]
        angle = (2 * u[:, 0] - 1) * math.radians(self.rotation)
        radius = self.radius(height, width) * (1 + self.scale * (2 * u[:, 1] - 1))
        cos, sin = angle.cos(), angle.sin()
        reach = radius if self.shape == "circle" else radius * (cos.abs() + sin.abs())
        dx = _centers(width, x)[None, None, :] - _each(self._center(u[:, 2], width, reach))
        dy = _centers(height, x)[None, :, None] - _each(self._center(u[:, 3], height, reach))
        cos, sin, radius = _each(cos), _each(sin), _each(radius)
        return (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius

    def _center(self, u: Tensor, room: int, reach: Tensor) -> Tensor:
        """Anywhere, (N,), such that the patch, which reaches so far (N,), stays inside."""
        free = (room - 2 * reach).clamp_min(0)
        return reach + ((u * (free + 1)).floor() if self.on_pixels else u * free)

    def __str__(self) -> str:
        """The rules in words."""
        turned = f"turned by up to {self.rotation:g}° to either side" if self.rotation else "upright"
        sized = f", up to {self.scale:.0%} smaller or larger" if self.scale else ""
        return f"a {self.shape} that covers {self.area:.3g} of the image, wholly inside it, anywhere, {turned}{sized}"


def _centers(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=like.dtype) + 0.5


def _each(v: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1)."""
    return v[:, None, None]
