"""FAB: what is particular to it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import unboxed as ub
import unboxed.adversarial.fab  # the module, which the function of that name hides
from models import curved, near_a_boundary
from unboxed.adversarial import fab
from unboxed.adversarial.attack_state import AttackState
from unboxed.engine.optimize.hyperplanes import random_directions, vector_norms
from unboxed.errors import InputError

each_norm = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}

fab_module = sys.modules["unboxed.adversarial.fab"]


def to_boundaries(last: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance (N, K) to each class's boundary: |f_k - f_y| / |w_k - w_y| in the dual norm; to its own infinite."""
    f = last(x.flatten(1))
    w = last.weight - last.weight[y][:, None]  # (N, K, D)
    far = (f - f.gather(1, y[:, None])).abs() / torch.linalg.vector_norm(w, DUAL[norm], dim=-1)
    return far.scatter(1, y[:, None], torch.inf)


@each_norm
@pytest.mark.parametrize("settings", [{}, {"n_targets": 3}])
def test_minimal_distance_to_a_linear_boundary(norm: str, settings: dict[str, Any]) -> None:
    box, x, y, last = near_a_boundary(4, 12)
    found = fab(box, x, y, norm=norm, steps=10, **settings)
    assert found.success.all()
    assert (box.predict(found.images) != y).all()
    least = to_boundaries(last, x, y, norm).amin(1)
    assert ((found.distance >= least) & (found.distance <= 1.005 * least)).all()


@each_norm
def test_minimal_distance_to_a_class(norm: str) -> None:
    box, x, y, last = near_a_boundary(2, 12)
    found = fab(box, x, target=1 - y, norm=norm, steps=10)
    assert (box.predict(found.images) == 1 - y).all()
    assert torch.allclose(found.distance, to_boundaries(last, x, y, norm).amin(1), rtol=5e-3)


def test_objective_above_zero() -> None:
    box, x, _, last = near_a_boundary(4, 12)
    found = fab(box, x, objective=ub.logit(2) - 3.0, norm="l2", steps=10)
    assert (box(found.images)[:, 2] > 3).all()
    away = (3 - last(x.flatten(1))[:, 2]).clamp_min(0) / last.weight[2].norm()
    assert torch.allclose(found.distance, away, rtol=5e-3)
    assert torch.equal(found.initially_misclassified, away == 0)


def test_pixels_that_stop_at_the_bounds() -> None:
    """Images of black and white: a linear program knows the least L-inf distance."""
    box, x, _, last = near_a_boundary(2, 12, scale=1.0)
    x = (x > 0.5).double()
    y = box.predict(x)
    found = fab(box, x, y, norm="linf", steps=20)
    for i in range(len(x)):
        w, row = (last.weight[1 - y[i]] - last.weight[y[i]]).numpy(), x[i].flatten().numpy()
        gap = float(box(x[i : i + 1])[0] @ torch.tensor([1.0, -1.0]).double() * (1 if y[i] == 0 else -1))
        apart = [[*(s if k == j else 0.0 for k in range(36)), -1.0] for j in range(36) for s in (1.0, -1.0)]
        free = [*zip(-row, 1 - row, strict=True), (0, None)]
        best = linprog([0.0] * 36 + [1.0], [*apart, [*-w, 0.0]], [0.0] * 72 + [-gap], bounds=free)
        assert bool(found.success[i]) == best.success
        assert not best.success or best.fun <= found.distance[i] <= best.fun * 1.005
    assert found.success.any()


@each_norm
def test_images_are_valid_and_the_result_is_true(norm: str) -> None:
    box, x, y = curved(10)
    found = fab(box, x, y, norm=norm, steps=20)
    assert found.success.float().mean() >= 0.7
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert torch.equal(box.predict(found.images) != y, found.success)
    d = torch.linalg.vector_norm((found.images - x).flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert torch.allclose(found.distance, d)
    assert torch.equal(found.images[~found.success], x[~found.success])


def folded() -> tuple[ub.Box, Tensor, Tensor]:
    """Of many linear pieces, so that there is more than one boundary to find."""
    torch.manual_seed(0)
    layers = [nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)]
    model = nn.Sequential(nn.Flatten(), *layers).requires_grad_(False).double()
    for layer in (model[1], model[3]):
        layer.weight *= 6
        layer.bias *= 6
    box, x = ub.Box(model, ub.Pixels((1, 6, 6))), torch.rand(10, 1, 6, 6).double()
    return box, x, box.predict(x)


@each_norm
def test_more_restarts_are_never_worse(norm: str) -> None:
    box, x, y = folded()
    runs = [fab(box, x, y, norm=norm, steps=2, restarts=k, seed=2) for k in (1, 2, 5)]
    far = [torch.where(r.success, r.distance, torch.inf) for r in runs]
    assert (far[1] <= far[0]).all()
    assert (far[2] <= far[1]).all()
    assert (far[2] < far[0]).any()


@each_norm
def test_random_starts_depend_on_seed_and_row(norm: str) -> None:
    like = torch.zeros(3, 40).double()
    rows = torch.tensor([4, 5, 9])
    drawn = random_directions(norm, like, rows, 0, 1)
    assert torch.allclose(vector_norms(norm, drawn), torch.ones(3).double())
    assert torch.equal(drawn[1:2], random_directions(norm, like[:1], rows[1:2], 0, 1))
    assert not torch.allclose(drawn[0], drawn[1])
    for other in (random_directions(norm, like, rows, 1, 1), random_directions(norm, like, rows, 0, 2)):
        assert not torch.allclose(drawn, other)


