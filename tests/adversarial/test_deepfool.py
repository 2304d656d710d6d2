"""DeepFool: what is particular to it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.adversarial import deepfool
from unboxed.errors import InputError

each_norm = pytest.mark.parametrize("norm", ["l2", "linf"])
DUAL = {"linf": 1, "l2": 2}


def linear(classes: int = 4) -> tuple[ub.Box, Tensor, Tensor, nn.Linear]:
    """Logits W x + b of gray images near a boundary, so that the ends of the range are far off."""
    torch.manual_seed(0)
    last = nn.Linear(36, classes).requires_grad_(False).double()
    last.weight *= 20
    x = 0.5 + 0.05 * torch.randn(12, 1, 6, 6).double()
    last.bias -= last(x.flatten(1)).mean(0)
    box = ub.Box(nn.Sequential(nn.Flatten(), last), ub.Pixels((1, 6, 6)))
    return box, x, box.predict(x), last


def to_boundaries(last: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance (N, K) to each class's boundary: |f_k - f_y| / |w_k - w_y| in the dual norm; to its own infinite."""
    f, w = last(x.flatten(1)), last.weight - last.weight[y][:, None]  # (N, K), (N, K, D)
    far = (f - f.gather(1, y[:, None])).abs() / torch.linalg.vector_norm(w, DUAL[norm], dim=-1)
    return far.scatter(1, y[:, None], torch.inf)


def digits(n: int = 10) -> tuple[ub.Box, Tensor, Tensor]:
    x, y = ub.data.digits("test").first(n)
    return ub.Box(*ub.zoo.load("digits-cnn")), x, y


def peer(box: ub.Box) -> tuple[Any, Any]:
    """foolbox's attacks and the box's model as it wants it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, of scipy
        import foolbox
    of = {"mean": box.inputs.mean, "std": box.inputs.std}
    return foolbox.attacks, foolbox.PyTorchModel(box.model, bounds=(0, 1), preprocessing=of)


@each_norm
@pytest.mark.parametrize(
    "more", [{}, {"refinement_rounds": 0}, {"candidates": None}, {"overshoot": 0}, {"overshoot": 0.5}]
)
def test_minimal_distance_to_a_linear_boundary(norm: str, more: dict[str, Any]) -> None:
    box, x, y, last = linear()
    made = deepfool(box, x, y, norm=norm, **more)
    assert made.success.all()
    assert (box.predict(made.images) != y).all()
    least = to_boundaries(last, x, y, norm).amin(1)
    assert ((made.distance >= least) & (made.distance <= 1.003 * least)).all()


@each_norm
def test_minimal_distance_to_one_class(norm: str) -> None:
    box, x, y, last = linear(classes=2)
    made = deepfool(box, x, norm=norm, target=1 - y)
    assert (box.predict(made.images) == 1 - y).all()
    least = to_boundaries(last, x, y, norm).amin(1)
    assert ((made.distance >= least) & (made.distance <= 1.003 * least)).all()


@each_norm
def test_minimal_distance_to_the_zero_of_an_objective(norm: str) -> None:
    box, x, _, last = linear()
    made = deepfool(box, x, norm=norm, objective=ub.logit(2) - 3)
    asked = ~made.initially_misclassified
    assert asked.sum() >= 6
    assert (box(made.images)[:, 2] > 3).all()
    size = torch.linalg.vector_norm(last.weight[2], DUAL[norm])
    least = ((3 - box(x)[:, 2]) / size)[asked]
    assert ((made.distance[asked] >= least) & (made.distance[asked] <= 1.003 * least)).all()


@each_norm
def test_pixels_at_the_bounds_do_not_stop_it(norm: str) -> None:
    """Black and white images: half of the pixels can't go where the gradient points, and cost nothing."""
    torch.manual_seed(0)
    last = nn.Linear(36, 2).requires_grad_(False).double()
    x = (torch.rand(8, 1, 6, 6) > 0.5).double()
    box = ub.Box(nn.Sequential(nn.Flatten(), last), ub.Pixels((1, 6, 6)))
    y = box.predict(x)
    made = deepfool(box, x, y, norm=norm)
    assert made.success.all()
    assert (box.predict(made.images) != y).all()
    once = deepfool(box, x, y, norm=norm, refinement_rounds=0)
    assert (once.queries <= 1 + 2 + 6).all()  # a single step, which knows what can't move, and the search back
    w = last.weight[1 - y] - last.weight[y]  # (N, D)
    able = ((w > 0) == (x.flatten(1) == 0)) * w.abs()  # what may move where it should
    rise = -(w * x.flatten(1)).sum(1) - (last.bias[1 - y] - last.bias[y])
    assert (able.sum(1) > rise).all()
    assert ((made.images - x).flatten(1)[able == 0] == 0).all()
    least = rise / torch.linalg.vector_norm(able, DUAL[norm], dim=1)  # exact as long as nothing reaches its other end
    free = made.distance < (1.0 if norm == "linf" else 0.8)
    assert free.sum() >= 4
    assert ((made.distance >= least - 1e-9) & (made.distance <= 1.003 * least))[free].all()


