"""Every objective inside the model against its formula written out in loops over numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from models import normal as drawn
from unboxed.objectives import (
    Objective,
    alpha_norm,
    channel,
    color_distance,
    cosine,
    direction,
    diversity,
    dot,
    energy,
    gram_matrix,
    match,
    neuron,
    spatial,
    style,
    total_variation,
)

N, C, H, W = 3, 4, 3, 5
PLACES = list(product(range(H), range(W)))


ACTS, OTHER = drawn(N, C, H, W), drawn(N, C, H, W, seed=1)
FLAT, FLAT_OTHER = drawn(N, C), drawn(N, C, seed=1)
UNITS, ROWS = torch.tensor([3, 0, 2]), torch.tensor([2, 0, 1])


def per_row(score: Callable[[Tensor, int], float], h: Tensor = ACTS) -> Tensor:
    return torch.tensor([score(h[n], n) for n in range(len(h))], dtype=torch.float64)


def inner(a: Iterator[float] | list[float], b: Iterator[float] | list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def numbers(h: Tensor) -> list[float]:
    values: list[float] = h.flatten().tolist()
    return values


def grams(h: Tensor) -> list[list[float]]:
    """G[a][b] of one example (C, ...), as a mean over positions."""
    rows = [numbers(c) for c in h]
    return [[inner(a, b) / len(a) for b in rows] for a in rows]


def caricature(h: Tensor, other: Tensor, power: float) -> float:
    total = 0.0
    for y, x in PLACES:
        a, b = numbers(h[:, y, x]), numbers(other[:, y, x])
        along = inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))
        total += inner(a, b) * max(0.1, along) ** power
    return total


def gatys(h: Tensor, other: Tensor) -> float:
    now, then = grams(h), grams(other)
    return -sum((now[a][b] - then[a][b]) ** 2 for a in range(C) for b in range(C)) / (4 * C**2)


def alike(a: Tensor, b: Tensor) -> float:
    p, q = ([v for row in grams(h) for v in row] for h in (a, b))
    return inner(p, q) / math.sqrt(inner(p, p) * inner(q, q))


def diverse(h: Tensor, n: int, groups: list[int]) -> float:
    others = [alike(ACTS[n], ACTS[m]) for m in range(N) if m != n and groups[m] == groups[n]]
    return -sum(others) / max(1, len(others))


def far(h: Tensor, other: Tensor) -> float:
    return sum((a - b) ** 2 for a, b in zip(numbers(h), numbers(other), strict=True))


def size(h: Tensor) -> float:
    return math.sqrt(inner(numbers(h), numbers(h)))


CASES: dict[str, tuple[Objective, Tensor, Callable[[Tensor, int], float]]] = {
    "channel": (channel("h", 2), ACTS, lambda h, n: sum(numbers(h[2])) / (H * W)),
    "channel, the last": (channel("h", -1), ACTS, lambda h, n: sum(numbers(h[3])) / (H * W)),
    "channels": (channel("h", UNITS), ACTS, lambda h, n: sum(numbers(h[int(UNITS[n])])) / (H * W)),
    "unit": (channel("h", UNITS), FLAT, lambda h, n: h[int(UNITS[n])].item()),
    "neuron": (neuron("h", 1, 2, 4), ACTS, lambda h, n: h[1, 2, 4].item()),
    "neuron, central": (neuron("h", 1), ACTS, lambda h, n: h[1, 1, 2].item()),
    "neurons": (neuron("h", UNITS, ROWS, 3), ACTS, lambda h, n: h[int(UNITS[n]), int(ROWS[n]), 3].item()),
    "neuron without positions": (neuron("h", 1), FLAT, lambda h, n: h[1].item()),
    "spatial": (spatial("h", 0, 4), ACTS, lambda h, n: sum(v * v for v in numbers(h[:, 0, 4])) / C),
    "spatial, central": (spatial("h"), ACTS, lambda h, n: sum(v * v for v in numbers(h[:, 1, 2])) / C),
    "spatial, one each": (spatial("h", ROWS, 0), ACTS,
                          lambda h, n: sum(v * v for v in numbers(h[:, int(ROWS[n]), 0])) / C),
    "spatial without positions": (spatial("h"), FLAT, lambda h, n: sum(v * v for v in numbers(h)) / C),
    "energy": (energy("h"), ACTS, lambda h, n: sum(v * v for v in numbers(h)) / (C * H * W)),
    "direction": (direction("h", FLAT[0]), ACTS,
                  lambda h, n: sum(inner(numbers(h[:, y, x]), numbers(FLAT[0])) for y, x in PLACES) / (H * W)),
    "direction, whole": (direction("h", OTHER[0]), ACTS, lambda h, n: inner(numbers(h), numbers(OTHER[0]))),
    "match": (match("h", OTHER), ACTS, lambda h, n: -far(h, OTHER[n])),
    "match, one for all": (match("h", OTHER[:1]), ACTS, lambda h, n: -far(h, OTHER[0])),
    "match, relative": (match("h", OTHER, relative=True), ACTS, lambda h, n: -far(h, OTHER[n]) / size(OTHER[n]) ** 2),
    "dot": (dot("h", OTHER), ACTS, lambda h, n: inner(numbers(h), numbers(OTHER[n]))),
    "dot without positions": (dot("h", FLAT_OTHER), FLAT, lambda h, n: inner(numbers(h), numbers(FLAT_OTHER[n]))),
    "caricature": (dot("h", OTHER, power=2), ACTS, lambda h, n: caricature(h, OTHER[n], 2)),
    "caricature, one for all": (dot("h", OTHER[1:2], power=1), ACTS, lambda h, n: caricature(h, OTHER[1], 1)),
    "cosine": (cosine("h", OTHER), ACTS,
               lambda h, n: inner(numbers(h), numbers(OTHER[n])) / (size(h) * size(OTHER[n]))),
    "style": (style("h", gram_matrix(OTHER)), ACTS, lambda h, n: gatys(h, OTHER[n])),
    "style, one for all": (style("h", gram_matrix(OTHER[:1])), ACTS, lambda h, n: gatys(h, OTHER[0])),
    "style of another size": (style("h", gram_matrix(OTHER[..., :2])), ACTS, lambda h, n: gatys(h, OTHER[n, ..., :2])),
    "style without positions": (style("h", gram_matrix(FLAT_OTHER)), FLAT, lambda h, n: gatys(h, FLAT_OTHER[n])),
    "diversity": (diversity("h"), ACTS, lambda h, n: diverse(h, n, [0] * N)),
    "diversity in groups": (diversity("h", torch.tensor([0, 1, 0])), ACTS, lambda h, n: diverse(h, n, [0, 1, 0])),
}  # fmt: skip
EACH = [k for k, (o, _, _) in CASES.items() if o.n is not None and not o.batch_dependent]


@pytest.mark.parametrize("name", CASES)
def test_scores(name: str) -> None:
    objective, h, literal = CASES[name]
    assert torch.allclose(objective({"h": h}), per_row(literal, h), rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_rows(name: str) -> None:
    """Some examples, in another order, score as they did; by a slice, by a mask, by numbers."""
    objective, h, literal = CASES[name]
    if objective.batch_dependent:
        return
    want = per_row(literal, h)
    for index in (slice(1, 3), torch.tensor([True, False, True]), torch.tensor([2, 0]), slice(0, 1)):
        some = objective.rows(index)
        some.check_batch(len(want[index]))
        assert torch.allclose(some({"h": h[index]}), want[index], rtol=1e-12)
    assert torch.allclose(objective.rows(slice(1, 3)).rows(slice(1, 2))({"h": h[2:3]}), want[2:3], rtol=1e-12)


def test_what_holds_rows_says_so() -> None:
    assert {"channels", "neurons", "match", "caricature", "style", "cosine", "spatial, one each"} <= set(EACH)
    assert not any("for all" in name for name in EACH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_activations_are_scored_in_single_precision(dtype: torch.dtype) -> None:
    for name, (objective, h, _) in CASES.items():
        narrow = h.to(dtype)
        got = objective({"h": narrow})
        assert got.dtype == torch.float32, name
        assert torch.allclose(got.double(), objective({"h": narrow.double()}), rtol=1e-4, atol=1e-5), name


def test_one_example_has_nothing_to_differ_from() -> None:
    h = ACTS[:1].clone().requires_grad_()
    score = diversity("h")({"h": h})
    assert score.tolist() == [0]
    (grad,) = torch.autograd.grad(score.sum(), h)
    assert (grad == 0).all()


# ---- of the image ----------------------------------------------------------------------------------------------------

IMAGES = drawn(N, 2, H, W, seed=2).sigmoid()


def tv(x: Tensor, beta: float) -> float:
    total = 0.0
    for c, (i, j) in product(range(2), PLACES):
        across = (x[c, i, j + 1] - x[c, i, j]).item() if j + 1 < W else 0.0
        down = (x[c, i + 1, j] - x[c, i, j]).item() if i + 1 < H else 0.0
        total += (across**2 + down**2) ** (beta / 2)
    return total


def rough(x: Tensor) -> float:
    across = [abs(x[c, i, j + 1] - x[c, i, j]).item() for c in range(2) for i in range(H) for j in range(W - 1)]
    down = [abs(x[c, i + 1, j] - x[c, i, j]).item() for c in range(2) for i in range(H - 1) for j in range(W)]
    return sum(across) / len(across) + sum(down) / len(down)


MEAN = torch.tensor([0.2, 0.9])
OF_IMAGES: dict[str, tuple[Objective, Callable[[Tensor, int], float]]] = {
    "total variation": (total_variation(), lambda x, n: tv(x, 2)),
    "total variation 1": (total_variation(1), lambda x, n: tv(x, 1)),
    "total variation 3": (total_variation(3), lambda x, n: tv(x, 3)),
    "alpha norm": (alpha_norm(), lambda x, n: sum((v - 0.5) ** 6 for v in numbers(x))),
    "alpha norm 3": (alpha_norm(3, 0.2), lambda x, n: sum(abs(v - 0.2) ** 3 for v in numbers(x))),
    "anisotropic total variation": (total_variation(kind="anisotropic"), lambda x, n: rough(x)),
    "mean color": (color_distance(MEAN), lambda x, n: sum(
        (sum(numbers(x[c])) / (H * W) - MEAN.double()[c].item()) ** 2 for c in range(2))),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_IMAGES)
def test_scores_of_images(name: str) -> None:
    objective, literal = OF_IMAGES[name]
    want = per_row(literal, IMAGES)
    assert objective.layers == {"input"}
    assert torch.allclose(objective({"input": IMAGES}), want, rtol=1e-6)
    assert torch.allclose(objective.rows(slice(1, 2))({"input": IMAGES[1:2]}), want[1:2], rtol=1e-6)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_flat_images_have_a_slope(name: str) -> None:
    """Where an optimization starts all gray, no root and no power is divided by zero."""
    flat = torch.full((2, 2, H, W), 0.5, requires_grad=True)
    (grad,) = torch.autograd.grad(OF_IMAGES[name][0]({"input": flat}).sum(), flat)
    assert grad.isfinite().all()
