"""DDN and FMN, written from the papers' algorithms, one example at a time; and foolbox's, which may not be stronger."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

STEPS = 12
ORDER = {"l2": 2.0, "linf": math.inf, "l1": 1.0}
DUAL = {"l2": 2.0, "linf": 1.0, "l1": math.inf}

Attack = Callable[..., ub.adversarial.Adversarial]


def case() -> tuple[ub.Box, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    with torch.no_grad():
        model[3].weight.mul_(4)
    box = ub.Box(model, ub.Pixels((1, 6, 6)), outputs="logits")
    x = torch.rand(7, 1, 6, 6, dtype=torch.float64)
    return box, x, box.predict(x)


def cosine(first: float, last: float, k: int) -> float:
    return last + 0.5 * (first - last) * (1 + math.cos(k * math.pi / STEPS))


def ddn_twin(model: nn.Module, x: Tensor, y: int) -> float:
    """Algorithm 1 of arXiv:1811.09600; the least distance."""
    best, delta, eps = math.inf, torch.zeros_like(x), 1.0
    for k in range(STEPS + 1):
        z = (x + delta).requires_grad_()
        logits = model(z)
        fools = int(logits.argmax()) != y
        if fools:
            best = min(best, float(delta.norm()))
        if k == STEPS:
            break
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([y])), z)
        delta = delta + cosine(1.0, 0.01, k) * g / g.norm()
        eps *= 0.95 if fools else 1.05
        delta = (x + eps * delta / delta.norm()).clamp(0, 1) - x
    return best


def test_ddn_equals_algorithm_1() -> None:
    box, x, y = case()
    found = ub.adversarial.ddn(box, x, y, steps=STEPS)
    wanted = torch.tensor([ddn_twin(box.model, x[i : i + 1], int(y[i])) for i in range(len(x))], dtype=torch.float64)
    assert found.success.all()
    assert torch.allclose(found.distance, wanted, rtol=1e-9)


def norm_of(d: Tensor, order: float) -> float:
    return float(torch.linalg.vector_norm(d.flatten(), order))


def onto(delta: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest point of the ball of radius eps; in L1 by bisection of what all values are lowered by."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    if norm == "l2":
        return delta * min(1.0, eps / max(norm_of(delta, 2), 1e-300))
    low, high = 0.0, 0.0 if norm_of(delta, 1) <= eps else norm_of(delta, math.inf)
    for _ in range(200):
        middle = (low + high) / 2
        inside = float((delta.abs() - middle).clamp_min(0).sum()) <= eps
        low, high = (low, middle) if inside else (middle, high)
    return delta.sign() * (delta.abs() - high).clamp_min(0)


def pointing_out(z: Tensor, way: Tensor) -> Tensor:
    """Where a value at the edge of [0, 1] would leave it."""
    return ((z <= 0) & (way < 0)) | ((z >= 1) & (way > 0))


def fmn_twin(model: nn.Module, x: Tensor, y: int, norm: str, *, papers: bool = False) -> float:
    """Algorithm 1 of arXiv:2102.12827; the least distance. `papers`: without the two lines that are ours."""
    best, delta, eps, stalled = math.inf, torch.zeros_like(x), math.inf, False
    for k in range(STEPS + 1):
        z = (x + delta).requires_grad_()
        logits = model(z)[0]
        lead = logits[y] - max(logits[j] for j in range(len(logits)) if j != y)
        size, fools = norm_of(delta, ORDER[norm]), float(lead.detach()) < 0
        if fools:
            best = min(best, size)
        if k == STEPS:
            break
        g = torch.autograd.grad(lead, z)[0]
        if k == 5 and not papers:
            stalled = best == math.inf
        if stalled:
            g = g.where(~pointing_out(z.detach(), -g), 0.0)  # ours
        gamma, alpha = cosine(0.05, 0.001, k), cosine(1.0, 0.01, k)
        if fools:
            eps = min(eps * (1 - gamma), best)
        elif best < math.inf:
            eps *= 1 + gamma
        else:
            eps = size + float(lead.detach()) / norm_of(g, DUAL[norm])
            eps *= 1.0 if papers else 1 + gamma if stalled else 1.001  # ours
        delta = (x + onto(delta - alpha * g / g.norm(), eps, norm)).clamp(0, 1) - x
    return best


def fmn_twins(box: ub.Box, x: Tensor, y: Tensor, norm: str, papers: bool) -> Tensor:
    found = [fmn_twin(box.model, x[i : i + 1], int(y[i]), norm, papers=papers) for i in range(len(x))]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("norm", ORDER)
def test_fmn_equals_algorithm_1(norm: str) -> None:
    """But for the two lines that are ours."""
    box, x, y = case()
    found = ub.adversarial.fmn(box, x, y, steps=STEPS, norm=norm)
    wanted = fmn_twins(box, x, y, norm, papers=False)
    assert found.success.sum() >= 5
    assert torch.equal(found.success, wanted.isfinite())
    assert torch.allclose(found.distance[found.success], wanted[found.success], rtol=1e-7)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_two_deviations_of_fmn_fool_more(norm: str) -> None:
    box, x, y = case()
    ours, papers = (fmn_twins(box, x, y, norm, papers=p).isfinite().sum() for p in (False, True))
    assert ours > papers


@pytest.mark.parametrize("attack", [ub.adversarial.ddn, ub.adversarial.fmn])
def test_targeted(attack: Attack) -> None:
    box, x, y = case()
    target = (y + 1) % 4
    found = attack(box, x, y, target=target, steps=60)
    assert found.success.float().mean() > 0.5
    assert torch.equal(box.predict(found.images) == target, found.success)


def small_digits(part: Any, n: int) -> tuple[Tensor, Tensor]:
    x, y = ub.data.digits(part).first(n)
    return nn.functional.avg_pool2d(x, 4), y


@cache
def small_box() -> ub.Box:
    """Of digits of 7 x 7 pixels: random ReLU features, and ridge regression in closed form as the last layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 64), nn.ReLU(), nn.Linear(64, 10)).requires_grad_(False)
    inputs = ub.Pixels((1, 7, 7), mean=0.2, std=0.3)
    x, y = small_digits("train", 600)
    hidden = nn.functional.pad(model[:3](inputs.encode(x)), (0, 1), value=1)
    w = torch.linalg.solve(
        hidden.T @ hidden + 3 * torch.eye(65), hidden.T @ (20 * nn.functional.one_hot(y, 10).float())
    )
    model[3].weight.copy_(w[:-1].T)
    model[3].bias.copy_(w[-1])
    return ub.Box(model.eval(), inputs, outputs="logits")


