"""Patches of images: where relevance is concentrated, and what answers become when a patch is pasted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.rectangle import Rectangle

MAX_PATCH_SIDE_FRACTION = 0.25  # of the image's side: what is larger is an object's part more than a mark
MAX_PATCH_AREA_FRACTION = 0.0625
N_TRIED_PATCH_SIDES = 8  # heights, and widths, that are tried: all, or in equal ratios


def densest_relevance_rectangle(relevance: Tensor) -> Rectangle:
    """The small rectangle in which the relevance (H, W) >= 0 is most concentrated.

    It maximizes KL(share of relevance inside || share of area inside), the scan statistic of Kulldorff 1997, which
    weighs a small rectangle that holds much against a larger one that holds a little more.
    """
    height, width = relevance.shape
    sums = torch.nn.functional.pad(relevance.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    best, rectangle = -1.0, Rectangle(0, 0, 1, 1)
    for h in _tried_patch_sides(height):
        for w in _tried_patch_sides(width):
            if h * w > max(1, MAX_PATCH_AREA_FRACTION * height * width):
                continue
            inside = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
            score = _relevance_concentration(inside / sums[-1, -1].clamp_min(1e-300), h * w / (height * width))
            if float(score.max()) > best:
                best, index = float(score.max()), int(score.argmax())
                rectangle = Rectangle(*divmod(index, score.shape[1]), h, w)
    return rectangle


def _tried_patch_sides(size: int) -> list[int]:
    largest = max(1, round(MAX_PATCH_SIDE_FRACTION * size))
    if largest <= N_TRIED_PATCH_SIDES:
        return list(range(1, largest + 1))
    smallest, ratios = largest // N_TRIED_PATCH_SIDES, torch.linspace(0, 1, N_TRIED_PATCH_SIDES, dtype=torch.float64)
    return sorted({round(float(smallest * (largest / smallest) ** r)) for r in ratios})


def _relevance_concentration(share: Tensor, area: float) -> Tensor:
    """KL of (share, 1 - share) from (area, 1 - area); 0 where the share is below the area."""
    share = share.clamp(0, 1)
    divergence = torch.xlogy(share, share / area) + torch.xlogy(1 - share, (1 - share) / max(1 - area, 1e-300))
    return torch.where(share > area, divergence, 0.0)


def border_mask(height: int, width: int) -> Tensor:
    """(H, W) bool: the outer eighth of each side."""
    rows, columns = (_mask_of_both_ends(n, max(1, n // 8)) for n in (height, width))
    return rows[:, None] | columns


def corner_mask(height: int, width: int) -> Tensor:
    """(H, W) bool: the four corners, each a quarter of the sides."""
    rows, columns = (_mask_of_both_ends(n, max(1, n // 4)) for n in (height, width))
    return rows[:, None] & columns


def _mask_of_both_ends(n: int, depth: int) -> Tensor:
    index = torch.arange(n)
    return (index < depth) | (index >= n - depth)


def relevance_share_inside(relevance: Tensor, mask: Tensor) -> float:
    """The share of the relevance (H, W) within a mask; 0 where there is none."""
    total = float(relevance.sum())
    return float(relevance[mask].sum()) / total if total else 0.0


def paste_donor_patches(images: Tensor, donors: Tensor, patches: list[Rectangle]) -> Tensor:
    """Images (N, C, H, W), each with a patch of its donor (N, C, H, W) at the patch's place."""
    pasted = images.clone()
    for image, donor, patch in zip(pasted, donors, patches, strict=True):
        image[:, patch.rows, patch.columns] = donor[:, patch.rows, patch.columns]
    return pasted


def sample_random_patches(
    n: int, like: Rectangle, size: tuple[int, int], generator: torch.Generator
) -> list[Rectangle]:
    """n rectangles of the same size at random places (H, W) apart from it; anywhere where there is no such place."""
    places = [
        Rectangle(top, left, like.height, like.width)
        for top in range(size[0] - like.height + 1)
        for left in range(size[1] - like.width + 1)
    ]
    allowed = [place for place in places if not place.overlaps(like)] or places
    return [allowed[i] for i in torch.randint(len(allowed), (n,), generator=generator).tolist()]
