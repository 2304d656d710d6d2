"""Top examples and statistics against the whole matrix of activations, sorted and counted by hand."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.activations import statistics, top_examples

N, K = 41, 5


@cache
def small() -> tuple[ub.Box, Tensor]:
    entry = awkward.get_model("plain", torch.float64)
    return ub.Box(entry.model, entry.inputs), entry.images(N)


def matrix(box: ub.Box, x: Tensor, path: str, axis: int = 1) -> Tensor:
    """(N, C, P), every value at once."""
    return box.read(x, path)[path].movedim(axis, 1).flatten(2)


def ranked(scores: list[float]) -> list[int]:
    """The best first; of equals the earlier one."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:K]


@pytest.mark.parametrize("rank_by", ["max", "mean"])
@pytest.mark.parametrize("size", [1, 4, 7, 41, "auto"])
@pytest.mark.parametrize("path", ["conv1", "relu2", "fc", "logits"])
def test_top_examples_of_the_full_matrix(rank_by: Any, size: Any, path: str) -> None:
    box, x = small()
    h = matrix(box, x, path) if path not in ("fc", "logits") else box.read(x, path)[path][..., None]
    (top,) = top_examples(box, x, [path], K, rank_by=rank_by, batch_size=size)
    scores = h.amax(2) if rank_by == "max" else h.mean(2)
    for c in range(h.shape[1]):
        best = ranked([float(f"{s:.12f}") for s in scores[:, c]])
        assert top.example_index[c].tolist() == best
        torch.testing.assert_close(top.value[c], scores[best, c])
        for i, at in zip(best, top.position[c].tolist(), strict=True):
            flat = at[0] * round(math.sqrt(h.shape[2])) + at[1] if at else 0
            assert h[i, c, flat] == h[i, c].max()


def cosine(u: Tensor, v: Tensor) -> float:
    size = float(u.norm() * v.norm())
    return float(u @ v) / size if size else 0.0


def mean_distance(f: Tensor) -> float:
    pairs = [(i, j) for i in range(len(f)) for j in range(i)]
    return 1 - sum(cosine(f[i], f[j]) for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("size", [3, "auto"])
def test_the_mean_distance_pair_by_pair(size: Any) -> None:
    box, x = small()
    (top,) = top_examples(box, x, ["conv2"], K, batch_size=size)
    f = box.read(x, "fc:input")["fc:input"]
    assert top.features == "fc:input"
    assert top.baseline_distance == pytest.approx(mean_distance(f), abs=1e-12)
    for c in range(4):
        assert float(top.mean_distance[c]) == pytest.approx(mean_distance(f[top.example_index[c]]), abs=1e-12)


@pytest.mark.parametrize("of", ["positions", "max", "mean"])
@pytest.mark.parametrize("size", [1, 6, "auto"])
@pytest.mark.parametrize("path", ["conv1", "relu1", "conv2"])
def test_statistics_of_the_full_matrix(of: Any, size: Any, path: str) -> None:
    box, x = small()
    (result,) = statistics(box, x, [path], histogram_of=of, batch_size=size)
    h = matrix(box, x, path)
    values = h.transpose(0, 1).flatten(1)  # (C, N * P)
    torch.testing.assert_close(result.mean, values.mean(1))
    torch.testing.assert_close(result.std, values.std(1, correction=0))
    assert torch.equal(result.minimum, values.amin(1))
    assert torch.equal(result.maximum, values.amax(1))
    torch.testing.assert_close(result.active_fraction, (h.amax(2) > 0).double().mean(0))
    counted = {"positions": values, "max": h.amax(2).T, "mean": h.mean(2).T}[of]
    for c in range(len(values)):
        assert result.counts[c].tolist() == by_hand(counted[c].tolist(), result.edges[c].tolist())


def by_hand(values: list[float], edges: list[float]) -> list[int]:
    bins = list(pairwise(edges))
    counts = [sum(a <= v < b for v in values) for a, b in bins]
    assert sum(counts) == len(values)  # none lies outside
    width = bins[0][1] - bins[0][0]
    assert math.log2(width) == round(math.log2(width))
    finer = math.floor(max(values) / (width / 2)) - math.floor(min(values) / (width / 2)) + 1
    assert finer > len(bins) or width < max(map(abs, values)) * 2e-6  # no narrower bins would hold all
    return counts


def test_a_pass_is_the_same_for_every_order_of_growth() -> None:
    """Values that grow by orders of magnitude, or shrink, or come all at once: the same histogram."""
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval(), ub.Pixels((1, 1, 1)))
    with torch.no_grad():
        box.model[1].weight.copy_(torch.tensor([[1.0], [-3.0]]))
        box.model[1].bias.zero_()
    x = torch.logspace(-6, 0, 50).view(-1, 1, 1, 1)
    want = statistics(box, x, "1")[0]
    for data, size in ((x, 1), (x.flip(0), 1), (x.flip(0), 7), (x, 13)):
        result = statistics(box, data, "1", batch_size=size)[0]
        assert torch.equal(result.counts, want.counts)
        assert torch.equal(result.edges, want.edges)
        assert result.counts.sum(1).tolist() == [50, 50]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_standard_deviation_of_values_with_a_large_mean(dtype: torch.dtype) -> None:
    """A variance is no difference of two large squares: units with mean 0 to 1e4 and standard deviation .1."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1)).to(dtype).eval()
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 100.0, 10_000.0]))
    box = ub.Box(model, ub.Pixels((1, 12, 12)), outputs="regression")
    x = torch.rand(30, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    (result,) = statistics(box, x, "0", batch_size=7)
    want = box.read(x, "0")["0"].double().transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(result.std.double(), want, rtol=1e-4, atol=0)
