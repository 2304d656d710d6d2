"""Masks: which segments are kept, (K, A) bool. They depend on the number of segments and the seed alone.

So rows with as many segments share them. Sampled masks come in pairs z, 1 - z, whose common errors cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import rng


@dataclass(frozen=True, eq=False)
class SampledMasks:
    """Unique masks (U, A), and how an estimator uses them: sample k is mask `mask_index[k]`, with a weight."""

    masks: Tensor  # (U, A) bool
    mask_index: Tensor  # (K,) the mask of each sample
    weight: Tensor  # (K,) float64
    cluster: Tensor  # (K,) samples that depend on one another; -1: listed, not sampled, so without sampling error

    @property
    def float_masks(self) -> Tensor:
        """(K, A), float64."""
        return self.masks[self.mask_index].double()


def full_and_leave_one_out_masks(n_segments: int) -> Tensor:
    """(A + 1, A): the full mask, then each segment masked alone."""
    return torch.cat([torch.ones(1, n_segments, dtype=torch.bool), ~torch.eye(n_segments, dtype=torch.bool)])


def all_subset_masks(n_features: int) -> Tensor:
    """(2^A, A): mask b keeps the segments whose bit is set in b."""
    return (torch.arange(2**n_features)[:, None] >> torch.arange(n_features)[None]) & 1 > 0


def deduplicate_masks(masks: Tensor, weight: Tensor, cluster: Tensor) -> SampledMasks:
    """Samples of which equal ones are run once."""
    unique_masks, mask_index = (
        torch.unique(masks, dim=0, return_inverse=True)
        if masks.shape[1]
        else (masks[:1], cluster.new_zeros(len(masks)))
    )
    return SampledMasks(unique_masks, mask_index, weight, cluster)


# -- LIME: every subset equally likely ---------------------------------------------------------------------------------


def bernoulli_masks(n_features: int, n_masks: int, seed: int, *, deduplicate: bool = True) -> SampledMasks:
    """n masks: the full one, then n - 1 that keep every segment with probability 1/2, independently.

    They are drawn together: the rows of a Hadamard matrix of +-1 (columns drawn without replacement, each with a random
    sign, with every row's complement) are an orthogonal array, in which every three segments are kept in all eight
    combinations equally often; each mask alone is an independent coin per segment. All subsets, where they are no more
    than n. `deduplicate=False` keeps equal masks, where running them costs less than finding them.
    """
    full_mask = torch.ones(1, n_features, dtype=torch.bool)
    if n_features <= math.log2(n_masks):
        sampled = all_subset_masks(n_features)
        weight = torch.full((len(sampled),), (n_masks - 1) / len(sampled), dtype=torch.float64)
        cluster = torch.full((len(sampled),), -1)
    else:
        sampled = _hadamard_mask_pairs(
            n_features, n_masks - 1, rng.step_generator(seed, n_features, torch.device("cpu"))
        )
        weight, cluster = torch.ones(n_masks - 1, dtype=torch.float64), torch.arange(n_masks - 1) // 2
    weight = torch.cat([torch.ones(1, dtype=torch.float64), weight])
    masks, cluster = torch.cat([full_mask, sampled]), torch.cat([torch.full((1,), -1), cluster])
    return (
        deduplicate_masks(masks, weight, cluster)
        if deduplicate
        else SampledMasks(masks, torch.arange(len(masks)), weight, cluster)
    )


def _hadamard_mask_pairs(n_features: int, n_masks: int, generator: torch.Generator) -> Tensor:
    signs = torch.ones(1, 1, dtype=torch.bool)
    while len(signs) <= n_features:  # Sylvester's Hadamard matrices
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, ~signs], 1)])
    blocks, m = [], len(signs)
    for _ in range(-(-n_masks // (2 * m))):
        columns = 1 + torch.randperm(m - 1, generator=generator)[:n_features]  # the first is constant
        rows = torch.randperm(m, generator=generator)
        flips = torch.randint(2, (n_features,), generator=generator).bool()
        z = signs[rows][:, columns] ^ flips
        blocks.append(torch.stack([z, ~z], 1).flatten(0, 1))
    return torch.cat(blocks)[:n_masks]


# -- Shapley's kernel --------------------------------------------------------------------------------------------------


def shapley_mask_pairs(n_features: int, n_masks: int, seed: int) -> SampledMasks:
    """At most n masks of 1 to A - 1 segments, in complementary pairs, weighted by the Shapley kernel.

    Sizes of which the budget holds all subsets are listed (Lundberg & Lee's own code does so); of the others pairs are
    drawn (Covert & Lee 2021), their sizes by systematic sampling and their segments in turn, so that each comes up
    about equally often. Weights sum to the kernel's (1 for each size's share 1 / (s (A - s))).
    """
    sizes = list(range(1, n_features // 2 + 1))  # the smaller of a pair
    size_weight = {
        s: (1 if 2 * s == n_features else 2) / (s * (n_features - s)) for s in sizes
    }  # kernel weight of a pair of sizes together
    listed_sizes, n_pairs_left = [], n_masks // 2
    for s in sizes:
        pairs = math.comb(n_features, s) // (2 if 2 * s == n_features else 1)
        rest = sum(size_weight[r] for r in sizes if r not in listed_sizes)
        if pairs > n_pairs_left * size_weight[s] / rest * (1 + 1e-9):
            break
        listed_sizes.append(s)
        n_pairs_left -= pairs
    groups = [_weighted_masks_of_size(n_features, s, size_weight[s]) for s in listed_sizes]
    sampled_sizes = [s for s in sizes if s not in listed_sizes]
    if sampled_sizes and n_pairs_left:
        groups.append(
            _sampled_mask_pairs(
                n_features,
                sampled_sizes,
                size_weight,
                n_pairs_left,
                rng.step_generator(seed, n_features, torch.device("cpu")),
            )
        )
    masks, weight, cluster = (torch.cat(h) for h in zip(*groups, strict=True))
    return deduplicate_masks(masks, weight, cluster)


def _weighted_masks_of_size(n_features: int, size: int, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """All subsets of s segments and their complements."""
    indices = torch.combinations(torch.arange(n_features), size) if size else torch.zeros(1, 0, dtype=torch.long)
    z = torch.zeros(len(indices), n_features, dtype=torch.bool).scatter_(1, indices, True)
    z = z if 2 * size == n_features else torch.cat([z, ~z])
    return z, torch.full((len(z),), weight / len(z), dtype=torch.float64), torch.full((len(z),), -1)


def _sampled_mask_pairs(
    n_features: int, sizes: list[int], size_weight: dict[int, float], n_pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    mass = torch.tensor([size_weight[s] for s in sizes], dtype=torch.float64)
    positions = (torch.arange(n_pairs) + torch.rand(1, generator=generator, dtype=torch.float64)) / n_pairs
    size_index = torch.bucketize(positions, mass.cumsum(0) / mass.sum(), right=True).clamp(max=len(sizes) - 1)
    counts = [int(c) for c in torch.bincount(size_index, minlength=len(sizes))]
    z = torch.cat(
        [_balanced_subset_masks(n_features, s, count, generator) for s, count in zip(sizes, counts, strict=True)]
    )
    z = torch.stack([z, ~z], 1).flatten(0, 1)
    weight = torch.full((2 * n_pairs,), float(mass.sum()) / (2 * n_pairs), dtype=torch.float64)
    return z, weight, torch.arange(2 * n_pairs) // 2


def _balanced_subset_masks(n_features: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, A): s segments each, taken in turn from one permutation after another; each alone is uniform."""
    z, queue = torch.zeros(count, n_features, dtype=torch.bool), list[int]()
    for row in z:
        if len(queue) < size:
            order = torch.randperm(n_features, generator=generator).tolist()
            first = [p for p in order if p not in queue]
            queue += first + [p for p in order if p not in first]
        row[queue[:size]] = True
        queue = queue[size:]
    return z


# -- RISE --------------------------------------------------------------------------------------------------------------


def rise_masks(
    indices: range, size: tuple[int, int], cells: int, keep_probability: float, seed: int, like: Tensor
) -> Tensor:
    """RISE's masks (K, 1, H, W) in [0, 1]: coarse grids, each cell kept with a probability, enlarged and shifted.

    Petsiuk et al. 2018, section 3.2: a grid of cells x cells is enlarged bilinearly to (cells + 1) cells of the image,
    and the image's size cut out of it at a random place. Each mask is keyed by (seed, its number).
    """
    height, width = size
    cell_size = -(-height // cells), -(-width // cells)
    kept_cells, corners = _rise_grids(indices, cells, cell_size, keep_probability, seed)
    large = F.interpolate(
        kept_cells.to(like),
        ((cells + 1) * cell_size[0], (cells + 1) * cell_size[1]),
        mode="bilinear",
        align_corners=False,
    )
    return torch.stack([m[:, i : i + height, j : j + width] for m, (i, j) in zip(large, corners, strict=True)])


@lru_cache(maxsize=16)  # the batches of a run: a verdict runs RISE on many models and targets with the same masks
def _rise_grids(
    indices: range, cells: int, cell_size: tuple[int, int], keep_probability: float, seed: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Which cells of each grid are kept (K, 1, cells, cells), and where the image is cut out of each."""
    grids, corners = [], []
    for k in indices:
        generator = rng.step_generator(seed, k, torch.device("cpu"))
        grids.append(torch.rand(1, cells, cells, generator=generator) < keep_probability)
        top, left = (int(torch.randint(c, (), generator=generator)) for c in cell_size)
        corners.append((top, left))
    return torch.stack(grids), corners
