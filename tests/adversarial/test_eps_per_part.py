"""An eps for each of several inputs: each part in its ball and its range, by the closed form, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.adversarial import Adversarial, apgd, bim, fgsm, mi_fgsm, pgd
from unboxed.engine.optimize.constraints import BALL_BY_NORM, L2, Linf, unbounded_ball
from unboxed.engine.optimize.part_balls import PartBalls
from unboxed.errors import InputError

ATTACKS: dict[str, Callable[..., Adversarial]] = {
    "fgsm": fgsm,
    "bim": bim,
    "pgd": pgd,
    "mi_fgsm": mi_fgsm,
    "apgd": apgd,
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
STD = torch.tensor([2.0, 50.0])


class TwoInputs(nn.Module):
    """One number from an image and a table, linear in both."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(16, generator=g, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(2, generator=g, dtype=torch.float64))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return (image.flatten(1) @ self.image + table @ self.table)[:, None]


def opened(named: bool = True) -> tuple[ub.Box, Any]:
    g = torch.Generator().manual_seed(1)
    parts = (ub.Pixels((1, 4, 4)), ub.Features(("age", "wage"), std=STD))
    x = (torch.rand(5, 1, 4, 4, generator=g, dtype=torch.float64), 100 * torch.rand(5, 2, generator=g).double())
    inputs = ub.MultiInput({"image": parts[0], "table": parts[1]} if named else parts)
    return ub.Box(TwoInputs(), inputs, outputs="regression"), {"image": x[0], "table": x[1]} if named else x


@every_attack
def test_each_part_is_moved_to_the_edge_of_its_own_ball(attack: Callable[..., Adversarial]) -> None:
    """A linear model: each pixel by its eps, clipped, and each column by its eps in standard deviations."""
    box, x = opened()
    model, eps = box.model, {"image": 0.1, "table": 0.5}
    y = torch.full((5,), -1e4, dtype=torch.float64)  # away from it is up
    result = attack(box, x, y, eps=eps)
    image = (x["image"] + 0.1 * model.image.detach().sign().view(1, 1, 4, 4)).clamp(0, 1)
    table = x["table"] + 0.5 * model.table.detach().sign() * STD
    assert torch.allclose(result.images["image"], image, atol=1e-9)
    assert torch.allclose(result.images["table"], table, atol=1e-6)
    assert torch.allclose(result.distance, torch.ones(5, dtype=torch.float64), rtol=1e-6)  # the share of eps
    assert result.norm == "linf / eps"


@every_attack
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_part_stays_in_its_ball_and_its_range(attack: Callable[..., Adversarial], norm: str) -> None:
    if norm == "l1" and attack is apgd:
        return
    box, x = opened(named=False)
    result = attack(box, x, eps=(0.3, 0.2), norm=norm)
    image, table = result.images
    ball = unbounded_ball(norm)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert (ball.distance(image, x[0]) <= 0.3 * (1 + 1e-6)).all()
    assert (ball.distance(table / STD, x[1] / STD) <= 0.2 * (1 + 1e-6)).all()
    assert float(ball.distance(table / STD, x[1] / STD).max()) > 0.1


@every_attack
@pytest.mark.parametrize("eps", [{"table": 0.5}, {"table": 0.5, "image": None}])
def test_parts_without_an_eps_are_not_changed(attack: Callable[..., Adversarial], eps: Any) -> None:
    box, x = opened()
    result = attack(box, x, eps=eps)
    assert torch.equal(result.images["image"], x["image"])
    assert (result.images["table"] != x["table"]).all()


