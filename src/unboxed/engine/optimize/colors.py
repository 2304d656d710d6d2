"""Palettes: from unbounded, uncorrelated values to colors in [0, 1], and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...inputs.pixels import Pixels

LOGIT_CLIP_MARGIN = 1e-3  # of the range at 0 and 1, where the logit is clipped

# The color correlation of natural images: a square root of their covariance over ImageNet, as published with
# Olah et al. 2017 (lucid's color correlation).
NATURAL_COLOR_CORRELATION_SQRT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, eq=False)
class Palette:
    """`to_colors(z)` = sigmoid(color_mix z + logit(mean)), per pixel.

    `beyond` stretches the sigmoid's range by so much at both ends and cuts it off, so that black and white are reached.
    """

    mean: Tensor  # (C,) in [0, 1]: the color of z = 0
    color_mix: Tensor | None = None  # (C, C); None: independent channels
    overshoot: float = 0.0

    def to_like(self, like: Tensor) -> Palette:
        """The same palette on a tensor's device and in its dtype."""
        return replace(
            self, mean=self.mean.to(like), color_mix=None if self.color_mix is None else self.color_mix.to(like)
        )

    def to_colors(self, z: Tensor) -> Tensor:  # (N, C, H, W)
        correlated = z if self.color_mix is None else torch.einsum("cd,ndhw->nchw", self.color_mix.to(z), z)
        x = (correlated + self._logit_of_mean(z)).sigmoid()
        return x if self.overshoot == 0 else ((1 + 2 * self.overshoot) * x - self.overshoot).clamp(0, 1)

    def from_colors(self, x: Tensor) -> Tensor:
        """The values z of colors x, up to clipping at the ends of the range."""
        x = (x + self.overshoot) / (1 + 2 * self.overshoot)
        z = x.clamp(LOGIT_CLIP_MARGIN, 1 - LOGIT_CLIP_MARGIN).logit() - self._logit_of_mean(x)
        return z if self.color_mix is None else torch.einsum("cd,ndhw->nchw", torch.linalg.inv(self.color_mix.to(x)), z)

    def _logit_of_mean(self, like: Tensor) -> Tensor:
        mean = (self.mean.to(like) + self.overshoot) / (1 + 2 * self.overshoot)
        return mean.logit(LOGIT_CLIP_MARGIN).view(-1, 1, 1)


def palette_from_images(x: Tensor) -> Palette:
    """The palette of images (N, C, H, W): mean color and correlation of the channels (none for one channel)."""
    mean = x.mean((0, 2, 3))
    if x.shape[1] == 1:
        return Palette(mean)
    flat = x.movedim(1, 0).flatten(1)  # (C, N * H * W)
    values, vectors = torch.linalg.eigh(torch.cov(flat).double())
    return Palette(mean, _normalize_color_mix(vectors * values.clamp_min(1e-6).sqrt()).to(x))


def natural_palette(mean: Tensor) -> Palette:
    """The palette of a mean color (C,), with the color correlation of natural images for three channels."""
    return Palette(
        mean, _normalize_color_mix(mean.new_tensor(NATURAL_COLOR_CORRELATION_SQRT)) if len(mean) == 3 else None
    )


def _normalize_color_mix(color_mix: Tensor) -> Tensor:
    """A covariance's square root with its longest column 1, so that a step in color is a step in gray."""
    normalized: Tensor = color_mix / color_mix.norm(dim=0).max()
    return normalized


def pixel_mean_and_std(inputs: Pixels) -> tuple[Tensor, float]:
    """The data's mean color (C,) and spread in pixel range, from the normalization; gray and a quarter if unknown."""
    black_point, white_point = (
        inputs.decode(torch.full(inputs.shape, v, dtype=torch.float64)).mean((1, 2)) for v in (0.0, 1.0)
    )
    return (
        (black_point, float((white_point - black_point).mean()))
        if is_data_mean_and_std_known(inputs)
        else (torch.full_like(black_point, 0.5), 0.25)
    )


def is_data_mean_and_std_known(inputs: Pixels) -> bool:
    """Whether the inputs say what the data's mean and spread are."""
    return inputs.std != 1.0 and not (isinstance(inputs.std, Sequence) and set(inputs.std) == {1.0})
