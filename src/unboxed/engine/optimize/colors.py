"""Palettes: from unbounded, uncorrelated values to colors in [0, 1], and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...inputs.pixels import Pixels

EDGE = 1e-3  # of the range, next to 0 and 1, where the logit is cut

# How the colors of natural images go together: a square root of their covariance over ImageNet, as published with
# Olah et al. 2017 (lucid's color correlation).
NATURAL = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, eq=False)
class Palette:
    """`paint(z)` = sigmoid(mix z + logit(mean)), a pixel's channels at a time.

    `beyond` stretches the sigmoid's range by so much at both ends and cuts it off, so that black and white are reached.
    """

    mean: Tensor  # (C,) in [0, 1]: the color of z = 0
    mix: Tensor | None = None  # (C, C); None: each channel for itself
    beyond: float = 0.0

    def beside(self, like: Tensor) -> Palette:
        """The same palette on a tensor's device and in its dtype."""
        return replace(self, mean=self.mean.to(like), mix=None if self.mix is None else self.mix.to(like))

    def paint(self, z: Tensor) -> Tensor:  # (N, C, H, W)
        mixed = z if self.mix is None else torch.einsum("cd,ndhw->nchw", self.mix.to(z), z)
        x = (mixed + self._shift(z)).sigmoid()
        return x if self.beyond == 0 else ((1 + 2 * self.beyond) * x - self.beyond).clamp(0, 1)

    def plain(self, x: Tensor) -> Tensor:
        """The values z that are painted as x, but for what lies at the very ends of the range."""
        x = (x + self.beyond) / (1 + 2 * self.beyond)
        z = x.clamp(EDGE, 1 - EDGE).logit() - self._shift(x)
        return z if self.mix is None else torch.einsum("cd,ndhw->nchw", torch.linalg.inv(self.mix.to(x)), z)

    def _shift(self, like: Tensor) -> Tensor:
        mean = (self.mean.to(like) + self.beyond) / (1 + 2 * self.beyond)
        return mean.logit(EDGE).view(-1, 1, 1)


def learned(x: Tensor) -> Palette:
    """Of images (N, C, H, W): their mean color, and how their channels go together (for one channel: not at all)."""
    mean = x.mean((0, 2, 3))
    if x.shape[1] == 1:
        return Palette(mean)
    flat = x.movedim(1, 0).flatten(1)  # (C, N * H * W)
    values, vectors = torch.linalg.eigh(torch.cov(flat).double())
    return Palette(mean, _sized(vectors * values.clamp_min(1e-6).sqrt()).to(x))


def natural(mean: Tensor) -> Palette:
    """Around a mean color (C,), with the colors of natural images where there are three."""
    return Palette(mean, _sized(mean.new_tensor(NATURAL)) if len(mean) == 3 else None)


def _sized(root: Tensor) -> Tensor:
    """A covariance's square root with its longest column 1, so that a step in color is a step in gray."""
    sized: Tensor = root / root.norm(dim=0).max()
    return sized


def statistics(inputs: Pixels) -> tuple[Tensor, float]:
    """The data's mean color (C,) and spread in pixel range, from the normalization; gray and a quarter if unknown."""
    zero, one = (inputs.decode(torch.full(inputs.shape, v, dtype=torch.float64)).mean((1, 2)) for v in (0.0, 1.0))
    return (zero, float((one - zero).mean())) if known(inputs) else (torch.full_like(zero, 0.5), 0.25)


def known(inputs: Pixels) -> bool:
    """Whether the inputs say what the data's mean and spread are."""
    return inputs.std != 1.0 and not (isinstance(inputs.std, Sequence) and set(inputs.std) == {1.0})
