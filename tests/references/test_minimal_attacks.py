"""DeepFool and Carlini & Wagner's attack, written from the papers' equations: one example, one value at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from unboxed.adversarial.carlini_wagner import TANH_RANGE_MARGIN_FRACTION
from unboxed.adversarial.deepfool import MIN_BOUNDARY_OVERSHOOT, shortest_step_within_bounds
from unboxed.engine.optimize.constraints import unbounded_ball

Net = Callable[[Tensor], Tensor]


def margin(z: Tensor, right: int) -> Tensor:
    others = [k for k in range(z.shape[1]) if k != right]
    return z[0, others].max() - z[0, right]


# ---- DeepFool: algorithm 2 of arXiv:1511.04599 -----------------------------------------------------------------------


def deepfool_twin(model: Net, x: Tensor, right: int, steps: int, norm: str, overshoot: float = 0.02) -> Tensor:
    """x (1, ...), far from the ends of its range; the first image that fools, before it is moved back."""
    z = x.clone()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        logits, best, step = model(z), math.inf, torch.zeros_like(z)
        for k in range(logits.shape[1]):
            if k == right:
                continue
            f = logits[0, k] - logits[0, right]
            (w,), f = torch.autograd.grad(f, z, retain_graph=True), f.detach()
            size = float(w.norm() if norm == "l2" else w.abs().sum())
            far = -f.item() / size
            if far < best:
                best, step = (
                    far,
                    ((1 + overshoot) * far + MIN_BOUNDARY_OVERSHOOT) * (w / size if norm == "l2" else w.sign()),
                )
        z = z.detach() + step
        if margin(model(z), right) > 0:
            break
    return z.detach()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("model", ["plain", "non_square"])
def test_deepfool_takes_the_papers_steps(norm: str, model: str) -> None:
    """What it gives is on the line from the original to the paper's result."""
    c = make_case(model, torch.float64, n=6)
    x = 0.5 + 0.02 * (c.x - 0.5)  # no value comes near the ends of the range
    y = c.box.predict(x)
    made = ub.adversarial.deepfool(c.box, x, y, norm=norm, refinement_rounds=0)
    compared = 0
    for i in range(len(x)):
        want = deepfool_twin(whole(c.box), x[i : i + 1], int(y[i]), 50, norm)
        if want.min() <= 0 or want.max() >= 1:
            continue
        way, mine = (want - x[i]).flatten(), (made.images[i] - x[i]).flatten()
        assert made.success[i]
        assert torch.allclose(mine / mine.norm(), way / way.norm(), atol=1e-9)
        assert mine.norm() <= way.norm() * (1 + 1e-12)
        compared += 1
    assert compared >= 3


def whole(box: ub.Box) -> Net:
    return lambda x: box.model(box.inputs.encode(x))


