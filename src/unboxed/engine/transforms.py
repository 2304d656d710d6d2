"""Random transforms of an image, one draw a step shared by all rows: what is drawn must survive them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor, torch.Generator], Tensor]


def identity(x: Tensor, generator: torch.Generator) -> Tensor:
    return x


def wobble(degrees: float = 10.0, scale: float = 0.1, jitter: float = 0.07, noise: float = 0.0) -> Transform:
    """Rotate by up to `degrees`, zoom by 1 ± scale, shift by up to `jitter` of the side, and add noise."""

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:  # (N, C, H, W)
        u = 2 * torch.rand(4, generator=generator, device=x.device, dtype=x.dtype) - 1
        angle, zoom = u[0] * math.radians(degrees), 1 / (1 + scale * u[1])
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        ratio = x.shape[-2] / x.shape[-1]  # rotate in pixels, not in halves of the sides
        rows = torch.stack([cos, -sin * ratio, 2 * jitter * u[2], sin / ratio, cos, 2 * jitter * u[3]]).view(1, 2, 3)
        grid = F.affine_grid(rows.expand(len(x), -1, -1), list(x.shape), align_corners=False)
        moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return moved + noise * torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)

    return transform
