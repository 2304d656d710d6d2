"""APGD: bounds, budgets, exact answers on linear models, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import MethodCase, make_case
from models import assert_in_its_ball
from unboxed.adversarial.apgd import _APGD, _APGDIterates, apgd, checkpoint_steps
from unboxed.adversarial.attack_state import AttackState
from unboxed.engine.optimize.constraints import L1, L2, Linf
from unboxed.errors import InputError


def linear(classes: int = 2, size: int = 16) -> tuple[ub.Box, nn.Linear]:
    """A linear model on images of side 4."""
    layer = nn.Linear(size, classes, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, size, generator=generator, dtype=torch.float64))
        layer.bias.zero_()
    return ub.Box(nn.Sequential(nn.Flatten(), layer), ub.Pixels((1, 4, 4)), outputs="logits"), layer


def least(box: ub.Box, layer: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance (N,) of the nearest boundary: |z_y - z_k| over the dual norm of the difference of their weights."""
    z, w = box(x), layer.weight.detach()
    gap = z.gather(1, y[:, None]) - z  # (N, K)
    dual = (w[y][:, None] - w[None]).abs().sum(-1) if norm == "linf" else (w[y][:, None] - w[None]).norm(dim=-1)
    return (gap / dual).scatter(1, y[:, None], torch.inf).amin(1)


@pytest.mark.parametrize(
    ("classes", "how", "norm"),
    [(2, {"loss": "ce"}, "linf"), (2, {"loss": "margin"}, "l2"), (5, {"loss": "margin"}, "linf"),
     (5, {"n_targets": 9, "loss": "ce"}, "l2"), (5, {"n_targets": 9, "loss": "margin"}, "linf")],
)  # fmt: skip
def test_it_fools_where_and_only_where_it_can(norm: str, how: dict[str, Any], classes: int) -> None:
    box, layer = linear(classes)
    x = 0.5 + 0.02 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = box.predict(x)
    far = least(box, layer, x, y, norm)
    for nth, factor in ((2, 1.02), (5, 0.999)):
        eps = factor * float(far.sort().values[nth])
        got = apgd(box, x, y, eps=eps, norm=norm, steps=30, **how)
        assert not got.success[far >= eps].any()
        led_astray = classes > 2 and "n_targets" not in how
        assert got.success[far < eps].all() or led_astray


@pytest.mark.parametrize(
    ("model", "norm", "eps"),
    [("plain", "linf", 8 / 255), ("color", "linf", 0.3), ("double", "linf", 1e-4), ("bfloat16", "linf", 0.3),
     ("plain", "l2", 0.5), ("bfloat16", "l2", 3.0), ("color", "l2", 3.0), ("double", "l2", 0.5)],
)  # fmt: skip
def test_inside_its_ball(model: str, norm: str, eps: float) -> None:
    c = make_case(model)
    got = apgd(c.box, c.x, c.y, eps=eps, norm=norm, steps=5)
    assert_in_its_ball(c, got, norm, eps)
    assert got.initially_misclassified.tolist() == [False, False, True]


def forwards(c: MethodCase) -> list[int]:
    seen = list[int]()
    c.box.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize(("how", "looks"), [({}, 1 + 5), ({"restarts": 3}, 1 + 15), ({"n_targets": 9}, 2 + 15)])
def test_queries_are_counted(how: dict[str, Any], looks: int) -> None:
    """One forward of the original; a run of four steps has five; targets= ranks the classes by one more."""
    c = make_case("plain")
    seen = forwards(c)
    got = apgd(c.box, c.x[:1], c.y[:1], eps=1e-4, steps=4, **how)
    assert len(seen) == looks
    assert got.queries.tolist() == [looks]
    seen.clear()
    got = apgd(c.box, c.x, c.y, eps=1e-4, steps=4, **how)
    assert seen == [3] + [2] * (looks - 1)  # the third leaves at once
    assert got.queries.tolist() == [looks, looks, 1]


def test_fooled_rows_are_dropped() -> None:
    c = make_case("plain")
    seen = forwards(c)
    got = apgd(c.box, c.x, c.y, eps=0.5, steps=50, restarts=3)
    assert got.success.all()
    assert len(seen) < 20
    assert sum(seen) == int(got.queries.sum())


def test_restarts_are_never_worse() -> None:
    c = make_case("plain", torch.float64, n=8)
    y = c.box.predict(c.x)
    for eps in (0.02, 0.05, 0.1):
        one, two = (apgd(c.box, c.x, y, eps=eps, steps=4, restarts=r).success for r in (1, 3))
        assert (two | ~one).all()


