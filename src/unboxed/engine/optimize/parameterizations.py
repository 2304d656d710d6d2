"""Parameterizations of images ("canvases"): modules whose forward takes nothing and returns images (N, C, H, W)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ...objectives import RowIndex
from ...rng import normal, uniform
from .colors import Palette


class Canvas(nn.Module, ABC):
    """Parameters with one row per example; `.rows` selects some."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The images (N, ...)."""

    @abstractmethod
    def rows(self, index: RowIndex) -> Canvas:
        """The same canvas for some of the examples."""


class RawCanvas(Canvas):
    """The input itself."""

    def __init__(self, x: Tensor, *, copy: bool = True) -> None:
        super().__init__()
        self.x = nn.Parameter(x.detach().clone() if copy else x.detach())

    def forward(self) -> Tensor:
        return self.x

    def rows(self, index: RowIndex) -> RawCanvas:
        return RawCanvas(self.x[index], copy=isinstance(index, slice))  # other indices copy themselves


class FourierCanvas(Canvas):
    """Images as the sigmoid of scaled spectra: equal steps move all frequencies alike, in decorrelated colors.

    Olah et al. 2017, "Feature Visualization", "Preconditioning and Parameterization".
    """

    scale: Tensor

    def __init__(self, z: Tensor, size: tuple[int, int], scale: Tensor, palette: Palette) -> None:
        super().__init__()
        self.size, self.palette = size, palette.to_like(z)
        self.z = nn.Parameter(z.detach().clone())  # (N, C, H, W // 2 + 1, 2)
        self.register_buffer("scale", scale)  # (H, W // 2 + 1)

    @classmethod
    def noise(
        cls, like: Tensor, seed: int, palette: Palette | None = None, *, sd: float = 0.01, frequency_power: float = 1.0
    ) -> FourierCanvas:
        """A start near the palette's mean color (by default gray), one sample per row, shaped like `like` (N, C, H, W).

        Steps move a frequency f by f ** -power: 1 as natural images have it, more for smoother ones.
        """
        n, c, h, w = like.shape
        palette = palette or Palette(like.new_full((c,), 0.5))
        f = spectrum_frequencies(like)
        scale = (h * w) ** 0.5 * max(h, w) * (f.min() / f) ** frequency_power
        return cls(sd * normal(like.new_empty(n, c, h, w // 2 + 1, 2), seed), (h, w), scale, palette)

    def forward(self) -> Tensor:
        image: Tensor = torch.fft.irfft2(self.scale * torch.view_as_complex(self.z), s=self.size)
        return self.palette.to_colors(image)

    def rows(self, index: RowIndex) -> FourierCanvas:
        return FourierCanvas(self.z[index], self.size, self.scale, self.palette)


class PhaseCanvas(Canvas):
    """Images whose spectrum has given magnitudes, only the phases being optimized (MACO).

    Fel et al. 2023, "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization",
    arXiv:2306.06805, section 3.
    """

    magnitude: Tensor

    def __init__(self, phase: Tensor, size: tuple[int, int], magnitude: Tensor, palette: Palette) -> None:
        super().__init__()
        self.size, self.palette = size, palette.to_like(phase)
        self.phase = nn.Parameter(phase.detach().clone())  # (N, C, H, W // 2 + 1)
        self.register_buffer("magnitude", magnitude)  # (C, H, W // 2 + 1)

    @classmethod
    def noise(cls, like: Tensor, seed: int, palette: Palette, magnitude: Tensor) -> PhaseCanvas:
        """Uniform phases, one sample per row, for images shaped like `like` (N, C, H, W)."""
        n, _, h, w = like.shape
        phase = (2 * uniform(like.new_empty(n, *magnitude.shape), seed) - 1) * math.pi
        return cls(phase, (h, w), magnitude.to(like), palette)

    def forward(self) -> Tensor:
        spectrum = torch.polar(self.magnitude.expand_as(self.phase), self.phase)
        image: Tensor = torch.fft.irfft2(spectrum, s=self.size)
        return self.palette.to_colors(image)

    def rows(self, index: RowIndex) -> PhaseCanvas:
        return PhaseCanvas(self.phase[index], self.size, self.magnitude, self.palette)


def spectrum_frequencies(like: Tensor) -> Tensor:
    """The frequencies of a half spectrum, (H, W // 2 + 1), in cycles per pixel; zero becomes the lowest other one."""
    h, w = like.shape[-2:]
    fy = torch.fft.fftfreq(h, dtype=like.dtype, device=like.device)[:, None]
    fx = torch.fft.rfftfreq(w, dtype=like.dtype, device=like.device)[None]
    f: Tensor = (fy**2 + fx**2).sqrt()
    return f.clamp_min(1 / max(h, w))


def mean_magnitude_spectrum(x: Tensor, palette: Palette) -> Tensor:
    """The mean magnitudes (C, H, W // 2 + 1) of images x (N, C, H, W), as a `Phase` canvas holds them."""
    magnitudes: Tensor = torch.fft.rfft2(palette.from_colors(x)).abs().mean(0)
    return magnitudes
