"""WEAT and debiasing written from the papers' equations, with loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from unboxed.language import BiasWords, WordVectors, bias_direction, biased_analogies, hard_debias, weat
from unboxed.language.debias import _soft_debias_transform
from unboxed.language.weat import _random_subset_indices

Vector = Any


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def association(w: Vector, a: Sequence[Vector], b: Sequence[Vector]) -> float:
    """s(w, A, B) of Caliskan et al. 2017."""
    return sum(cosine(w, x) for x in a) / len(a) - sum(cosine(w, x) for x in b) / len(b)


def effect_size(x: Any, y: Any, a: Any, b: Any, ddof: int) -> float:
    """(mean s(x) - mean s(y)) / std s(w)."""
    first, second = [association(w, a, b) for w in x], [association(w, a, b) for w in y]
    both = first + second
    mean = sum(both) / len(both)
    std = math.sqrt(sum((s - mean) ** 2 for s in both) / (len(both) - ddof))
    return (sum(first) / len(first) - sum(second) / len(second)) / std


def permutation_p(x: Any, y: Any, a: Any, b: Any) -> float:
    """The share of partitions into sets of the same sizes whose effect is at least the observed one: all of them."""
    s = [association(w, a, b) for w in [*x, *y]]
    n = len(x)

    def difference(first: Sequence[int]) -> float:
        second = [i for i in range(len(s)) if i not in first]
        return sum(s[i] for i in first) / n - sum(s[i] for i in second) / len(second)

    observed, partitions = difference(range(n)), list(combinations(range(len(s)), n))
    return sum(difference(p) >= observed - 1e-12 for p in partitions) / len(partitions)


def eigen_direction(pairs: Sequence[tuple[Vector, Vector]]) -> tuple[Vector, float]:
    """The first eigenvector of C (Bolukbasi et al. 2016, section 5.1) and its share, of vectors at length 1."""
    c = 0
    for pair in pairs:
        unit = [v / np.linalg.norm(v) for v in pair]
        mean = sum(unit) / len(unit)
        c = c + sum(np.outer(v - mean, v - mean) for v in unit) / len(unit)
    values, vectors = np.linalg.eigh(c)
    return vectors[:, -1], values[-1] / values.sum()


def neutralize(w: Vector, g: Vector) -> Vector:
    rest = w - (w @ g) * g
    return rest / np.linalg.norm(rest)


def equalize(words: Sequence[Vector], g: Vector) -> list[Vector]:
    """Section 6, step 2a: nu + sqrt(1 - |nu|^2) (w_B - mu_B) / |w_B - mu_B|."""
    unit = [w / np.linalg.norm(w) for w in words]
    mu = sum(unit) / len(unit)
    mu_b = (mu @ g) * g
    nu = mu - mu_b
    out = []
    for w in unit:
        w_b = (w @ g) * g
        out.append(nu + math.sqrt(1 - nu @ nu) * (w_b - mu_b) / np.linalg.norm(w_b - mu_b))
    return out


def soft_objective(t: Any, w: Any, n: Any, b: Any, weight: float) -> Any:
    """|(TW)'(TW) - W'W|_F^2 + lambda |(TN)'(TB)|_F^2 with words in columns, of torch tensors."""
    kept = (t @ w).T @ (t @ w) - w.T @ w
    removed = (t @ n).T @ (t @ b)
    return kept.square().sum() + weight * removed.square().sum()


def analogies(words: Sequence[str], unit: Any, a: str, b: str, delta: float) -> list[tuple[str, str, float]]:
    """Eq. 1, over all pairs; the best pair of each x."""
    difference = unit[words.index(a)] - unit[words.index(b)]
    best = dict[str, tuple[str, str, float]]()
    for i, x in enumerate(words):
        for j, y in enumerate(words):
            between = unit[i] - unit[j]
            if i != j and not {x, y} & {a, b} and 0 < np.linalg.norm(between) <= delta:
                score = cosine(difference, between)
                if score > 0 and score > best.get(x, ("", "", 0.0))[2]:
                    best[x] = (x, y, score)
    return sorted(best.values(), key=lambda entry: -entry[2])


# -- ours against them -------------------------------------------------------------------------------------------------


def random_vectors(n: int, d: int, seed: int = 0) -> WordVectors:
    generator = torch.Generator().manual_seed(seed)
    return WordVectors([f"w{i}" for i in range(n)], torch.randn(n, d, generator=generator, dtype=torch.float64))