def test_targeted() -> None:
    c = make_case("plain")
    target = (c.box.predict(c.x) + 1) % 4
    got = apgd(c.box, c.x, target=target, eps=0.5, steps=40)
    assert got.success.any()
    assert torch.equal(got.success, c.box.predict(got.images) == target)


def test_objective() -> None:
    c = make_case("plain")
    wanted = ub.channel("conv2", 1) - 0.3
    got = apgd(c.box, c.x, objective=wanted, eps=0.4, steps=10)
    score = c.box.read(got.images, "conv2")["conv2"][:, 1].flatten(1).mean(1) - 0.3
    assert torch.equal(got.success, score > 0)


def test_a_failure_returns_its_best_image() -> None:
    """Nearer to fooling than the original, and with more steps no farther."""
    c = make_case("plain", torch.float64)
    margins = list[Tensor]()
    tried = [apgd(c.box, c.x[:2], c.y[:2], eps=1e-3, loss="margin", steps=steps) for steps in (3, 30)]
    assert not any(got.success.any() for got in tried)
    for images in (c.x[:2], *(got.images for got in tried)):
        z = c.box(images)
        own = z.gather(1, c.y[:2, None])
        margins.append(z.scatter(1, c.y[:2, None], -torch.inf).amax(1) - own[:, 0])
    assert (margins[1] > margins[0]).all()
    assert (margins[2] >= margins[1] - 1e-12).all()


def test_a_ball_in_place_of_eps() -> None:
    c = make_case("plain")
    for ball, norm in ((Linf(0.05), "linf"), (L2(0.5), "l2")):
        one, two = apgd(c.box, c.x, c.y, ball=ball, steps=3), apgd(c.box, c.x, c.y, eps=ball.eps, norm=norm, steps=3)
        assert torch.equal(one.images, two.images)
        assert one.norm == two.norm == norm


def test_which_rows_halve_the_step_size() -> None:
    """Row 0 rose often; 1 too seldom; 2 did not pass its best of the last checkpoint; nor did 3, but it halved then."""
    c = make_case("plain", n=4)
    run = _APGD(AttackState(c.box, c.x, c.y, norm=Linf(0.1)), Linf(0.1), None, 10)
    here, best = torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)
    score, top, last = torch.full((4,), 1.0), torch.full((4,), 2.0), torch.tensor([1.5, 1.5, 2.0, 2.0])
    eta, eta_then = torch.full((4,), 0.2), torch.tensor([0.2, 0.2, 0.2, 0.4])
    rose = torch.tensor([3, 2, 4, 3])
    rows = torch.arange(4)
    walk = _APGDIterates(rows, here, here, here, here, best, best, score, top, top, eta, rose, eta_then, last)
    walk = run._adapt_step_size(walk, 4)
    assert walk.step_size.tolist() == pytest.approx([0.2, 0.1, 0.1, 0.2])
    assert walk.x.flatten(1).amax(1).tolist() == [0, 1, 1, 0]
    assert walk.grad.flatten(1).amax(1).tolist() == [0, 1, 1, 0]
    assert walk.score.tolist() == [1, 2, 2, 1]
    assert walk.checkpoint_step_size.tolist() == pytest.approx([0.2] * 4)
    assert walk.checkpoint_best_score.tolist() == [2] * 4
    assert walk.n_rises.tolist() == [0] * 4


def test_checkpoints_are_the_papers() -> None:
    assert checkpoint_steps(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoint_steps(0) == [0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "l1"}, "linf"),
        ({"ball": L1(1.0), "eps": None}, "linf"),
        ({"loss": "hinge"}, '"ce", "margin" or "dlr"'),
        ({"loss": "hinge", "n_targets": 2}, '"ce", "margin" or "dlr"'),
        ({"n_targets": 0}, "n_targets"),
        ({"n_targets": 2, "target": 1}, "n_targets="),
        ({"restarts": 0}, "restarts"),
        ({"steps": -1}, "steps"),
        ({"eps": -0.1}, "eps"),
        ({"eps": 8.0}, "8/255"),
        ({"y": None}, "correct classes"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    c = make_case("plain")
    given = {"x": c.x, "y": c.y, "eps": 0.1, "steps": 2, **settings}
    with pytest.raises(InputError, match=said):
        apgd(c.box, given.pop("x"), given.pop("y"), **given)
