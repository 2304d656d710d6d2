"""Integrated gradients' adaptive points against one example, one point and one piece of the line at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.attribution import integrated_gradients


def evaluated_at(model: nn.Module, inputs: Any, x: Tensor, k: int) -> tuple[float, Tensor]:
    """The score and its gradient, by autograd alone."""
    h = x.clone().requires_grad_()
    score = model(inputs.encode(h[None]))[0, k]
    return score.item(), torch.autograd.grad(score, h)[0]


def literal(model: nn.Module, inputs: Any, x: Tensor, k: int, tol: float, most: int = 50) -> tuple[Tensor, int]:
    """The map and the number of points: cut the pieces of the line where scores and gradients disagree most."""
    zero = torch.zeros_like(x)
    low, high = (evaluated_at(model, inputs, z, k)[0] for z in (zero, x))
    bound = max(tol * abs(high - low), 4 * torch.finfo(x.dtype).eps * (abs(high) + abs(low)))
    first = min(16, max(4, math.ceil(1 / (4 * tol))))
    points = {t: evaluated_at(model, inputs, t * x, k) for t in ((i + 0.5) / first for i in range(first))}
    while True:
        ts = sorted(points)
        edges, total, apart = [0.0, *ts, 1.0], torch.zeros_like(x), list[float]()
        scores = [low, *(points[t][0] for t in ts), high]
        for i, (a, b) in enumerate(pairwise(edges)):
            beside = [points[t][1] for t in (a, b) if t in points]  # one gradient at the line's ends, else two
            mean = sum(beside) / len(beside)
            total += (b - a) * mean
            apart.append(abs((b - a) * float((mean * x).sum()) - (scores[i + 1] - scores[i])))
        if abs(float((total * x).sum()) - (high - low)) <= bound or len(points) >= most:
            return total * x, len(points)
        n = len(points)
        matter = sum(h > bound / (4 * n) for h in apart)
        few = min(max(matter, 1), max(1, n // 8), 8, most - n)
        worst = sorted(range(len(apart)), key=lambda i: -apart[i])[: 2 ** int(math.log2(few))]
        for i in worst:
            share = 1 / 3 if i == 0 else 2 / 3 if i == n else 0.5
            t = edges[i] + share * (edges[i + 1] - edges[i])
            points[t] = evaluated_at(model, inputs, t * x, k)


@pytest.mark.parametrize("tol", [0.3, 0.05, 0.01, 3e-3])
@pytest.mark.parametrize("name", ["plain", "batchnorm", "residual"])
def test_points_go_where_the_literal_loop_puts_them(name: str, tol: float) -> None:
    entry = awkward.get_model(name, torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images(4).double()
    y = box.predict(x)
    found = integrated_gradients(box, x, y, tol=tol, max_steps=50)
    for i in range(4):
        want, steps = literal(entry.model, entry.inputs, x[i], int(y[i]), tol)
        assert int(found.n_steps[i]) == steps
        assert torch.allclose(found.map[i], want, rtol=1e-9, atol=1e-12)


def test_no_more_calls_than_captum_needs_for_the_same_completeness_error() -> None:
    """Every row that runs counts, the two ends' scores too; captum's are its gradients alone."""
    model, inputs = ub.zoo.load("mnist-cnn")
    box = ub.Box(model, inputs)
    x, _ = ub.data.digits("test").first(20)
    y, each = box.predict(x), torch.arange(20)
    difference = (box(x) - box(torch.zeros_like(x)))[each, y]
    peer = IntegratedGradients(lambda z: model(inputs.encode(z)))
    for tol in (0.05, 0.01):
        found = integrated_gradients(box, x, y, tol=tol)
        assert bool(found.converged.all())
        hardest = torch.arange(4)  # one example that is not there is enough
        for steps in range(2, math.ceil(float((found.n_steps + 2).double().mean()))):  # with fewer, captum is not there
            for rows in (hardest, each):
                sums = peer.attribute(x[rows], target=y[rows], n_steps=steps).flatten(1).sum(1)
                off = (sums / difference[rows] - 1).abs()
                if bool((off > tol).any()):
                    break
            assert bool((off > tol).any()), (tol, steps)
            hardest = rows[off.topk(4).indices]


def test_how_far_maps_are_from_the_limit() -> None:
    """A completeness error vouches for no pixel; the first evaluations leave the map about twice as far off."""
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    x, _ = ub.data.digits("test").first(6)
    limit = integrated_gradients(box, x, n_steps=100).map
    off = [
        float(((integrated_gradients(box, x, tol=tol).map - limit).abs().flatten(1).sum(1)
               / limit.abs().flatten(1).sum(1)).mean())
        for tol in (0.05, 0.01, 0.005)
    ]  # fmt: skip
    assert 0.05 < off[0] < 0.1  # a completeness error of 0.05 was asked for
    assert 0.01 < off[2] <= off[1] < 0.03