def digits(n: int, *, small: bool) -> tuple[ub.Box, Any, Tensor, Tensor]:
    """The small model or the zoo's CNN, as foolbox takes it too, and images that it takes for what they are."""
    box = small_box() if small else ub.load("zoo:digits-cnn")
    x, y = small_digits("test", n) if small else ub.data.digits("test").first(n)
    right = box.predict(x) == y
    of = {"mean": box.inputs.mean, "std": box.inputs.std}
    return box, foolbox.PyTorchModel(box.model, bounds=(0, 1), preprocessing=of), x[right], y[right]


@pytest.mark.parametrize(
    ("ours", "norm", "theirs"),
    [
        (ub.adversarial.ddn, "l2", foolbox.attacks.DDNAttack(steps=100)),
        (ub.adversarial.fmn, "linf", foolbox.attacks.LInfFMNAttack(steps=100)),
        (ub.adversarial.fmn, "l1", foolbox.attacks.L1FMNAttack(steps=100)),
    ],
)
def test_at_least_as_strong_as_foolbox(ours: Attack, norm: str, theirs: Any) -> None:
    as_strong(ours, norm, theirs, digits(20, small=True))


def test_in_l2_fmn_is_at_least_as_strong_as_foolbox() -> None:
    """On a CNN, where foolbox's finds changes as small as DDN's; on the small model, its are four times as large."""
    as_strong(ub.adversarial.fmn, "l2", foolbox.attacks.L2FMNAttack(steps=100), digits(20, small=False))


def as_strong(ours: Attack, norm: str, theirs: Any, digits: tuple[ub.Box, Any, Tensor, Tensor]) -> None:
    box, model, x, y = digits
    _, made, success = theirs(model, x, y, epsilons=None)
    d = torch.linalg.vector_norm((made - x).flatten(1), ORDER[norm], dim=1)[success]
    found = ours(box, x, y, norm=norm)
    assert found.success.sum() >= success.sum()
    assert found.distance[found.success].mean() <= d.mean() * 1.01
    assert found.distance[found.success].median() <= d.median() * (1.02 if norm == "linf" else 1.01)  # of 20 images


FOOLBOX_FMN = {
    "l2": foolbox.attacks.L2FMNAttack, "linf": foolbox.attacks.LInfFMNAttack, "l1": foolbox.attacks.L1FMNAttack,
}  # fmt: skip


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("steps", [10, 20])
def test_fmn_of_few_steps_is_no_weaker_than_foolbox(norm: str, steps: int) -> None:
    """Where both fool: in L1, foolbox's fails on a third of these images and ours on none."""
    box, model, x, y = digits(60 if norm != "l2" else 20, small=norm != "l2")
    _, made, success = FOOLBOX_FMN[norm](steps=steps)(model, x, y, epsilons=None)
    found = ub.adversarial.fmn(box, x, y, norm=norm, steps=steps)
    theirs = torch.linalg.vector_norm((made - x).flatten(1), ORDER[norm], dim=1)
    assert found.success.all()
    assert found.distance[success].mean() <= theirs[success].mean() * 1.02