def test_a_boundary_outside_of_the_range_is_no_success() -> None:
    """Even where every pixel gives all it can, the class stays: the original comes back, after a bounded effort."""
    last = nn.Linear(36, 2).requires_grad_(False).double()
    last.weight[0], last.weight[1], last.bias[:] = 1.0, -1.0, torch.tensor([100.0, 0.0])
    box = ub.Box(nn.Sequential(nn.Flatten(), last), ub.Pixels((1, 6, 6)))
    x = torch.full((2, 1, 6, 6), 0.5).double()
    made = deepfool(box, x, 0)
    assert not made.success.any()
    assert torch.equal(made.images, x)
    assert (made.queries < 10).all()


def test_a_constant_model_changes_nothing() -> None:
    """No gradient at all: the row leaves after its first step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU()).requires_grad_(False)
    model[1].weight *= 0
    model[1].bias[:] = torch.tensor([1.0, -1.0, -2.0])
    box, x = ub.Box(model, ub.Pixels((1, 6, 6)), outputs="logits"), torch.full((2, 1, 6, 6), 0.5)
    made = deepfool(box, x, 0)
    assert not made.success.any()
    assert made.queries.tolist() == [3, 3]


@pytest.mark.parametrize(("norm", "theirs"), [("l2", "L2DeepFoolAttack"), ("linf", "LinfDeepFoolAttack")])
def test_no_weaker_than_foolbox(norm: str, theirs: str) -> None:
    box, x, y = digits()
    made = deepfool(box, x, y, norm=norm)
    attacks, model = peer(box)
    _, found, success = getattr(attacks, theirs)()(model, x, y, epsilons=None)
    d = (found - x).flatten(1)
    d = (d.norm(dim=1) if norm == "l2" else d.abs().amax(1)).where(success, torch.inf)
    assert made.success.sum() >= success.sum()
    assert made.distance.median() <= d.median()


def test_return_rounds_reduce_the_distance() -> None:
    box, x, y = digits()
    none, two, many = (deepfool(box, x, y, refinement_rounds=n) for n in (0, 2, 6))
    assert (two.distance <= none.distance + 1e-6).all()
    assert (many.distance <= two.distance + 1e-6).all()
    assert two.distance.mean() < 0.95 * none.distance.mean()
    assert (two.queries >= none.queries).all()


def test_fewer_candidates_take_equal_queries() -> None:
    box, x, y = digits(8)
    for k in (2, 3, 10, 99):
        made = deepfool(box, x, y, candidates=k)
        assert made.success.all()
        assert (box.predict(made.images) != y).all()


def test_farther_than_eps_is_no_success() -> None:
    box, x, y = digits()
    free = deepfool(box, x, y)
    eps = float(free.distance[~free.initially_misclassified].median())
    made = deepfool(box, x, y, eps=eps)
    assert torch.equal(made.success, free.distance <= eps)
    assert torch.equal(made.images[~made.success], x[~made.success])


def test_initially_misclassified_is_not_queried_again() -> None:
    box, x, y = digits(4)
    y[0] = (y[0] + 1) % 10
    made = deepfool(box, x, y)
    assert made.initially_misclassified.tolist() == [True, False, False, False]
    assert made.queries[0] == 1
    assert made.distance[0] == 0


@pytest.mark.parametrize(
    "bad",
    [{"candidates": 1}, {"candidates": 2.5}, {"overshoot": -0.1}, {"refinement_rounds": -1}, {"norm": "l1"},
     {"eps": -1.0}, {"y": None}, {"target": 1, "objective": ub.logit(1)}],
)  # fmt: skip
def test_bad_settings(bad: dict[str, Any]) -> None:
    box, x, y, _ = linear()
    with pytest.raises(InputError):
        deepfool(box, x, **{"y": y, **bad})
