"""Attacks in gradient steps against literal loops of their papers' equations, and against foolbox."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import unboxed as ub
from unboxed.engine.optimize.constraints import L1

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports a name that scipy has moved
    import foolbox

N, K = 6, 4
Step = Callable[[Tensor], Tensor]


@pytest.fixture
def box() -> ub.Box:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, K)).double()
    with torch.no_grad():
        model[3].weight *= 8
        model[3].bias -= model(torch.rand(99, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()).mean(0)
    return ub.Box(model.eval(), ub.Pixels((1, 8, 8)))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ascent_direction(box: ub.Box, a: Tensor, y: Tensor, sign: float = 1.0) -> Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(sign * cross_entropy(box.model(a), y, reduction="sum"), a)[0]


def along_sign(g: Tensor) -> Tensor:
    return g.sign()


def along_unit(g: Tensor) -> Tensor:
    return torch.stack([v / v.pow(2).sum().sqrt() for v in g])


def back_linf(a: Tensor, x: Tensor, eps: float) -> Tensor:
    return torch.minimum(torch.maximum(a, x - eps), x + eps).clamp(0, 1)


def back_l2(a: Tensor, x: Tensor, eps: float) -> Tensor:
    rows = [
        v + (w - v) * min(1.0, eps / float((w - v).norm())) if (w != v).any() else w for v, w in zip(x, a, strict=True)
    ]
    return torch.stack(rows).clamp(0, 1)


WAYS: dict[str, tuple[Step, Callable[[Tensor, Tensor, float], Tensor], float]] = {
    "linf": (along_sign, back_linf, 0.06),
    "l2": (along_unit, back_l2, 0.5),
}


@pytest.mark.parametrize("norm", WAYS)
def test_fgsm(box: ub.Box, x: Tensor, norm: str) -> None:
    """x' = x + eps * sign(grad J), Goodfellow et al. 2015."""
    step, back, eps = WAYS[norm]
    y = box.predict(x)
    want = back(x + eps * step(ascent_direction(box, x, y)), x, eps)
    made = ub.adversarial.fgsm(box, x, y, eps=eps, norm=norm, early_stop=False)
    assert torch.allclose(made.images, want, atol=1e-12)
    assert torch.equal(made.success, box.predict(want) != y)
    assert (made.queries == 2).all()


@pytest.mark.parametrize("norm", WAYS)
@pytest.mark.parametrize("targeted", [False, True])
def test_bim(box: ub.Box, x: Tensor, norm: str, targeted: bool) -> None:
    """Kurakin et al. 2017: sign steps, each clipped to the ball and to the valid range; targeted: downhill."""
    step, back, eps = WAYS[norm]
    y = box.predict(x)
    goal = (y + 1) % K if targeted else y
    a = x
    for _ in range(7):
        a = back(a + eps / 5 * step(ascent_direction(box, a, goal, -1.0 if targeted else 1.0)), x, eps)
    given: dict[str, Any] = {"target": goal} if targeted else {"y": y}
    made = ub.adversarial.bim(box, x, **given, eps=eps, norm=norm, steps=7, step=eps / 5, early_stop=False)
    now = box.predict(a)
    ends = now == goal if targeted else now != y
    assert torch.allclose(made.images[ends | ~made.success], a[ends | ~made.success], atol=1e-12)
    assert made.success[ends].all()


@pytest.mark.parametrize("norm", WAYS)
def test_mi_fgsm(box: ub.Box, x: Tensor, norm: str) -> None:
    """Dong et al. 2018: g <- mu g + grad / |grad|_1, and a step along g."""
    step, back, eps = WAYS[norm]
    y, mu, steps = box.predict(x), 0.9, 6
    a, g = x, torch.zeros_like(x)
    for _ in range(steps):
        grad = ascent_direction(box, a, y)
        g = mu * g + torch.stack([v / v.abs().sum() for v in grad])
        a = back(a + eps / steps * step(g), x, eps)
    made = ub.adversarial.mi_fgsm(box, x, y, eps=eps, norm=norm, steps=steps, decay=mu, early_stop=False)
    assert torch.allclose(made.images, a, atol=1e-12)
    plain = ub.adversarial.bim(box, x, y, eps=eps, norm=norm, steps=steps, step=eps / steps, early_stop=False)
    assert not torch.allclose(plain.images, a, atol=1e-6)  # the momentum is not nothing


