"""How similar two maps are: Spearman's rank correlation (signed, absolute), SSIM and HOG, as in Adebayo et al. 2018.

All four are (N,), one figure per pair of maps, in float64 and at most 1. They are NaN where one of the two maps is the
same everywhere, or not finite: such a map ranks nothing. SSIM and HOG are NaN, too, where maps are not images, or
images are smaller than their windows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.rank_correlation import pearson, spearman
from ..engine.results import ResultMixin
from ..errors import InputError

SSIM_SIGMA, SSIM_WINDOW_RADIUS_PIXELS = 1.5, 5  # of SSIM's Gaussian window, 11 x 11 (Wang et al. 2004, section III-B)
SSIM_K1, SSIM_K2 = 0.01, 0.03
HOG_CELLS_PER_SIDE = 7  # of HOG along the shorter side, at most 16 pixels each
MAX_HOG_CELL_PIXELS, MIN_HOG_CELL_PIXELS = 16, 2
HOG_BLOCK_CELLS, HOG_ORIENTATIONS = 3, 9


@dataclass(frozen=True, repr=False, eq=False)
class MapSimilarity(ResultMixin):
    """The similarity of maps (N, ...) to other maps (N, ...): four figures (N,), or (L, N) of L comparisons."""

    signed: Tensor  # Spearman's rank correlation
    absolute: Tensor  # the same of magnitudes
    ssim: Tensor  # of magnitudes in [0, 1]
    hog: Tensor  # Pearson's correlation of the magnitudes' histograms of oriented gradients

    def mean(self) -> dict[str, Tensor]:
        """The mean over the maps (the last axis), without those that are NaN."""
        return {f.name: getattr(self, f.name).nanmean(-1) for f in fields(MapSimilarity)}


def map_similarity(a: Tensor, b: Tensor) -> MapSimilarity:
    """How similar two sets of maps are: rank correlation (signed, absolute), SSIM and HOG.

    For two methods on one input, or one method on two models; `randomization` compares a method with itself as the
    model's weights are randomized.

    Args:
        a: Maps (N, C, H, W), or (N, ...).
        b: Maps of the same shape; the number of channels may differ.

    Returns:
        A `MapSimilarity` of four figures (N,), at most 1. Images are compared by position: signed values are summed
        over channels, magnitudes averaged. NaN where a map is the same everywhere or not finite, and for SSIM and HOG
        where maps are not images or are too small.

    Raises:
        InputError: for maps of different shapes, or that are not floating point tensors.

    Example:
        >>> import torch, unboxed as ub
        >>> a = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        >>> s = ub.checks.map_similarity(a, -a)
        >>> round(s.signed.item(), 3), round(s.absolute.item(), 3), round(s.ssim.item(), 3)
        (-1.0, 1.0, 1.0)
    """
    a, b = _validated_map_in_float64(a), _validated_map_in_float64(b)
    sa, sb = (h.sum(1) if h.ndim == 4 else h for h in (a, b))
    if sa.shape != sb.shape:
        raise InputError(f"maps to compare must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    ma, mb = map_magnitudes(a), map_magnitudes(b)
    pa, pb = rescale_to_unit_range(ma), rescale_to_unit_range(mb)
    return MapSimilarity(spearman(sa, sb), spearman(ma, mb), ssim(pa, pb), hog(pa, pb))


def _validated_map_in_float64(map_: Tensor) -> Tensor:
    """A map in double precision. Raises InputError."""
    if not isinstance(map_, Tensor) or map_.ndim < 2 or not map_.is_floating_point() or map_.numel() == 0:
        got = f"{map_.dtype} of shape {tuple(map_.shape)}" if isinstance(map_, Tensor) else type(map_).__name__
        raise InputError(f"a map must be a floating point tensor (N, ...); got {got}")
    return map_.detach().double()


def map_magnitudes(maps: Tensor) -> Tensor:
    """|map| by position: (N, H, W) of (N, C, H, W), averaged over channels; otherwise shaped like the map."""
    maps = maps.detach().double().abs()
    return maps.mean(1) if maps.ndim == 4 else maps


def rescale_to_unit_range(maps: Tensor) -> Tensor:
    """Each map of (N, ...) stretched to [0, 1]; one that is the same everywhere becomes 0."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return torch.where(high > low, (flat - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0).view_as(
        maps
    )


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The mean structural similarity (N,) of images a and b (N, H, W) in [0, 1].

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", equation 13, with
    their Gaussian window of 11 x 11; smaller images take the largest odd one that fits, of 3 at least. Windows that
    cross the border are left out.
    """
    if a.ndim != 3 or min(a.shape[1:]) < 3:
        return torch.full((len(a),), torch.nan, dtype=torch.float64, device=a.device)
    radius = min(SSIM_WINDOW_RADIUS_PIXELS, (min(a.shape[1:]) - 1) // 2)
    a, b = a.double(), b.double()
    ma, mb, aa, bb, ab = _gaussian_window_mean(torch.stack([a, b, a * a, b * b, a * b], 1), radius).unbind(1)
    va, vb, cov = aa - ma * ma, bb - mb * mb, ab - ma * mb
    luminance = (2 * ma * mb + SSIM_K1**2) / (ma**2 + mb**2 + SSIM_K1**2)
    structure = (2 * cov + SSIM_K2**2) / (va + vb + SSIM_K2**2)
    values = (luminance * structure).flatten(1).mean(1)
    return torch.where(is_constant(a) | is_constant(b), torch.nan, values)


def _gaussian_window_mean(images: Tensor, radius: int) -> Tensor:
    """Means of images (N, K, H, W) under a Gaussian window, where it lies within the image."""
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).view(1, 1, -1, 1)
    flat = images.flatten(0, 1)[:, None]
    smoothed = F.conv2d(F.conv2d(flat, window), window.mT)
    return smoothed.view(*images.shape[:2], *smoothed.shape[2:])


def is_constant(maps: Tensor) -> Tensor:
    """Which maps (N,) are the same everywhere, or not finite: they rank nothing."""
    maps = maps.flatten(1)
    return (maps == maps[:, :1]).all(1) | ~maps.isfinite().all(1)


def is_constant_or_nan(maps: Tensor) -> Tensor:
    """Whether a map is the same everywhere; NaN of a single value, which can't vary."""
    is_one = maps.shape[1:].numel() < 2
    return torch.full((len(maps),), torch.nan, dtype=torch.float64) if is_one else is_constant(maps).double()


def hog(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of the histograms of oriented gradients of images a and b (N, H, W).

    Dalal & Triggs 2005, as scikit-image computes them: 9 orientations, blocks of 3 x 3 cells, a cell being a seventh of
    the shorter side, from 2 to 16 pixels.
    """
    fa, fb = hog_features(a), hog_features(b)
    if fa is None or fb is None:
        return torch.full((len(a),), torch.nan, dtype=torch.float64, device=a.device)
    return pearson(fa, fb)


def hog_features(images: Tensor) -> Tensor | None:
    """HOG features (N, D) of images (N, H, W); None for what is not images, or too small for one block."""
    from skimage.feature import hog as of_image

    side = min(images.shape[1:]) if images.ndim == 3 else 0
    cell = min(MAX_HOG_CELL_PIXELS, max(MIN_HOG_CELL_PIXELS, side // HOG_CELLS_PER_SIDE))
    if side < HOG_BLOCK_CELLS * cell:
        return None
    vectors = [
        torch.from_numpy(of_image(image, HOG_ORIENTATIONS, (cell, cell), (HOG_BLOCK_CELLS, HOG_BLOCK_CELLS)))
        for image in images.double().cpu().numpy()
    ]
    return torch.stack(vectors).to(images.device)
