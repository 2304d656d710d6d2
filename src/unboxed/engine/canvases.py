"""Canvases: what is optimized, as modules whose forward takes nothing and gives images, a row an example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..objectives import Index
from .draws import normal


class Canvas(nn.Module):
    """Parameters with a row an example; `.rows` keeps some of them."""

    def forward(self) -> Tensor:
        raise TypeError("a canvas says how its parameters become images")

    def rows(self, index: Index) -> Canvas:
        raise TypeError("a canvas says how to keep some of its rows")


class Raw(Canvas):
    """The input itself."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x.detach().clone())

    def forward(self) -> Tensor:
        return self.x

    def rows(self, index: Index) -> Raw:
        return Raw(self.x[index])


class Fourier(Canvas):
    """Images as the sigmoid of scaled spectra: equal steps move all frequencies alike.

    Olah et al. 2017, "Feature Visualization": a change of basis in which steepest ascent draws no high frequencies.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, z: Tensor, size: tuple[int, int], scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.size = size
        self.z = nn.Parameter(z.detach().clone())  # (N, C, H, W // 2 + 1, 2)
        self.register_buffer("scale", scale)  # (H, W // 2 + 1)
        self.register_buffer("shift", shift)  # (C, 1, 1)

    @classmethod
    def noise(
        cls, like: Tensor, seed: int, *, sd: float = 0.01, color: Tensor | float = 0.5, power: float = 1.0
    ) -> Fourier:
        """A start near a uniform `color` (one a channel, in (0, 1)), one draw a row, shaped like `like` (N, C, H, W).

        Steps move a frequency f by f ** -power: 1 as natural images have it, more for smoother ones.
        """
        n, c, h, w = like.shape
        fy = torch.fft.fftfreq(h, dtype=like.dtype, device=like.device)[:, None]
        fx = torch.fft.rfftfreq(w, dtype=like.dtype, device=like.device)[None]
        lowest = 1 / max(h, w)
        frequency = (fy**2 + fx**2).sqrt().clamp_min(lowest)
        scale = (h * w) ** 0.5 / lowest * (lowest / frequency) ** power
        shift = torch.as_tensor(color, dtype=like.dtype, device=like.device).expand(c).view(c, 1, 1).logit(1e-3)
        return cls(sd * normal(like.new_empty(n, c, h, w // 2 + 1, 2), seed), (h, w), scale, shift)

    def forward(self) -> Tensor:
        spectrum = self.scale * torch.view_as_complex(self.z)
        image: Tensor = torch.fft.irfft2(spectrum, s=self.size)
        return (image + self.shift).sigmoid()

    def rows(self, index: Index) -> Fourier:
        return Fourier(self.z[index], self.size, self.scale, self.shift)