def by_solver(w: np.ndarray, rise: float, room: np.ndarray, norm: str) -> float:
    """The least norm of r with w . r = rise and 0 <= sign(w) r <= room, by a general solver."""
    a, d = np.abs(w), len(w)
    if norm == "linf":
        rows = np.hstack([np.eye(d), -np.ones((d, 1))])  # r_i <= t
        cost, equal = np.r_[np.zeros(d), 1], np.r_[a, 0][None]
        bounds = [*[(0, m) for m in room], (0, None)]
        return float(linprog(cost, A_ub=rows, b_ub=np.zeros(d), A_eq=equal, b_eq=[rise], bounds=bounds).fun)
    kept = {"type": "eq", "fun": lambda r: a @ r - rise, "jac": lambda r: a}
    found = minimize(
        lambda r: r @ r, room / 2, jac=lambda r: 2 * r, bounds=[(0, m) for m in room], constraints=kept,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    return float(np.sqrt(found.fun))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_shortest_step_within_bounds(norm: str, share: float) -> None:
    """Against a general solver: ranges of all sizes, some of them none, weights of both signs, some of them zero."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(4, 2, 12, generator=draw, dtype=torch.float64)
    room = torch.rand(4, 2, 12, generator=draw, dtype=torch.float64) * (torch.arange(12) % 4 > 0)
    w[..., 5] = 0
    rise = share * (w.abs() * room).sum(2)
    beyond = MIN_BOUNDARY_OVERSHOOT * torch.where(room > 0, w.abs() if norm == "linf" else w.square(), 0).sum(2)
    beyond = beyond if norm == "linf" else MIN_BOUNDARY_OVERSHOOT * (beyond / MIN_BOUNDARY_OVERSHOOT).sqrt()
    r = shortest_step_within_bounds(w, rise, room, unbounded_ball(norm))
    assert (r.abs() <= room * (1 + 1e-12)).all()
    assert torch.allclose((w * r).sum(2), rise + beyond, atol=1e-12)
    size = r.abs().amax(2) if norm == "linf" else r.norm(dim=2)
    for i in range(4):
        for j in range(2):
            want = by_solver(w[i, j].numpy(), float((rise + beyond)[i, j]), room[i, j].numpy(), norm)
            assert float(size[i, j]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("method", ["deepfool", "carlini_wagner"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_minimal_distance_within_bounds(method: str, norm: str) -> None:
    """Two classes, a linear model, and a boundary so far off that many pixels reach the end of their range before
    it."""
    if (method, norm) == ("carlini_wagner", "linf"):
        pytest.skip("the attack is for L2")
    torch.manual_seed(0)
    last = nn.Linear(16, 2).requires_grad_(False).double()
    x = torch.rand(4, 1, 4, 4).double()
    w = last.weight[1] - last.weight[0]
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1))  # (N, D)
    rise = 0.7 * (w.abs() * room).sum(1)
    for i in range(2 if method == "deepfool" else 1):  # a model for each image, as far from its boundary
        last.bias[0], last.bias[1] = 0, -float(x[i].flatten() @ w + rise[i])
        box = ub.Box(nn.Sequential(nn.Flatten(), last), ub.Pixels((1, 4, 4)), outputs="logits")
        made = getattr(ub.adversarial, method)(box, x[i : i + 1], 0, norm=norm)
        want = by_solver(w.numpy(), float(rise[i]), room[i].numpy(), norm)
        assert made.success.all()
        assert float(made.distance) == pytest.approx(want, rel=0.003 if method == "deepfool" else 0.02)
        assert float(made.distance) >= want * (1 - 1e-6)


def test_an_unreachable_plane_uses_the_whole_range() -> None:
    """More is wanted than the range allows: all of it is taken."""
    w, room = torch.tensor([[[1.0, -2.0, 0.0]]]), torch.tensor([[[0.5, 0.25, 1.0]]])
    for norm in ("l2", "linf"):
        assert torch.equal(
            shortest_step_within_bounds(w, torch.tensor([[9.0]]), room, unbounded_ball(norm)),
            torch.tensor([[[0.5, -0.25, 0.0]]]),
        )


# ---- Carlini & Wagner: section VI.A of arXiv:1608.04644 --------------------------------------------------------------


def carlini_wagner_twin(model: Net, x: Tensor, right: int, c: float, steps: int, lr: float, kappa: float) -> Tensor:
    """One value of c; torch's Adam on w, autograd through the tanh; the nearest image that fooled, or x."""
    wide = 1 + TANH_RANGE_MARGIN_FRACTION
    w = torch.atanh((2 * x - 1) / wide).requires_grad_()
    adam, best, distance = torch.optim.Adam([w], lr=lr), x.clone(), math.inf
    for _ in range(steps):
        z = wide * torch.tanh(w) / 2 + 0.5
        gap, d = margin(model(z), right), (z - x).square().sum()
        if gap > 0 and gap >= kappa and d.detach() < distance:
            best, distance = z.detach().clone(), d.detach().item()
        adam.zero_grad()
        (d + c * torch.clamp(kappa - gap, min=0)).backward()
        adam.step()
        with torch.no_grad():
            w.clamp_(-math.atanh(1 / wide), math.atanh(1 / wide))
    return best


@pytest.mark.parametrize(("model", "kappa"), [("plain", 0.0), ("color", 0.3)])
def test_carlini_wagner_minimizes_the_papers_objective(model: str, kappa: float) -> None:
    c = make_case(model, torch.float64, n=4)
    x = c.x.clone()
    x[:, :, 0], x[:, :, 1] = 0, 1  # values at the very ends of the range
    y = c.box.predict(x)
    plan = {"steps": 40, "lr": 0.05, "kappa": kappa}
    made = ub.adversarial.carlini_wagner(
        c.box, x, y, initial_c=5.0, binary_search_steps=1, early_stop=False, **plan
    )  # fmt: skip
    assert made.success.sum() >= 3
    for i in range(len(x)):
        want = carlini_wagner_twin(whole(c.box), x[i : i + 1], int(y[i]), 5.0, **plan)
        assert torch.allclose(made.images[i : i + 1], want, atol=1e-9)