def test_another_seed_gives_another_start() -> None:
    box, x, y = folded()
    made = [fab(box, x, y, norm="l2", steps=2, restarts=5, seed=s).images for s in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2])


def test_early_stop_within_eps() -> None:
    box, x, y = curved(10)
    all_the_way = fab(box, x, y, norm="l2", n_targets=4, steps=15)
    eps = float(all_the_way.distance[all_the_way.success].median())
    enough = fab(box, x, y, norm="l2", n_targets=4, steps=15, eps=eps)
    assert torch.equal(enough.success, all_the_way.success & (all_the_way.distance <= eps))
    assert (enough.distance[enough.success] <= eps).all()
    assert (enough.queries[enough.success] <= all_the_way.queries[enough.success]).all()
    assert (enough.queries < 0.5 * all_the_way.queries).sum() >= 3
    on = fab(box, x, y, norm="l2", n_targets=4, steps=15, eps=eps, early_stop=False)
    assert torch.equal(on.distance[on.success], all_the_way.distance[on.success])
    assert (on.queries == all_the_way.queries).all()


def test_rows_are_dropped_during_a_run() -> None:
    """On a linear model the second step crosses at the latest: one forward of the original, and two per step."""
    box, x, y = near_a_boundary(4, 12)[:3]
    found = fab(box, x, y, norm="l2", eps=3.0, steps=30)
    assert found.success.all()
    assert found.queries.max() <= 1 + 2 * 2


def test_queries_are_counted() -> None:
    """A forward of the originals, one for their classes; two per step of each run; five for the final search."""
    box, x, y = near_a_boundary(4, 12)[:3]
    wrong = y.clone()
    wrong[0] = (y[0] + 1) % 4
    rows = list[int]()
    box.model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    found = fab(box, x, wrong, steps=3, n_targets=2, restarts=2)
    assert found.queries.tolist() == [1] + [1 + 1 + 2 * 3 * 4 + 5] * 11
    assert sum(rows) == found.queries.sum()
    assert found.initially_misclassified.tolist() == [True] + [False] * 11
    assert torch.equal(found.images[0], x[0])


@pytest.mark.parametrize("settings", [{}, {"n_targets": 2, "eps": 0.5}])
def test_splitting_with_restarts(settings: dict[str, Any]) -> None:
    box, x, y = curved(5)
    whole = fab(box, x, y, steps=4, restarts=2, seed=7, **settings)
    part = fab(box, x, y, steps=4, restarts=2, seed=7, batch_size=3, **settings)
    assert torch.allclose(whole.images, part.images, atol=1e-9)
    assert torch.equal(whole.queries, part.queries)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_features_without_bounds(norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double().requires_grad_(False)
    names = ("a", "b", "c")
    box = ub.Box(model, ub.Features(names, low=(0.0, -float("inf"), -1.0), high=(float("inf"), float("inf"), 1.0)))
    x = torch.tensor([[1.0, 40.0, 0.5], [0.0, -30.0, -1.0]]).double()
    found = fab(box, x, box.predict(x), norm=norm, steps=10)
    assert found.success.all()
    assert (found.images[:, 0] >= 0).all()
    assert (found.images[:, 2].abs() <= 1).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "l3"}, "norm must be"),
        ({"eps": -1.0}, "eps"),
        ({"eps": 5.0, "norm": "linf"}, "images lie in"),
        ({"alpha_max": 1.5}, "alpha_max"),
        ({"beta": -0.2}, "beta"),
        ({"eta": 0.0}, "eta"),
        ({"n_targets": 0}, "n_targets"),
        ({"restarts": 0}, "restarts"),
        ({"steps": -1}, "steps"),
        ({"y": None}, "correct classes"),
        ({"objective": ub.logit(0), "n_targets": 3}, "n_targets"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    box, x, y = curved(10)
    with pytest.raises(InputError, match=said):
        fab(box, x, **{"y": y, **settings})


def test_of_many_classes_the_most_probable_ten_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are those of all boundaries, where the nearest is of a probable class; fewer gradients are taken."""
    torch.manual_seed(0)
    model = nn.Linear(20, 1000)
    with torch.no_grad():
        model.bias[12:] -= 30  # the others are far away
    box, x = ub.Box(model, ub.Features(tuple(f"f{i}" for i in range(20))), outputs="logits"), torch.randn(4, 20)
    n_gradients = set[int]()
    real = AttackState.jacobian

    def recorded(*args: Any) -> Any:
        found = real(*args)
        n_gradients.add(found[2].shape[1])
        return found

    monkeypatch.setattr(AttackState, "jacobian", recorded)
    few = fab(box, x, box.predict(x), steps=4)
    assert n_gradients == {10}
    monkeypatch.setattr(fab_module, "MIN_CLASSES_FOR_TOP_CLASSES_ONLY", 1001)
    everything = fab(box, x, box.predict(x), steps=4)
    assert n_gradients == {10, 999}
    assert torch.allclose(few.images, everything.images, atol=1e-5)