def test_one_number_is_one_ball_of_all_values() -> None:
    """With L-inf it is the same as that eps for each part."""
    box, x = opened()
    together, apart = bim(box, x, eps=0.1), bim(box, x, eps={"image": 0.1, "table": 0.1})
    for name in ("image", "table"):
        assert torch.allclose(together.images[name], apart.images[name], atol=1e-6)
    assert torch.allclose(together.distance, 0.1 * apart.distance, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_balls_are_those_of_the_parts(norm: str) -> None:
    """Projection, step and distance, part by part."""
    g = torch.Generator().manual_seed(3)
    x, center, grad = torch.randn(3, 20, 9, generator=g, dtype=torch.float64)
    one, two = BALL_BY_NORM[norm](0.5), BALL_BY_NORM[norm](2.0)
    balls = PartBalls((4, 3, 2), (one, None, two), norm)
    near = balls.project(x, center)
    assert torch.equal(near[:, :4], one.project(x[:, :4], center[:, :4]))
    assert torch.equal(near[:, 4:7], center[:, 4:7])
    assert torch.equal(near[:, 7:], two.project(x[:, 7:], center[:, 7:]))
    assert (balls.distance(near, center) <= 1 + 1e-9).all()
    for i in range(20):
        shares = [float(one.distance(x[i : i + 1, :4], center[i : i + 1, :4])) / 0.5]
        shares += [float(two.distance(x[i : i + 1, 7:], center[i : i + 1, 7:])) / 2]
        assert float(balls.distance(x[i : i + 1], center[i : i + 1])) == pytest.approx(max(shares))
    step = balls.steepest_direction(grad)
    assert torch.allclose(balls.distance(center + step, center), torch.ones(20, dtype=torch.float64))
    best = (step * grad).sum(1)
    for seed in range(50):  # no other step of length 1 gains more (but in L1, where it goes along several values)
        other = balls.sample(center, seed) - center
        assert (balls.distance(center + other, center) <= 1 + 1e-9).all()
        assert (other[:, 4:7] == 0).all()
        if norm != "l1":
            assert ((other * grad).sum(1) <= best + 1e-9).all()


def test_classes_are_attacked_part_by_part() -> None:
    class Classes(TwoInputs):
        def forward(self, image: Tensor, table: Tensor) -> Tensor:
            z = super().forward(image, table / 100)
            return torch.cat([z, -z, 0 * z], 1)

    parts = {"image": ub.Pixels((1, 4, 4)), "table": ub.Features(("age", "wage"), std=STD)}
    box, (_, x) = ub.Box(Classes(), ub.MultiInput(parts)), opened()
    result = pgd(box, x, box.predict(x), eps={"image": 0.4})
    assert result.success.any()
    assert torch.equal(result.images["table"], x["table"])
    assert torch.equal(box.predict(result.images) != box.predict(x), result.success)


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        ({"picture": 0.1}, "the inputs are 'image', 'table'; got an eps for 'picture'"),
        ((0.1,), "an eps for each of 2 inputs"),
        ((0.1, 0.1, 0.1), "got 3"),
        ({}, "at least one of 'image', 'table'"),
        ((None, None), "at least one of"),
        ({"image": 0}, "at least one of"),
        ({"image": -0.1}, "eps must be a number above 0"),
        ({"image": "large"}, "eps must be a number"),
        ({"image": 8}, "for 8 gray levels give eps=8/255"),
    ],
)
def test_what_does_not_fit_is_refused(eps: Any, message: str) -> None:
    box, x = opened()
    with pytest.raises(InputError, match=message):
        pgd(box, x, eps=eps)


@every_attack
@pytest.mark.parametrize("still", [{"image": 0.1, "table": 0}, {"image": 0.1, "table": 0.0}, {"image": 0.1}])
def test_an_eps_of_zero_leaves_a_part_as_it_is(attack: Callable[..., Adversarial], still: dict[str, float]) -> None:
    box, x = opened()
    result = attack(box, x, torch.full((5,), -1e4, dtype=torch.float64), eps=still)
    assert torch.equal(result.images["table"], x["table"])
    assert torch.equal(result.images["image"], attack(box, x, torch.full((5,), -1e4, dtype=torch.float64),
                                                      eps=(0.1, None)).images["image"])  # fmt: skip


@pytest.mark.parametrize("eps", [[{"image": 0.1, "table": 0.2}], {"image": 0.1}, [0.1, (0.1, 0.2)]])
@pytest.mark.parametrize("evaluation", [ub.robustness.evaluate, ub.robustness.evaluate_outputs])
def test_evaluations_say_what_to_do_with_an_eps_per_part(evaluation: Callable[..., Any], eps: Any) -> None:
    box, x = opened()
    if evaluation is ub.robustness.evaluate:
        box = ub.Box(TwoClasses(box.model), box.inputs, outputs="logits")
        data = (x, torch.zeros(5, dtype=torch.long))
    else:
        data = (x, torch.zeros(5, dtype=torch.float64))
    with pytest.raises(InputError, match=r"one number per eps, .*pgd\(box, x, y, eps=\{'image'"):
        evaluation(box, data, eps=eps)


class TwoClasses(nn.Module):
    """The number and its negative as logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        number: Tensor = self.model(image, table)
        return torch.cat([number, -number], 1)


def test_other_models_balls_and_attacks_refuse() -> None:
    box, x = opened()
    one_input = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), ub.Pixels((1, 4, 4)), outputs="regression")
    with pytest.raises(InputError, match="models of several inputs"):
        pgd(one_input, torch.rand(2, 1, 4, 4), eps=(0.1, 0.1))
    with pytest.raises(InputError, match="or ball="):
        pgd(box, x, eps={"image": 0.1}, ball=Linf(0.1))
    with pytest.raises(InputError, match='"linf" or "l2"'):
        apgd(box, x, eps={"image": 0.1}, norm="l1")
    with pytest.raises(InputError, match=r"eps is one number here.*such as pgd and apgd"):
        ub.adversarial.auto_attack(box, x, eps={"image": 0.1}, objective=ub.logit(0))
    assert PartBalls((1,), (L2(1.0),), "l2").eps == 1


class Distance(nn.Module):
    """How far apart two images are, as a model of pairs measures it."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).square().sum(1, keepdim=True)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_two_images_that_are_alike_start_apart(norm: str) -> None:
    """At the same point of both balls the distance would be zero, and have no gradient."""
    image = ub.Pixels((1, 4, 4))
    box = ub.Box(Distance().double(), ub.MultiInput((image, image)), outputs="regression")
    x = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    result = pgd(box, (x, x), eps=(0.1, 0.1), norm=norm)
    assert result.success.all()
    again = pgd(box, (x, x), eps=(0.1, 0.1), norm=norm)
    assert all(torch.equal(a, b) for a, b in zip(result.images, again.images, strict=True))
