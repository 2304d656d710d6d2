"""L-BFGS inside a box, against scipy's; and the attack by it: what is particular to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

import unboxed as ub
from models import curved, near_a_boundary
from unboxed.adversarial import distortion, lbfgs
from unboxed.engine.optimize.lbfgs import LBFGSState, initial_state, where_states
from unboxed.errors import InputError

N, D = 4, 24
DRAW = torch.Generator().manual_seed(0)
LOW, HIGH = torch.zeros(1, D).double(), torch.ones(1, D).double()
Problem = Callable[[Tensor], Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


HILLS, PULLS, NET, FAR = normal(N, D, D), 2 * normal(N, D), 3 * normal(D, 10), torch.rand(N, D, generator=DRAW).double()
BOWLS = HILLS @ HILLS.mT / D + 0.01 * torch.eye(D).double()
PROBLEMS: dict[str, Problem] = {
    "bowls": lambda z: torch.einsum("ni,nij,nj->n", z, BOWLS, z) / 2 - (PULLS * z).sum(1),
    "a softmax": lambda z: 0.5 * ((z - FAR) ** 2).sum(1) + F.cross_entropy(z @ NET, torch.arange(N), reduction="none"),
    "a sure one": lambda z: (
        0.01 * ((z - FAR) ** 2).sum(1) + F.cross_entropy(z @ NET, torch.arange(N), reduction="none")
    ),
    "a bent valley": lambda z: (10 * (2 * z[:, 1:] - 4 * z[:, :-1] ** 2) ** 2 + (1 - 2 * z[:, :-1]) ** 2).sum(1),
}


def evaluated(f: Problem, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = f(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def ours(f: Problem, z: Tensor, looks: int) -> LBFGSState:
    search = initial_state(z, *evaluated(f, z), torch.ones(N).double(), LOW, HIGH)
    for _ in range(looks):
        trial_point = search.trial_point(LOW, HIGH)
        assert ((trial_point >= 0) & (trial_point <= 1)).all()
        search = where_states(
            search.finished, search, search.update(trial_point, *evaluated(f, trial_point), LOW, HIGH, 1e-14)
        )
        if search.finished.all():
            break
    return search


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimum_equals_scipys(name: str) -> None:
    f, start = PROBLEMS[name], torch.rand(N, D, generator=DRAW, dtype=torch.float64)
    found = ours(f, start, 400 if name == "a bent valley" else 120)
    assert torch.allclose(f(found.z), found.value)
    for i in range(N):

        def one(a: np.ndarray, i: int = i) -> tuple[float, np.ndarray]:
            value, grad = evaluated(f, start.index_copy(0, torch.tensor([i]), torch.from_numpy(a)[None]))
            return float(value[i]), grad[i].numpy()

        peer = minimize(one, start[i].numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * D,
                        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxfun": 2000})  # fmt: skip
        assert float(found.value[i]) <= peer.fun + 1e-6 * abs(peer.fun) + 1e-8


def test_changing_c_needs_no_query() -> None:
    """The memory after c grew is what it would have been with that c all along."""
    f = PROBLEMS["a softmax"]
    g: Problem = lambda z: f(z) + 0.3 * ((z - FAR) ** 2).sum(1)  # noqa: E731
    search = ours(f, torch.full((N, D), 0.5).double(), 5)
    r = search.z - FAR
    known = search.with_new_value_and_grad(search.value + 0.3 * (r * r).sum(1), search.grad + 0.6 * r, LOW, HIGH)
    value, grad = evaluated(g, search.z)
    assert torch.allclose(known.value, value)
    assert torch.allclose(known.grad, grad)


# ---- the attack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
def test_minimal_distance_to_a_linear_boundary(targeted: bool) -> None:
    box, x, y, last = near_a_boundary(2, 8)
    found = lbfgs(box, x, target=1 - y, n_searches=14) if targeted else lbfgs(box, x, y, n_searches=14)
    assert torch.equal(box.predict(found.images), 1 - y)
    f = last(x.flatten(1))
    least = (f[:, 0] - f[:, 1]).abs() / (last.weight[0] - last.weight[1]).norm()
    assert ((found.distance >= least) & (found.distance <= 1.01 * least)).all()


def test_pixels_that_stop_at_the_bounds() -> None:
    """Black and white images: a quadratic program knows the least distance."""
    box, x, _, last = near_a_boundary(2, 8)
    x = (x > 0.5).double()
    y = box.predict(x)
    found = lbfgs(box, x, y, n_searches=14)
    for i in range(len(x)):
        w = (last.weight[1 - y[i]] - last.weight[y[i]]).numpy()
        row = x[i].flatten().numpy()
        gap = float(last(x[i].flatten()) @ torch.tensor([1.0, -1.0]).double()) * (1 if y[i] == 0 else -1)
        over = {"type": "ineq", "fun": lambda r, w=w, gap=gap: w @ r - gap, "jac": lambda r, w=w: w}
        best = minimize(lambda r: (r @ r, 2 * r), np.zeros(36), jac=True, bounds=list(zip(-row, 1 - row, strict=True)),
                        constraints=[over], method="SLSQP", options={"ftol": 1e-12, "maxiter": 300})  # fmt: skip
        assert best.fun**0.5 * (1 - 1e-6) <= found.distance[i] <= best.fun**0.5 * 1.01


def test_no_farther_than_fab() -> None:
    """Another way to the same end: the medians agree on a model that is not linear."""
    box, x, y = curved(8)
    mine, other = lbfgs(box, x, y), ub.adversarial.fab(box, x, y, norm="l2", steps=40)
    assert mine.success.all()
    assert mine.distance.median() <= 1.01 * other.distance[other.success].median()
    assert torch.equal(box.predict(mine.images) != y, mine.success)


def test_targets_are_reached_at_larger_distances() -> None:
    box, x, y = curved(8)
    any_class = lbfgs(box, x, y)
    target = (y + 1) % 5
    found = lbfgs(box, x, y, target=target)
    assert found.success.all()
    assert torch.equal(box.predict(found.images), target)
    assert found.distance.mean() > any_class.distance.mean()


def test_objective_above_zero() -> None:
    box, x, _, last = near_a_boundary(2, 8)
    found = lbfgs(box, x, objective=ub.logit(1) - 3.0, n_searches=14)
    assert (box(found.images)[:, 1] > 3).all()
    away = (3 - last(x.flatten(1))[:, 1]).clamp_min(0) / last.weight[1].norm()
    assert torch.allclose(found.distance, away, rtol=0.01)


def test_more_searches_reduce_the_distance() -> None:
    box, x, y = curved(8)
    far = [lbfgs(box, x, y, n_searches=k) for k in (2, 5, 12)]
    least = [torch.where(f.success, f.distance, torch.inf) for f in far]
    assert (least[1] <= least[0]).all()
    assert (least[2] <= least[1]).all()
    assert (least[2] < least[0] * 0.99).any()


def test_early_stop_within_eps() -> None:
    box, x, y = curved(8)
    all_the_way = lbfgs(box, x, y)
    eps = float(all_the_way.distance.median()) * 1.01
    enough = lbfgs(box, x, y, eps=eps)
    assert torch.equal(enough.success, all_the_way.distance <= eps)
    assert (enough.queries[enough.success] <= all_the_way.queries[enough.success]).all()
    assert (enough.queries < 0.8 * all_the_way.queries).any()
    on = lbfgs(box, x, y, eps=eps, early_stop=False)
    assert torch.equal(on.distance[on.success], all_the_way.distance[on.success])


def test_queries_are_counted_and_finished_rows_are_dropped() -> None:
    box, x, y = curved(8)
    y[0] = (y[0] + 1) % 5
    rows = list[int]()
    box.model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    found = lbfgs(box, x, y)
    assert sum(rows) == found.queries.sum()
    assert found.queries[0] == 1
    assert found.queries[1:].min() < found.queries.max()


@pytest.mark.parametrize("settings", [{"eps": 0.5}, {"target": 2}])
def test_splitting(settings: dict[str, Any]) -> None:
    box, x, y = curved(5)
    whole, part = (lbfgs(box, x, y, n_searches=3, batch_size=size, **settings) for size in (5, 3))
    assert torch.allclose(whole.images, part.images, atol=1e-9)
    assert torch.equal(whole.queries, part.queries)


def test_distortion_is_the_root_of_the_mean_square() -> None:
    x = torch.zeros(2, 1, 2, 2)
    z = x.clone()
    z[0, 0, 0, 0], z[1] = 0.5, 0.3
    assert distortion(z, x).tolist() == pytest.approx([0.25, 0.3])
    with pytest.raises(InputError, match="originals"):
        distortion(z, x[:1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "linf"}, "norm must be"),
        ({"eps": 0.0}, "eps"),
        ({"eps": 7.0}, "images lie in"),
        ({"steps": -1}, "steps"),
        ({"n_searches": 0}, "n_searches"),
        ({"tolerance": 0}, "tolerance"),
        ({"y": None}, "correct classes"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    box, x, y = curved(8)
    with pytest.raises(InputError, match=said):
        lbfgs(box, x, **{"y": y, **settings})