def test_pgd_in_l1(box: ub.Box, x: Tensor) -> None:
    """Steps along the sign of the largest gradient that the valid range leaves free, projected by bisection."""
    x = x.clone()
    x[:, :, :4] = x[:, :, :4].round()  # half of the values at the edge of the valid range
    y, eps = box.predict(x), 2.0
    a = x
    for _ in range(6):
        grad = ascent_direction(box, a, y)
        a = torch.stack([by_hand(w, v, g, eps) for w, v, g in zip(a, x, grad, strict=True)])
    made = ub.adversarial.bim(box, x, y, eps=eps, norm="l1", steps=6, step=0.7, early_stop=False)
    assert torch.allclose(made.images, a, atol=1e-9)


def by_hand(a: Tensor, x: Tensor, grad: Tensor, eps: float) -> Tensor:
    slopes = zip(grad.flatten().tolist(), a.flatten().tolist(), strict=True)
    _, at = max(
        (abs(g), i) for i, (g, v) in enumerate(slopes) if (v < 1 if g > 0 else v > 0)
    )  # one of 64 is the hundredth, rounded up
    moved = a.flatten().clone()
    moved[at] += 0.7 * grad.flatten()[at].sign()
    return nearest(moved - x.flatten(), eps).view_as(x).add(x).clamp(0, 1)


def nearest(d: Tensor, eps: float) -> Tensor:
    """The projection onto the L1 ball by bisection of the threshold."""
    if d.abs().sum() <= eps:
        return d
    low, high = 0.0, float(d.abs().max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (d.abs() - middle).clamp_min(0).sum() > eps else (low, middle)
    return d.sign() * (d.abs() - low).clamp_min(0)


@pytest.mark.parametrize("eps", [0.3, 2.0, 40.0])
def test_the_projection_in_l1(eps: float) -> None:
    """Against bisection; and rows inside stay the very same."""
    draw = torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw[7, 0] = draw[7, 1]  # ties
    draw[8] = 0
    centre = torch.rand(20, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = L1(eps).project(centre + draw, centre)
    want = torch.stack([nearest(d.flatten(), eps).view_as(d) for d in draw])
    assert torch.allclose(found, centre + want, atol=1e-12)
    inside = draw.flatten(1).abs().sum(1) <= eps
    assert torch.equal(found[inside], (centre + draw)[inside])


# ---- foolbox ---------------------------------------------------------------------------------------------------------

PEERS = {
    ("fgsm", "linf"): (foolbox.attacks.FGSM, {}),
    ("fgsm", "l2"): (foolbox.attacks.FGM, {}),
    ("bim", "linf"): (foolbox.attacks.LinfBasicIterativeAttack, {"abs_stepsize": 0.01, "steps": 8}),
    ("bim", "l2"): (foolbox.attacks.L2BasicIterativeAttack, {"abs_stepsize": 0.1, "steps": 8}),
}


@pytest.mark.parametrize(("name", "norm"), PEERS)
def test_the_same_images_as_foolboxs(box: ub.Box, x: Tensor, name: str, norm: str) -> None:
    kind, settings = PEERS[name, norm]
    eps, y = WAYS[norm][2], box.predict(x)
    peer = kind(random_start=False, **settings)
    with torch.enable_grad():
        _, want, fooled = peer(foolbox.PyTorchModel(box.model, bounds=(0, 1)), x, y, epsilons=eps)
    ours = {"steps": settings["steps"], "step": settings["abs_stepsize"]} if settings else {}
    made = getattr(ub.adversarial, name)(box, x, y, eps=eps, norm=norm, early_stop=False, **ours)
    same = ~made.success | fooled
    assert torch.allclose(made.images[same], want[same], atol=1e-9)
    assert made.success[fooled].all()


def test_pgd_is_no_weaker_than_foolboxs(box: ub.Box) -> None:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, left = box.predict(x), {}
    for eps in (0.02, 0.03, 0.04):
        made = ub.adversarial.pgd(box, x, y, eps=eps, steps=10, step=eps / 4)
        peer = foolbox.attacks.LinfPGD(steps=10, abs_stepsize=eps / 4)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            fooled = peer(foolbox.PyTorchModel(box.model, bounds=(0, 1)), x, y, epsilons=eps)[2]
        left[eps] = int((~made.success).sum()), int((~fooled).sum())
    assert all(ours <= theirs + 1 for ours, theirs in left.values()), left
    assert 0 < left[0.03][0] < 60  # neither too easy nor too hard to tell
