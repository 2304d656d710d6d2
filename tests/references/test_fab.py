"""FAB against slow twins: its projection against solvers and a loop over kinks, its run against the paper's steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.optimize import hyperplanes
from unboxed.engine.optimize.hyperplanes import Hyperplane, min_norm_step_to_hyperplane, vector_norms

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
each_norm = pytest.mark.parametrize("norm", NORMS)


def problems(n: int, d: int, seed: int = 0) -> tuple[Tensor, Hyperplane, Tensor, Tensor]:
    """Some points on the box's edge, some weights zero, values of both signs; mostly the plane crosses the box."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=draw, dtype=torch.float64)
    x = torch.where(torch.rand(n, d, generator=draw) < 0.3, x.round(), x)
    w = torch.randn(n, d, generator=draw, dtype=torch.float64)
    w = w * (torch.rand(n, d, generator=draw) > 0.15)
    goal = torch.rand(n, d, generator=draw, dtype=torch.float64)  # a point of the plane
    return x, Hyperplane((w * (x - goal)).sum(1), w), torch.zeros(1, d).double(), torch.ones(1, d).double()


def solved(norm: str, x: np.ndarray, v: float, w: np.ndarray) -> float:
    """The least distance, by a linear program or by sequential quadratic programs."""
    d = len(x)
    if norm == "l2":
        on_plane = {"type": "eq", "fun": lambda r: v + w @ r, "jac": lambda r: w}
        found = minimize(lambda r: (r @ r, 2 * r), np.zeros(d), jac=True, bounds=list(zip(-x, 1 - x, strict=True)),
                         constraints=[on_plane], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})  # fmt: skip
        return float(np.sqrt(found.fun))
    bounds = [*zip(-x, 1 - x, strict=True)]
    if norm == "linf":  # r and the level t, |r_i| <= t
        cost, pad = np.r_[np.zeros(d), 1], -np.ones((d, 1))
        apart = np.r_[np.c_[np.eye(d), pad], np.c_[-np.eye(d), pad]]
        bounds, equal = [*bounds, (0, None)], np.r_[w, 0]
    else:  # r and t_i, |r_i| <= t_i
        cost = np.r_[np.zeros(d), np.ones(d)]
        apart = np.r_[np.c_[np.eye(d), -np.eye(d)], np.c_[-np.eye(d), -np.eye(d)]]
        bounds, equal = [*bounds, *[(0, None)] * d], np.r_[w, np.zeros(d)]
    return float(linprog(cost, apart, np.zeros(2 * d), equal[None], [-v], bounds).fun)


@each_norm
def test_projection_equals_solvers(norm: str) -> None:
    x, plane, low, high = problems(25, 7)
    got = min_norm_step_to_hyperplane(norm, x, plane, low, high)
    assert ((x + got >= -1e-12) & (x + got <= 1 + 1e-12)).all()
    assert torch.allclose((plane.normal * got).sum(1), -plane.value, atol=1e-12)
    want = [solved(norm, *(h.numpy() for h in row)) for row in zip(x, plane.value, plane.normal, strict=True)]
    assert torch.allclose(vector_norms(norm, got), torch.tensor(want, dtype=torch.float64), atol=1e-6)


