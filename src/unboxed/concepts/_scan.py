"""The tree scan: of all groups of a hierarchical clustering, those whose errors stand out most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.cluster.hierarchy import linkage
from torch import Tensor


class WardClusterTree:
    """All groups that Ward's hierarchical clustering of the points (N, D) goes through; the last is all of them."""

    def __init__(self, points: Tensor) -> None:
        self.n = len(points)
        merges = linkage(points.cpu().numpy(), "ward") if self.n > 1 else torch.zeros(0, 4).numpy()
        self.children: list[tuple[int, int]] = [(int(a), int(b)) for a, b, *_ in merges]

    def sum_per_group(self, values: Tensor) -> Tensor:
        """The sum over each group's points, of values (N,); single points are left out."""
        totals = values.double().tolist()
        for a, b in self.children:
            totals.append(totals[a] + totals[b])
        return torch.tensor(totals[self.n :], dtype=torch.float64)

    def members(self, group: int) -> Tensor:
        """(N,) bool: the points of a group."""
        is_member, pending = torch.zeros(self.n, dtype=torch.bool), [group + self.n]
        while pending:
            node = pending.pop()
            if node < self.n:
                is_member[node] = True
            else:
                pending += self.children[node - self.n]
        return is_member


def error_rate_log_likelihood_ratio(errors: Tensor, sizes: Tensor, all_errors: float, n: float) -> Tensor:
    """Of two error rates, inside and outside, against one for all; 0 where it is not higher inside (Kulldorff 1997)."""
    outside_errors, outside = all_errors - errors, n - sizes
    ratio = _bernoulli_log_likelihood(errors, sizes) + _bernoulli_log_likelihood(outside_errors, outside)
    ratio = ratio - _bernoulli_log_likelihood(torch.tensor(all_errors), torch.tensor(n))
    return torch.where(errors * outside > outside_errors * sizes, ratio, 0.0)


def _bernoulli_log_likelihood(errors: Tensor, n: Tensor) -> Tensor:
    rate = (errors / n.clamp_min(1)).double()
    return torch.xlogy(errors.double(), rate) + torch.xlogy((n - errors).double(), 1 - rate)


def find_high_error_groups(
    trees: Sequence[WardClusterTree], is_error: Tensor, min_size: int, max_groups: int, min_score: float
) -> list[tuple[int, Tensor]]:
    """(index of the tree, members (N,) bool) of the groups whose errors stand out most, one after the other.

    Each group is without the members of those before it; none holds more than half of the points.
    """
    free, found = torch.ones_like(is_error), list[tuple[int, Tensor]]()
    while len(found) < max_groups:
        scores = [_log_likelihood_ratio_scores(tree, is_error, free, min_size) for tree in trees]
        best = max(range(len(trees)), key=lambda i: float(scores[i].max()))
        if float(scores[best].max()) < min_score:
            break
        members = trees[best].members(int(scores[best].argmax())) & free
        found.append((best, members))
        free = free & ~members
    return found


def _log_likelihood_ratio_scores(tree: WardClusterTree, is_error: Tensor, free: Tensor, min_size: int) -> Tensor:
    """The log-likelihood ratio of each group, without the points that are not free; 0 for groups of another size."""
    errors, sizes, n = tree.sum_per_group(is_error & free), tree.sum_per_group(free), float(free.sum())
    scores = error_rate_log_likelihood_ratio(errors, sizes, float((is_error & free).sum()), n)
    fits = (sizes >= min_size) & (sizes <= n / 2)
    return torch.cat([torch.where(fits, scores, 0.0), scores.new_zeros(1)])  # one at least, where there is no group
