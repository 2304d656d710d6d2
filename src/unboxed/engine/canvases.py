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

    def __init__(self, z: Tensor, size: tuple[int, int], shift: float = 0.0) -> None:
        super().__init__()
        h, w = size
        fy = torch.fft.fftfreq(h, dtype=z.dtype, device=z.device)[:, None]
        fx = torch.fft.rfftfreq(w, dtype=z.dtype, device=z.device)[None]
        self.register_buffer("scale", (h * w) ** 0.5 / (fy**2 + fx**2).sqrt().clamp_min(1 / max(h, w)))
        self.z = nn.Parameter(z.detach().clone())  # (N, C, H, W // 2 + 1, 2)
        self.size, self.shift = size, shift

    @classmethod
    def noise(cls, like: Tensor, seed: int, sd: float = 0.01, shift: float = 0.0) -> Fourier:
        """A start near a uniform gray of sigmoid(shift), one draw a row, for images shaped like `like` (N, C, H, W)."""
        n, c, h, w = like.shape
        return cls(sd * normal(like.new_empty(n, c, h, w // 2 + 1, 2), seed), (h, w), shift)

    def forward(self) -> Tensor:
        spectrum = self.scale * torch.view_as_complex(self.z)
        image: Tensor = torch.fft.irfft2(spectrum, s=self.size)
        return (image + self.shift).sigmoid()

    def rows(self, index: Index) -> Fourier:
        return Fourier(self.z[index], self.size, self.shift)