def by_kinks(norm: str, x: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """One row, the definition: coordinates fill up one after the other, in the order of their bounds."""
    way = w * -torch.sign(v)
    room = torch.where(way > 0, 1 - x, x)
    a, need = w.abs(), v.abs()
    if norm == "l1":
        change = torch.zeros_like(x)
        for i in a.argsort(descending=True):
            change[i] = min(float(room[i]), float(need / a[i])) if need > 0 and a[i] > 0 else 0.0
            need = need - a[i] * change[i]
        return way.sign() * change
    speed = torch.where(a > 0, 1.0, 0.0).double() if norm == "linf" else a
    full = torch.where(speed > 0, room / speed.clamp_min(1e-300), torch.inf)
    for level in full.sort().values:
        if (a * torch.minimum(level * speed, room)).sum() >= need:
            break
    else:
        return way.sign() * room
    held = full < level
    level = (need - (a * room)[held].sum()) / (a * speed)[~held].sum()
    return way.sign() * torch.minimum(level * speed, room)


@each_norm
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_projection_equals_the_reference(norm: str, scale: float) -> None:
    """With 3, most planes lie beyond the box: then to its corner."""
    x, plane, low, high = problems(12, 150, seed=1)
    plane = Hyperplane(plane.value * scale * 5, plane.normal)
    got = min_norm_step_to_hyperplane(norm, x, plane, low, high)
    reach = (plane.normal.abs() * torch.where(plane.normal * -plane.value.sign()[:, None] > 0, 1 - x, x)).sum(1)
    for i in range(12):
        want = by_kinks(norm, x[i], plane.value[i], plane.normal[i])
        if reach[i] < plane.value[i].abs():  # a coordinate of weight zero may do as it likes
            assert torch.allclose((plane.normal[i] * got[i]).sum().abs(), reach[i])
        else:
            assert torch.allclose(got[i], want, atol=1e-10)


@each_norm
def test_projection_is_independent_of_the_batch(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, plane, low, high = problems(20, 90, seed=2)
    whole = min_norm_step_to_hyperplane(norm, x, plane, low, high)
    monkeypatch.setattr(hyperplanes, "MAX_CPU_CHUNK_VALUES", 1)
    monkeypatch.setattr(hyperplanes, "N_INITIAL_L1_COORDINATES", 3)
    assert torch.allclose(min_norm_step_to_hyperplane(norm, x, plane, low, high), whole, atol=1e-12)


@each_norm
def test_without_bounds_and_without_a_normal(norm: str) -> None:
    """Nothing bounds the point: r / |w|, in the dual norm. A plane without a normal is nowhere: nothing moves."""
    w = torch.tensor([[3.0, -4.0, 1.0], [0, 0, 0]]).double()
    far = torch.full((1, 3), torch.inf).double()
    got = min_norm_step_to_hyperplane(
        norm, torch.zeros(2, 3).double(), Hyperplane(torch.tensor([2.0, 1.0]).double(), w), -far, far
    )
    dual = {"linf": 8.0, "l2": 26**0.5, "l1": 4.0}[norm]
    assert vector_norms(norm, got).tolist() == pytest.approx([2 / dual, 0])
    assert float(w[0] @ got[0]) == pytest.approx(-2)


# ---- the run ---------------------------------------------------------------------------------------------------------


def curved() -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    return ub.Box(model.requires_grad_(False), ub.Pixels((1, 4, 4)))


class Twin:
    """One image at a time, as the paper's algorithm 1 has it: arXiv:1907.02044."""

    def __init__(self, box: ub.Box, x: Tensor, c: int, norm: str) -> None:
        self.model, self.x, self.c, self.norm = box.model, x, c, norm
        self.out, self.least = x, np.inf

    def f(self, z: Tensor) -> Tensor:
        return self.model(z.view(1, 1, 4, 4))[0]

    def fools(self, z: Tensor) -> bool:
        others = [float(v) for k, v in enumerate(self.f(z)) if k != self.c]
        fooled = max(others) > float(self.f(z)[self.c])
        d = float(torch.linalg.vector_norm(z - self.x, ORDER[self.norm]))
        if fooled and d < self.least:
            self.out, self.least = z, d
        return fooled

    def plane(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = self.f(z)[k] - self.f(z)[self.c]
        return value.detach(), torch.autograd.grad(value, z)[0]

    def closest(self, z: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
        dual = {"linf": 1, "l2": 2, "l1": np.inf}[self.norm]
        return min((self.plane(z, k) for k in classes), key=lambda p: abs(p[0]) / torch.linalg.vector_norm(p[1], dual))

    def run(self, classes: list[int], steps: int) -> None:
        z, p = self.x, ORDER[self.norm]
        for _ in range(steps):
            self.fools(z)  # what was drawn back and still fools is kept: the next plane needs that look anyway
            v, w = self.closest(z, classes)
            d = by_kinks(self.norm, z, v, w)
            d_x = by_kinks(self.norm, self.x, v + w @ (self.x - z), w)
            near, far = (float(torch.linalg.vector_norm(h, p)) for h in (d, d_x))
            alpha = min(near / (near + far), 0.1)
            z = ((1 - alpha) * (z + 1.05 * d) + alpha * (self.x + 1.05 * d_x)).clamp(0, 1)
            if self.fools(z):
                z = (1 - 0.9) * self.x + 0.9 * z

    def search_final_segment(self) -> None:
        def margin(z: Tensor) -> float:
            f = self.f(z)
            return max(float(v - f[self.c]) for k, v in enumerate(f) if k != self.c)

        if not np.isfinite(self.least):
            return
        near, far = self.x, self.out
        aim = 1e-3 * abs(margin(self.x))
        for _ in range(3):
            z = near + (aim - margin(near)) / (margin(far) - margin(near)) * (far - near)
            if margin(z) > aim / 2:
                self.fools(z)
                far = z
            else:
                near = z


@each_norm
@pytest.mark.parametrize("targets", [None, 2])
def test_run_equals_the_reference(norm: str, targets: int | None) -> None:
    box = curved()
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = box.predict(x)
    got: Any = ub.adversarial.fab(box, x, y, norm=norm, n_targets=targets, steps=12)
    assert got.success.any()
    for i in range(5):
        twin = Twin(box, x[i].flatten(), int(y[i]), norm)
        likeliest = [int(k) for k in twin.f(twin.x).argsort(descending=True) if int(k) != twin.c]
        for classes in [likeliest] if targets is None else [[k] for k in likeliest[:targets]]:
            twin.run(classes, 12)
        twin.search_final_segment()
        assert torch.allclose(got.images[i].flatten(), twin.out, atol=1e-8)
        assert bool(got.success[i]) == bool(np.isfinite(twin.least))
