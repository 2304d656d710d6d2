"""How alike two maps are: Spearman's rank correlation (signed, absolute), SSIM and HOG, as Adebayo et al. 2018 compare.

All four are (N,), one figure for each pair of maps, in float64 and at most 1. They are NaN where one of the two maps is
the same everywhere, or is not finite: such a map ranks nothing. SSIM and HOG are NaN too where maps are not images, or
images are smaller than their windows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

SIGMA, RADIUS = 1.5, 5  # of SSIM's Gaussian window, 11 x 11 (Wang et al. 2004, section III-B)
K1, K2 = 0.01, 0.03
CELLS = 7  # of HOG along the shorter side, at most 16 pixels each
LARGEST_CELL, LEAST_CELL = 16, 2
BLOCK, ORIENTATIONS = 3, 9


@dataclass(frozen=True, eq=False)
class Similarity:
    """Of maps (N, ...) with other maps (N, ...); whoever compares several times has them as (L, N)."""

    signed: Tensor  # Spearman's rank correlation
    absolute: Tensor  # the same of magnitudes
    ssim: Tensor  # of magnitudes in [0, 1]
    hog: Tensor  # Pearson's correlation of the magnitudes' histograms of oriented gradients

    def mean(self) -> dict[str, Tensor]:
        """Over the maps (the last axis), those without a figure left out."""
        return {f.name: getattr(self, f.name).nanmean(-1) for f in fields(Similarity)}


def similarity(a: Tensor, b: Tensor) -> Similarity:
    """All four figures for maps a and b, (N, C, H, W) or (N, ...) alike.

    Images are compared by position: signed values are summed over channels, magnitudes averaged. Raises InputError
    where there are not as many maps of one shape.
    """
    a, b = _checked(a), _checked(b)
    sa, sb = (h.sum(1) if h.ndim == 4 else h for h in (a, b))
    if sa.shape != sb.shape:
        raise InputError(f"maps to compare have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    ma, mb = magnitudes(a), magnitudes(b)
    pa, pb = in_unit_range(ma), in_unit_range(mb)
    return Similarity(spearman(sa, sb), spearman(ma, mb), ssim(pa, pb), hog(pa, pb))


def _checked(h: Tensor) -> Tensor:
    """A map in double precision. Raises InputError."""
    if not isinstance(h, Tensor) or h.ndim < 2 or not h.is_floating_point() or h.numel() == 0:
        got = f"{h.dtype} of shape {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
        raise InputError(f"a map is a floating point tensor (N, ...); got {got}")
    return h.detach().double()


def magnitudes(h: Tensor) -> Tensor:
    """|map| by position: (N, H, W) of (N, C, H, W), averaged over channels; else shaped like the map."""
    h = h.detach().double().abs()
    return h.mean(1) if h.ndim == 4 else h


def in_unit_range(h: Tensor) -> Tensor:
    """Each map of (N, ...) stretched to [0, 1]; one that is the same everywhere becomes 0."""
    flat = h.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return torch.where(high > low, (flat - low) / (high - low).clamp_min(torch.finfo(h.dtype).tiny), 0.0).view_as(h)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation (N,) of a (N, ...) with b; equal values share the mean of their ranks."""
    return pearson(ranks(a), ranks(b))


def ranks(h: Tensor) -> Tensor:
    """Ranks from 1 within each row, (N, D) of (N, ...); ties have the mean of theirs, and rows with a NaN are NaN."""
    h = h.flatten(1)
    ordered, order = h.sort(1)
    new = torch.ones_like(order)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = new.cumsum(1) - 1  # (N, D) which run of equal values
    places = torch.arange(1, h.shape[1] + 1, dtype=torch.float64, device=h.device).expand(h.shape)
    total = torch.zeros(h.shape, dtype=torch.float64, device=h.device).scatter_add_(1, group, places)
    count = torch.zeros_like(total).scatter_add_(1, group, torch.ones_like(places))
    mean = total.gather(1, group) / count.gather(1, group)
    found = torch.empty_like(mean).scatter_(1, order, mean)
    return torch.where(h.isfinite().all(1, keepdim=True), found, torch.nan)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of a (N, ...) with b; NaN where either is constant."""
    a, b = (h.flatten(1).double() for h in (a, b))
    constant = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    a, b = (h - h.mean(1, keepdim=True) for h in (a, b))
    r = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(constant, torch.nan, r.clamp(-1, 1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The mean structural similarity (N,) of images a and b (N, H, W) in [0, 1].

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", equation 13, with
    their Gaussian window of 11 x 11; smaller images take the largest odd one that fits, of 3 at least. Windows that
    reach over the border are left out.
    """
    if a.ndim != 3 or min(a.shape[1:]) < 3:
        return torch.full((len(a),), torch.nan, dtype=torch.float64, device=a.device)
    radius = min(RADIUS, (min(a.shape[1:]) - 1) // 2)
    a, b = a.double(), b.double()
    ma, mb, aa, bb, ab = _local(torch.stack([a, b, a * a, b * b, a * b], 1), radius).unbind(1)
    va, vb, cov = aa - ma * ma, bb - mb * mb, ab - ma * mb
    luminance = (2 * ma * mb + K1**2) / (ma**2 + mb**2 + K1**2)
    structure = (2 * cov + K2**2) / (va + vb + K2**2)
    found = (luminance * structure).flatten(1).mean(1)
    return torch.where(_constant(a) | _constant(b), torch.nan, found)


def _local(h: Tensor, radius: int) -> Tensor:
    """Means of h (N, K, H, W) under a Gaussian window, where it lies within the image."""
    at = torch.arange(-radius, radius + 1, dtype=h.dtype, device=h.device)
    window = torch.exp(-(at**2) / (2 * SIGMA**2))
    window = (window / window.sum()).view(1, 1, -1, 1)
    flat = h.flatten(0, 1)[:, None]
    found = F.conv2d(F.conv2d(flat, window), window.mT)
    return found.view(*h.shape[:2], *found.shape[2:])


def _constant(h: Tensor) -> Tensor:
    """The rows (N,) that are the same everywhere, or not finite."""
    h = h.flatten(1)
    return (h == h[:, :1]).all(1) | ~h.isfinite().all(1)


def hog(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of the histograms of oriented gradients of images a and b (N, H, W).

    Dalal & Triggs 2005, as scikit-image computes them: 9 orientations, blocks of 3 x 3 cells, a cell being a seventh of
    the shorter side, from 2 to 16 pixels.
    """
    fa, fb = features(a), features(b)
    if fa is None or fb is None:
        return torch.full((len(a),), torch.nan, dtype=torch.float64, device=a.device)
    return pearson(fa, fb)


def features(h: Tensor) -> Tensor | None:
    """HOG features (N, D) of images (N, H, W); None where they are no images, or too small for one block."""
    from skimage.feature import hog as of_image

    side = min(h.shape[1:]) if h.ndim == 3 else 0
    cell = min(LARGEST_CELL, max(LEAST_CELL, side // CELLS))
    if side < BLOCK * cell:
        return None
    found = [
        torch.from_numpy(of_image(image, ORIENTATIONS, (cell, cell), (BLOCK, BLOCK)))
        for image in h.double().cpu().numpy()
    ]
    return torch.stack(found).to(h.device)
