"""DDN, written from the paper's algorithm, one example at a time; and foolbox's, which may not be stronger."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

import unboxed as ub

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

STEPS = 12


def case() -> tuple[ub.Box, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    with torch.no_grad():
        net[3].weight.mul_(4)
    box = ub.Box(net, ub.Pixels((1, 6, 6)), outputs="logits")
    x = torch.rand(7, 1, 6, 6, dtype=torch.float64)
    return box, x, box.predict(x)


def cosine(first: float, last: float, k: int) -> float:
    return last + 0.5 * (first - last) * (1 + math.cos(k * math.pi / STEPS))


def ddn_twin(net: nn.Module, x: Tensor, y: int) -> float:
    """Algorithm 1 of arXiv:1811.09600; the least distance."""
    best, delta, eps = math.inf, torch.zeros_like(x), 1.0
    for k in range(STEPS + 1):
        z = (x + delta).requires_grad_()
        logits = net(z)
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


def test_ddn_is_the_papers() -> None:
    box, x, y = case()
    found = ub.adversarial.ddn(box, x, y, steps=STEPS)
    wanted = torch.tensor([ddn_twin(box.net, x[i : i + 1], int(y[i])) for i in range(len(x))], dtype=torch.float64)
    assert found.success.all()
    assert torch.allclose(found.distance, wanted, rtol=1e-9)


def test_targeted() -> None:
    box, x, y = case()
    target = (y + 1) % 4
    found = ub.adversarial.ddn(box, x, y, target=target, steps=60)
    assert found.success.float().mean() > 0.5
    assert torch.equal(box.predict(found.images) == target, found.success)


def test_at_least_as_strong_as_foolbox() -> None:
    box = ub.load("zoo:digits-cnn")
    x, y = ub.data.digits("test").first(40)
    right = box.predict(x) == y
    x, y = x[right], y[right]
    of = {"mean": box.inputs.mean, "std": box.inputs.std}
    model, theirs = foolbox.PyTorchModel(box.net, bounds=(0, 1), preprocessing=of), foolbox.attacks.DDNAttack(steps=100)
    _, made, success = theirs(model, x, y, epsilons=None)
    d = (made - x).flatten(1).norm(dim=1).where(success, torch.inf)
    found = ub.adversarial.ddn(box, x, y)
    assert found.success.sum() >= success.sum()
    assert found.distance.where(found.success, torch.inf).median() <= d.median() * 1.01
