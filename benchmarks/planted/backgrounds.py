"""Backgrounds of scenes: smooth noise for small gray images, crops of photos for colored and large ones.

The photos are those that scikit-image and scikit-learn carry, so that every installation has them; training scenes take
their left halves, held-out scenes their right halves.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")


def smooth_noise(n: int, side: int, generator: torch.Generator) -> Tensor:
    """Noise (n, 1, side, side) with a 1/f spectrum, between .1 and .4 or so."""
    white = torch.randn(n, 1, side, side, generator=generator)
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    frequency = (rows**2 + columns**2).sqrt().clamp_min(1 / side)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(side, side))
    noise = noise / noise.std((2, 3), keepdim=True)
    return (0.25 + 0.06 * noise).clamp(0, 1)


def photo_crops(n: int, side: int, scale: int, generator: torch.Generator, half: str) -> Tensor:
    """Crops (n, 3, side, side) of photos, reduced `scale` times, with somewhat less contrast than photos have."""
    crops = []
    for k in torch.randint(0, len(PHOTOS), (n,), generator=generator).tolist():
        photo = _reduced(PHOTOS[k], scale)
        _, h, w = photo.shape
        start, end = (0, w // 2) if half == "left" else (w // 2, w)
        top = int(torch.randint(0, max(1, h - side + 1), (), generator=generator))
        left = int(torch.randint(start, max(start + 1, end - side + 1), (), generator=generator))
        crops.append(photo[:, top : top + side, left : left + side])
    return (0.45 + 0.55 * (torch.stack(crops) - 0.45)).clamp(0, 1)


@functools.lru_cache
def _reduced(name: str, scale: int) -> Tensor:
    """A photo (3, H, W) in [0, 1]."""
    photo = torch.from_numpy(_read(name).astype(np.float32) / 255).permute(2, 0, 1)[None]
    return F.avg_pool2d(photo, scale)[0]


def _read(name: str) -> np.ndarray:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"))
    import skimage.data

    return np.asarray(getattr(skimage.data, name)())
