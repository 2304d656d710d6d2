"""APGD and Square against slow literal twins of the papers' algorithms, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.adversarial.apgd import APGD_RESTART_SEED_STRIDE
from unboxed.engine.optimize.constraints import L2, Linf, NormBall
from unboxed.rng import hashed_uniform

SHAPE = (1, 6, 6)


def opened(seed: int = 0, classes: int = 5, shape: tuple[int, int, int] = SHAPE) -> ub.Box:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = math.prod(shape)
        model = nn.Sequential(nn.Flatten(), nn.Linear(size, 30), nn.Tanh(), nn.Linear(30, classes)).double()
    with torch.no_grad():
        model[1].weight.mul_(3), model[3].weight.mul_(4)
    return ub.Box(model.requires_grad_(False), ub.Pixels(shape))


def images(n: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# ---- APGD: arXiv:2003.01690, Algorithm 1 -----------------------------------------------------------------------------

Score = Callable[[Tensor], Tensor]  # one image -> a number


def literal_apgd(f: Score, margin: Score, x: Tensor, x0: Tensor, eps: float, norm: str, steps: int) -> Tensor:
    """x_max, or the first iterate that fools. The step size is judged at w_j once f(x_{w_j}) is known."""

    def s(x: Tensor) -> Tensor:
        h = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(h), h)
        return g.sign() if norm == "linf" else g / g.norm()

    def project(z: Tensor) -> Tensor:
        d = z - x
        d = d.clamp(-eps, eps) if norm == "linf" else d * min(1.0, eps / float(d.norm().clamp_min(1e-300)))
        return (x + d).clamp(0, 1)

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(q * steps - 1e-9) for q in p]

    eta = 2 * eps
    if margin(x0) > 0:
        return x0
    xs, fs = [x0], [f(x0)]
    x_max, f_max = x0, fs[0]
    ups: list[bool] = []
    j, eta_then, f_then = 1, eta, f_max
    for k in range(steps):
        z = project(xs[k] + eta * s(xs[k]))
        new = z if k == 0 else project(xs[k] + 0.75 * (z - xs[k]) + 0.25 * (xs[k] - xs[k - 1]))
        value = f(new)
        ups.append(bool(value > fs[k]))
        if margin(new) > 0:
            return new
        if value > f_max:
            x_max, f_max = new, value
        if k + 1 == w[j]:
            first = sum(ups[w[j - 1] : w[j]]) < 0.75 * (w[j] - w[j - 1])
            second = eta == eta_then and bool(f_max == f_then)
            eta_then, f_then, j = eta, f_max, j + 1
            if first or second:
                eta, new, value = eta / 2, x_max, f_max
        xs.append(new)
        fs.append(value)
    return x_max


def of_loss(box: ub.Box, y: int, t: int, way: str) -> tuple[Score, Score]:
    def margin(x: Tensor) -> Tensor:
        z = box.model(x[None])[0]
        return torch.cat([z[:y], z[y + 1 :]]).max() - z[y]

    def f(x: Tensor) -> Tensor:
        z = box.model(x[None])[0]
        order = z.sort().values.flip(0)  # z_pi1 >= z_pi2 >= ...
        if way == "ce":
            return -z.log_softmax(0)[y]
        if way == "dlr":
            return margin(x) / (order[0] - order[2])
        return -(z[y] - z[t]) / (order[0] - (order[2] + order[3]) / 2)

    return f, margin


def tried(margin: Score, tries: list[Tensor]) -> Tensor:
    """The first that fools, else that which comes nearest to it."""
    fools = [x for x in tries if margin(x) > 0]
    return fools[0] if fools else max(tries, key=lambda x: float(margin(x)))


EPS = {"linf": (0.02, 0.12), "l2": (0.1, 0.5)}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("way", ["ce", "dlr", "targeted"])
def test_apgd_is_the_papers_algorithm(norm: str, way: str) -> None:
    box, x, steps = opened(), images(4), 40
    y = box.predict(x)
    fooled = list[bool]()
    for eps in EPS[norm]:
        how = {"n_targets": 2} if way == "targeted" else {"loss": way, "restarts": 2}
        got = ub.adversarial.apgd(box, x, y, eps=eps, norm=norm, steps=steps, seed=4, **how)
        ball: NormBall = (Linf if norm == "linf" else L2)(eps)
        starts = [ball.sample(x, 4 + APGD_RESTART_SEED_STRIDE * run).clamp(0, 1) for run in range(2)]
        for i in range(len(x)):
            order = box(x[i : i + 1])[0].argsort(descending=True)[1:].tolist()
            tries = list[Tensor]()
            for run in range(2):
                f, margin = of_loss(box, int(y[i]), order[run], way)
                tries.append(literal_apgd(f, margin, x[i], starts[run][i], eps, norm, steps))
                if margin(tries[-1]) > 0:
                    break
            want = tried(margin, tries)
            assert bool(got.success[i]) == bool(margin(want) > 0)
            assert torch.allclose(got.images[i], want, atol=1e-9), (norm, way, eps, i)
        fooled += got.success.tolist()
    assert any(fooled)  # both ends are met
    assert not all(fooled)


# ---- Square: arXiv:1912.00049, Algorithms 1 to 3 ---------------------------------------------------------------------


def literal_side(i: int, n: int, p: float, w: int) -> int:
    for after in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        if i * 10_000 > after * n:
            p /= 2
    return min(w, max(1, round((p * w * w) ** 0.5)))


def literal_eta(h: int) -> Tensor:
    """Section 3.4, the sums spelled out."""

    def rect(h1: int, h2: int) -> Tensor:
        n, eta = h1 // 2, torch.zeros(h1, h2, dtype=torch.float64)
        for r in range(1, h1 + 1):
            for s in range(1, h2 + 1):
                m = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
                eta[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
        return eta

    k = h // 2
    eta = torch.cat([rect(h, k), -rect(h, h - k)], 1)
    return (eta / eta.norm()).T


def start(x: Tensor, row: int, eps: float, norm: str, seed: int) -> Tensor:
    c, h, w = x.shape
    if norm == "linf":
        u = hashed_uniform(2 * seed, torch.tensor([row]), 0, c * w).view(c, 1, w)
        return (x + torch.where(u < 0.5, eps, -eps).double().sign() * eps).clamp(0, 1)
    side = max(1, h // 5)
    n, nu = h // side, torch.zeros_like(x)
    u = hashed_uniform(2 * seed, torch.tensor([row]), 0, (c + 1) * n * n).view(c + 1, n, n)
    at = (h - n * side) // 2
    for i in range(n):
        for j in range(n):
            for k in range(c):
                eta = literal_eta(side).T if u[c, i, j] < 0.5 else literal_eta(side)
                a, b = at + i * side, at + j * side
                nu[k, a : a + side, b : b + side] = eta * (1 if u[k, i, j] < 0.5 else -1)
    return (x + nu * eps / nu.norm()).clamp(0, 1)


def linf_delta(x_hat: Tensor, x: Tensor, u: Tensor, h: int, eps: float) -> Tensor:
    c, w, _ = x.shape
    r, s = (int(u[i] * (w - h + 1)) for i in (0, 1))
    up = [bool(u[3 + i] < 0.5) for i in range(c)]
    for again in (False, True):
        if again:  # as the authors' code: not the same image again
            code = 1 + int(float(u[2]) * (2**c - 1))
            up = [a != bool(code >> i & 1) for i, a in enumerate(up)]
        delta = torch.zeros_like(x)
        for i in range(c):
            delta[i, r : r + h, s : s + h] = 2 * eps if up[i] else -2 * eps
        new = (x + (x_hat + delta - x).clamp(-eps, eps)).clamp(0, 1)
        if not torch.allclose(new, x_hat, rtol=0, atol=1e-12):
            return new
    return new


def l2_delta(x_hat: Tensor, x: Tensor, u: Tensor, h: int, eps: float) -> Tensor:
    c, w, _ = x.shape
    nu = x_hat - x
    r1, s1, r2, s2 = (int(u[i] * (w - h + 1)) for i in range(4))
    eta = literal_eta(h).T if u[4] < 0.5 else literal_eta(h)
    unused = max(0.0, eps**2 - float(nu.norm()) ** 2)
    for i in range(c):
        rho = 1 if u[5 + i] < 0.5 else -1
        one = nu[i, r1 : r1 + h, s1 : s1 + h]
        temp = rho * eta + one / one.norm().clamp_min(1e-12)
        union = torch.zeros(w, w, dtype=torch.bool)
        union[r1 : r1 + h, s1 : s1 + h] = union[r2 : r2 + h, s2 : s2 + h] = True
        available = (float((nu[i][union] ** 2).sum()) + unused / c) ** 0.5
        nu[i, r2 : r2 + h, s2 : s2 + h] = 0
        nu[i, r1 : r1 + h, s1 : s1 + h] = temp / temp.norm() * available
    return (x + nu * min(1.0, eps / float(nu.norm()))).clamp(0, 1)


def literal_square(margin: Score, x: Tensor, row: int, eps: float, norm: str, n: int, seed: int) -> tuple[Tensor, int]:
    draws, delta = (3, linf_delta) if norm == "linf" else (5, l2_delta)
    best = start(x, row, eps, norm, seed)
    least, i = margin(best), 1
    while i < n and least <= 0:
        u = hashed_uniform(2 * seed + 1, torch.tensor([row]), i, draws + len(x))[0].double()
        side = max(literal_side(i, n, 0.8, x.shape[1]), 1 if norm == "linf" else 3)
        new = delta(best.clone(), x, u, side, eps)
        value = margin(new)
        if value > least:
            best, least = new, value
        i += 1
    return best, i


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 6, 6)])
def test_square_is_the_papers_algorithm(norm: str, shape: tuple[int, int, int]) -> None:
    box, x, n = opened(shape=shape), images(5, shape), 40
    y = box.predict(x)
    y[1] = (y[1] + 1) % 5  # wrong from the start: the rows after it keep their own draws
    seen = set[int]()
    for eps in EPS[norm]:
        got = ub.adversarial.square(box, x, y, eps=eps, norm=norm, queries=n, seed=2)
        for i in (0, 2, 3, 4):
            _, margin = of_loss(box, int(y[i]), 0, "ce")
            want, used = literal_square(margin, x[i], i, eps, norm, n, 2)
            assert int(got.queries[i]) == used + 1  # and the original
            assert torch.allclose(got.images[i], want, atol=1e-9), (norm, eps, i)
            seen.add(used)
        assert int(got.queries[1]) == 1
    assert max(seen) == n
    assert min(seen) < n


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_hills(side: int) -> None:
    from unboxed.adversarial.square import l2_hill_and_hollow_pattern

    assert torch.allclose(l2_hill_and_hollow_pattern(side), literal_eta(side))