def split(words: Sequence[str], *sizes: int) -> list[list[str]]:
    ends = np.cumsum(sizes)
    return [list(words[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [(4, 4, 3, 5), (3, 5, 2, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weat_is_the_paper_s(sizes: tuple[int, ...], ddof: int, seed: int) -> None:
    vectors = random_vectors(sum(sizes), 6, seed)
    x, y, a, b = split(vectors.words, *sizes)
    result = weat(vectors, {"x": x, "y": y}, {"a": a, "b": b}, ddof=ddof)
    arrays = [[vectors[w].numpy() for w in words] for words in (x, y, a, b)]
    assert result.effect_size == pytest.approx(effect_size(*arrays, ddof=ddof), abs=1e-12)
    assert result.exact
    assert result.n_partitions == math.comb(len(x) + len(y), len(x))
    assert result.p_value == permutation_p(*arrays)
    assert result.associations["x"][x[0]] == pytest.approx(association(arrays[0][0], arrays[2], arrays[3]), abs=1e-12)


def test_ties_count_as_at_least() -> None:
    """Words in pairs of equal vectors: many partitions tie with the observed one."""
    v = torch.tensor([[1.0, 0], [1, 0.1], [1, 0], [1, 0.1], [0.3, 1], [0, 1]], dtype=torch.float64)
    vectors = WordVectors(["x1", "x2", "y1", "y2", "a", "b"], v)
    extra = WordVectors([*vectors.words, "a2", "b2"], torch.cat([v, v[4:]]))
    sets = [["x1", "x2"], ["y1", "y2"], ["a", "a2"], ["b", "b2"]]
    result = weat(extra, {"x": sets[0], "y": sets[1]}, {"a": sets[2], "b": sets[3]})
    arrays = [[extra[w].numpy() for w in s] for s in sets]
    assert result.p_value == permutation_p(*arrays) == 5 / 6


def test_random_partitions_agree_with_all_of_them() -> None:
    vectors = random_vectors(24, 5, 3)
    x, y, a, b = split(vectors.words, 9, 9, 3, 3)
    exact = weat(vectors, {"x": x, "y": y}, {"a": a, "b": b})
    assert exact.exact
    s = torch.tensor([*exact.associations["x"].values(), *exact.associations["y"].values()])
    subsets = _random_subset_indices(18, 9, 50_000, 0)  # (P, 9)
    assert bool((subsets.sort(1).values.diff(dim=1) > 0).all())
    counts = torch.bincount(subsets.flatten(), minlength=18).double() / 50_000
    assert torch.allclose(counts, torch.full_like(counts, 0.5), atol=0.01)
    share = float((s[subsets].sum(1) >= s[:9].sum()).double().mean())
    assert share == pytest.approx(exact.p_value, abs=0.01)


def test_the_direction_is_the_paper_s() -> None:
    vectors = random_vectors(8, 5)
    pairs = [("w0", "w1"), ("w2", "w3"), ("w4", "w5")]
    ours = bias_direction(vectors, BiasWords(pairs))
    direction, share = eigen_direction([(vectors[a].numpy(), vectors[b].numpy()) for a, b in pairs])
    assert abs(float(ours.direction @ torch.from_numpy(direction))) == pytest.approx(1, abs=1e-12)
    assert float(ours.explained_variance[0]) == pytest.approx(share, abs=1e-12)


def test_hard_debiasing_is_the_paper_s() -> None:
    vectors = random_vectors(40, 7)
    words = BiasWords([("w0", "w1"), ("w2", "w3")], equalize=[("w0", "w1"), ("w4", "w5", "w6")])
    result = hard_debias(vectors, words)
    g = bias_direction(vectors, words).direction.numpy()
    for word in vectors.words[7:]:
        w = vectors[word].numpy()
        assert np.allclose(result.vectors[word].numpy(), neutralize(w / np.linalg.norm(w), g), atol=1e-12)
    for s in words.equalize:
        for word, expected in zip(s, equalize([vectors[w].numpy() for w in s], g), strict=True):
            assert np.allclose(result.vectors[word].numpy(), expected, atol=1e-12)
    untouched = vectors["w2"] / vectors["w2"].norm()
    assert torch.allclose(result.vectors["w2"], untouched)


@pytest.mark.parametrize("weight", [0.2, 5.0, 200.0])
def test_soft_debiasing_is_the_minimum(weight: float) -> None:
    """No step of a long optimization of the paper's objective over T finds a lower value than ours."""
    unit = random_vectors(30, 4).unit
    neutral, basis = unit[6:], torch.linalg.qr(unit[:4].T).Q.T[:1]
    transform = _soft_debias_transform(unit.T @ unit, neutral.T @ neutral, basis, weight)
    ours = float(soft_objective(transform, unit.T, neutral.T, basis.T, weight))
    t = torch.eye(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([t], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = soft_objective(t, unit.T, neutral.T, basis.T, weight)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert ours == pytest.approx(closure().item(), rel=1e-7)
    assert ours < float(soft_objective(torch.eye(4, dtype=torch.float64), unit.T, neutral.T, basis.T, weight))


def test_analogies_are_the_paper_s() -> None:
    vectors = random_vectors(25, 3)
    ours = biased_analogies(vectors, ("w0", "w1"), n=10)
    expected = analogies(list(vectors.words), vectors.unit.numpy(), "w0", "w1", 1.0)[:10]
    assert [(a.x, a.y) for a in ours] == [(x, y) for x, y, _ in expected]
    assert [a.score for a in ours] == pytest.approx([score for _, _, score in expected], abs=1e-9)


def test_analogy_and_nearest_are_3cosadd() -> None:
    vectors = random_vectors(25, 5)
    unit = {w: (vectors[w] / vectors[w].norm()).numpy() for w in vectors.words}
    target = unit["w1"] - unit["w0"] + unit["w2"]
    expected = max((w for w in vectors.words if w not in ("w0", "w1", "w2")), key=lambda w: cosine(unit[w], target))
    (word, value), *_ = vectors.analogy("w0", "w1", "w2")
    assert (word, value) == (expected, pytest.approx(cosine(unit[expected], target)))
    by_similarity = sorted((w for w in vectors.words if w != "w3"), key=lambda w: -cosine(unit[w], unit["w3"]))
    assert [w for w, _ in vectors.nearest("w3", 6)] == by_similarity[:6]
