"""Random transforms of images, one sample per step shared by all rows, for transformation robustness."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor, torch.Generator], Tensor]


def random_affine(
    degrees: float = 10.0, scale: float = 0.1, jitter: float = 0.07, noise: float = 0.0, fill: float | None = None
) -> Transform:
    """Rotate by up to `degrees`, zoom by 1 ± scale, shift by up to `jitter` of the side, and add noise.

    Padding, jitter, scale and rotation of Olah et al. 2017 by one interpolation. What comes in from outside has the
    value `fill`, or that of the nearest edge.
    """

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:  # (N, C, H, W)
        u = 2 * _uniform_draws(4, x, generator) - 1
        transformed = _apply_affine(x, u[0] * math.radians(degrees), 1 / (1 + scale * u[1]), 2 * jitter * u[2:], fill)
        return _add_noise(transformed, noise, generator)

    return transform


def random_crop(min_side: float = 0.2, max_side: float = 0.5, noise: float = 0.08) -> Transform:
    """A random square part of side `low` to `high`, enlarged to the whole, and noise (Fel et al. 2023, section 3)."""

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:  # (N, C, H, W)
        u = _uniform_draws(3, x, generator)
        zoom = min_side + (max_side - min_side) * u[0]
        return _add_noise(_apply_affine(x, u.new_zeros(()), zoom, (2 * u[1:] - 1) * (1 - zoom), None), noise, generator)

    return transform


def random_roll(max_pixels: int) -> Transform:
    """Shift by some pixels, around the edges: jitter without interpolation."""

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:  # (N, C, H, W)
        offsets = torch.randint(-max_pixels, max_pixels + 1, (2,), generator=generator, device=x.device)
        rows, columns = (torch.arange(s, device=x.device) for s in x.shape[-2:])
        return x[..., (rows - offsets[0]) % len(rows), :][..., (columns - offsets[1]) % len(columns)]

    return transform


def _uniform_draws(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=like.device, dtype=like.dtype)


def _apply_affine(x: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor, fill: float | None) -> Tensor:
    """x (N, C, H, W) seen through a window `zoom` as large, turned by `angle`, with its center at `shift` (x, y)."""
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    ratio = x.shape[-2] / x.shape[-1]  # rotate in pixels, not in halves of the sides
    rows = torch.stack([cos, -sin * ratio, shift[0], sin / ratio, cos, shift[1]]).view(1, 2, 3)
    grid = F.affine_grid(rows.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    if fill is None:
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return fill + F.grid_sample(x - fill, grid, padding_mode="zeros", align_corners=False)


def _add_noise(x: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if not noise:
        return x
    return x + noise * torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)
