"""Masks: which players are kept, (K, A) bool. They depend on the number of players and the seed alone.

So rows with as many players share them. Drawn masks come in pairs z, 1 - z: what they have in common cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import rng

MOST = 2**22  # subsets that may be listed


@dataclass(frozen=True, eq=False)
class Draws:
    """Masks each once (U, A), and how the estimator uses them: number `at` (K,) with a weight, in clusters."""

    masks: Tensor  # (U, A) bool
    at: Tensor  # (K,) which mask each draw is
    weight: Tensor  # (K,) float64
    cluster: Tensor  # (K,) draws that depend on one another; -1: not drawn but listed, without an error of sampling

    @property
    def z(self) -> Tensor:
        """(K, A), float64."""
        return self.masks[self.at].double()


def leave_one_out(a: int) -> Tensor:
    """(A + 1, A): all kept, then each hidden alone."""
    return torch.cat([torch.ones(1, a, dtype=torch.bool), ~torch.eye(a, dtype=torch.bool)])


def every_subset(a: int) -> Tensor:
    """(2^A, A): mask number b keeps the players whose bit is set in b."""
    return (torch.arange(2**a)[:, None] >> torch.arange(a)[None]) & 1 > 0


def collected(masks: Tensor, weight: Tensor, cluster: Tensor) -> Draws:
    """Draws of which equal ones are run once."""
    own, at = (
        torch.unique(masks, dim=0, return_inverse=True)
        if masks.shape[1]
        else (masks[:1], cluster.new_zeros(len(masks)))
    )
    return Draws(own, at, weight, cluster)


# -- LIME: every subset equally likely ---------------------------------------------------------------------------------


def coin_flips(a: int, n: int, seed: int, *, once: bool = True) -> Draws:
    """n masks: all kept, then n - 1 each of which keeps every player with probability 1/2, independently.

    They are drawn together: the rows of a Hadamard matrix of +-1 (columns drawn without replacement, each turned by a
    coin, with every row's opposite) are an orthogonal array, in which every three players are kept in all eight ways
    equally often; each row by itself is an independent coin for every player. All subsets, where they are no more.
    `once=False` leaves equal masks as they are, for where running them costs less than finding them.
    """
    whole = torch.ones(1, a, dtype=torch.bool)
    if a <= math.log2(n):
        drawn = every_subset(a)
        weight, cluster = (
            torch.full((len(drawn),), (n - 1) / len(drawn), dtype=torch.float64),
            torch.full((len(drawn),), -1),
        )
    else:
        drawn = _orthogonal(a, n - 1, rng.step_generator(seed, a, torch.device("cpu")))
        weight, cluster = torch.ones(n - 1, dtype=torch.float64), torch.arange(n - 1) // 2
    weight = torch.cat([torch.ones(1, dtype=torch.float64), weight])
    masks, cluster = torch.cat([whole, drawn]), torch.cat([torch.full((1,), -1), cluster])
    return collected(masks, weight, cluster) if once else Draws(masks, torch.arange(len(masks)), weight, cluster)


def _orthogonal(a: int, n: int, generator: torch.Generator) -> Tensor:
    signs = torch.ones(1, 1, dtype=torch.bool)
    while len(signs) <= a:  # Sylvester's Hadamard matrices
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, ~signs], 1)])
    blocks, m = [], len(signs)
    for _ in range(-(-n // (2 * m))):
        columns = 1 + torch.randperm(m - 1, generator=generator)[:a]  # the first is constant
        rows = torch.randperm(m, generator=generator)
        turn = torch.randint(2, (a,), generator=generator).bool()
        z = signs[rows][:, columns] ^ turn
        blocks.append(torch.stack([z, ~z], 1).flatten(0, 1))
    return torch.cat(blocks)[:n]


# -- Shapley's kernel --------------------------------------------------------------------------------------------------


def shapley_pairs(a: int, n: int, seed: int) -> Draws:
    """At most n masks of 1 to A - 1 players, in pairs, weighted as Shapley's kernel weighs all of them together.

    Sizes of which the budget holds all subsets are listed (Lundberg & Lee's own code does so); of the others pairs are
    drawn (Covert & Lee 2021), their sizes by systematic sampling and their players in turn, so that each comes up
    about equally often. Weights sum to the kernel's (1 for each size's share 1 / (s (A - s))).
    """
    sizes = list(range(1, a // 2 + 1))  # the smaller of a pair
    share = {s: (1 if 2 * s == a else 2) / (s * (a - s)) for s in sizes}  # of the kernel, a pair of sizes together
    listed, left = [], n // 2
    for s in sizes:
        pairs = math.comb(a, s) // (2 if 2 * s == a else 1)
        rest = sum(share[r] for r in sizes if r not in listed)
        if pairs > left * share[s] / rest * (1 + 1e-9):
            break
        listed.append(s)
        left -= pairs
    found = [_listed(a, s, share[s]) for s in listed]
    drawn = [s for s in sizes if s not in listed]
    if drawn and left:
        found.append(_drawn(a, drawn, share, left, rng.step_generator(seed, a, torch.device("cpu"))))
    masks, weight, cluster = (torch.cat(h) for h in zip(*found, strict=True))
    return collected(masks, weight, cluster)


def _listed(a: int, s: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """All subsets of s players and their opposites."""
    some = torch.combinations(torch.arange(a), s) if s else torch.zeros(1, 0, dtype=torch.long)
    z = torch.zeros(len(some), a, dtype=torch.bool).scatter_(1, some, True)
    z = z if 2 * s == a else torch.cat([z, ~z])
    return z, torch.full((len(z),), share / len(z), dtype=torch.float64), torch.full((len(z),), -1)


def _drawn(
    a: int, sizes: list[int], share: dict[int, float], pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    mass = torch.tensor([share[s] for s in sizes], dtype=torch.float64)
    at = (torch.arange(pairs) + torch.rand(1, generator=generator, dtype=torch.float64)) / pairs
    which = torch.bucketize(at, mass.cumsum(0) / mass.sum(), right=True).clamp(max=len(sizes) - 1)
    each = [int(c) for c in torch.bincount(which, minlength=len(sizes))]
    z = torch.cat([_in_turn(a, s, count, generator) for s, count in zip(sizes, each, strict=True)])
    z = torch.stack([z, ~z], 1).flatten(0, 1)
    weight = torch.full((2 * pairs,), float(mass.sum()) / (2 * pairs), dtype=torch.float64)
    return z, weight, torch.arange(2 * pairs) // 2


def _in_turn(a: int, s: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, A): s players each, taken in turn from one shuffling after another; each is a uniform draw by itself."""
    z, queue = torch.zeros(count, a, dtype=torch.bool), list[int]()
    for row in z:
        if len(queue) < s:
            order = torch.randperm(a, generator=generator).tolist()
            first = [p for p in order if p not in queue]
            queue += first + [p for p in order if p not in first]
        row[queue[:s]] = True
        queue = queue[s:]
    return z


# -- RISE --------------------------------------------------------------------------------------------------------------


def grids(numbers: range, size: tuple[int, int], cells: int, keep: float, seed: int, like: Tensor) -> Tensor:
    """RISE's masks (K, 1, H, W) in [0, 1]: coarse grids, each cell kept with a probability, enlarged and shifted.

    Petsiuk et al. 2018, section 3.2: a grid of cells x cells is enlarged bilinearly to (cells + 1) cells of the image,
    and the image's size cut out of it at a random place. Each mask is keyed by (seed, its number).
    """
    height, width = size
    cell = -(-height // cells), -(-width // cells)
    coarse, corners = [], []
    for k in numbers:
        generator = rng.step_generator(seed, k, torch.device("cpu"))
        coarse.append(torch.rand(cells, cells, generator=generator) < keep)
        corners.append([int(torch.randint(c, (), generator=generator)) for c in cell])
    whole = torch.stack(coarse).to(like)[:, None]
    large = F.interpolate(whole, ((cells + 1) * cell[0], (cells + 1) * cell[1]), mode="bilinear", align_corners=False)
    return torch.stack([m[:, i : i + height, j : j + width] for m, (i, j) in zip(large, corners, strict=True)])
