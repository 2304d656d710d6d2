"""LRP against the papers' equations written out with dense matrices, and against captum where captum is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import lrp

EPS, GAMMA = 1e-3, 0.3
PIXELS = ub.Pixels((2, 6, 6), mean=(0.4, 0.6), std=(0.5, 0.3))


class Net(nn.Module):
    """Convolutions with stride, padding and groups, pooling of both kinds, and two dense layers."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias)
        self.fc1, self.fc2 = nn.Linear(6, 5, bias=bias), nn.Linear(5, 3, bias=bias)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.max, self.avg = nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.max(self.relu1(self.conv1(x)))
        h = self.avg(self.relu2(self.conv2(h)))
        return self.fc2(self.relu3(self.fc1(h.flatten(1))))


def images(n: int = 2) -> Tensor:
    return torch.rand(n, *PIXELS.shape, generator=torch.Generator().manual_seed(1)).double()


# ---- the rules, as the papers write them -----------------------------------------------------------------------------

Matrix = tuple[Tensor, Tensor]  # W (J, K), b (K,)


def matrix(layer: Callable[[Tensor], Tensor], shape: torch.Size) -> Matrix:
    """A layer's weights as a dense matrix, by running it on each unit vector."""
    zero = layer(torch.zeros(1, *shape).double()).flatten()
    units = torch.eye(shape.numel()).double().view(-1, *shape)
    return (layer(units).flatten(1) - zero).detach(), zero.detach()


def sign(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).double()


def safe(z: Tensor) -> Tensor:
    return z + EPS * sign(z)


def by_epsilon(a: Tensor, w: Tensor, b: Tensor, relevance: Tensor) -> Tensor:
    z = a @ w + b
    return sum_over_k(a[:, None] * w, relevance / safe(z))


def by_gamma(a: Tensor, w: Tensor, b: Tensor, relevance: Tensor) -> Tensor:
    p, z = a[:, None] * w, a @ w + b
    boosted = torch.where(z >= 0, p + GAMMA * p.clamp(min=0), p + GAMMA * p.clamp(max=0))
    bias = torch.where(z >= 0, b + GAMMA * b.clamp(min=0), b + GAMMA * b.clamp(max=0))
    return sum_over_k(boosted, relevance / safe(boosted.sum(0) + bias))


def by_z_plus(a: Tensor, w: Tensor, b: Tensor, relevance: Tensor) -> Tensor:
    p = (a[:, None] * w).clamp(min=0)
    return sum_over_k(p, relevance / safe(p.sum(0)))


def by_alpha_beta(a: Tensor, w: Tensor, b: Tensor, relevance: Tensor) -> Tensor:
    p = a[:, None] * w
    plus, minus = p.clamp(min=0), p.clamp(max=0)
    up = sum_over_k(plus, relevance / safe(plus.sum(0) + b.clamp(min=0)))
    sums = minus.sum(0) + b.clamp(max=0)
    return 2 * up - sum_over_k(minus, relevance / safe(sums))


def by_box(a: Tensor, w: Tensor, low: Tensor, high: Tensor, relevance: Tensor) -> Tensor:
    p = a[:, None] * w - low[:, None] * w.clamp(min=0) - high[:, None] * w.clamp(max=0)
    return sum_over_k(p, relevance / safe(p.sum(0)))


def by_flat(seen: Tensor, relevance: Tensor) -> Tensor:
    return sum_over_k(seen, relevance / seen.sum(0))


def sum_over_k(shares: Tensor, r: Tensor) -> Tensor:
    return torch.stack([(shares[j] * r).sum() for j in range(len(shares))])


RULES = {"epsilon": by_epsilon, "gamma": by_gamma, "z-plus": by_z_plus, "alpha-beta": by_alpha_beta}


def twin(model: Net, x: Tensor, k: int, conv: str, dense: str, first: str | None = None) -> Tensor:
    """Relevance of one image (C, H, W), layer by layer from the top, in relevance and not in gradients."""
    z0 = PIXELS.encode(x[None])
    h1 = model.max(model.conv1(z0).relu())
    h2 = model.avg(model.conv2(h1).relu())
    h3 = model.fc1(h2.flatten(1)).relu()
    out = model.fc2(h3)
    r = torch.where(torch.arange(3) == k, out[0], 0)
    r = RULES[dense](h3[0], *matrix(model.fc2, h3[0].shape), r)
    r = RULES[dense](h2.flatten(), *matrix(model.fc1, h2.flatten().shape), r)
    before = model.conv2(h1).relu()
    w, _ = matrix(model.avg, before[0].shape)
    p = before.flatten()[:, None] * w
    r = sum_over_k(p, r / torch.where(p.sum(0) == 0, 1, p.sum(0)))
    r = RULES[conv](h1.flatten(), *matrix(model.conv2, h1[0].shape), r)
    before = model.conv1(z0).relu()
    r = to_winners(before, r)
    w, b = matrix(model.conv1, z0[0].shape)
    if first is None:
        return RULES[conv](z0.flatten(), w, b, r).view(z0.shape[1:])
    low, high = (PIXELS.encode(torch.full_like(x[None], v)).flatten() for v in (0.0, 1.0))
    if first == "box":
        return by_box(z0.flatten(), w, low, high, r).view(z0.shape[1:])
    ones = nn.Conv2d(2, 4, 3, padding=1).double()
    nn.init.ones_(ones.weight)
    return by_flat(matrix(ones, z0[0].shape)[0], r).view(z0.shape[1:])


def to_winners(before: Tensor, r: Tensor) -> Tensor:
    """Max pooling 3x3, stride 1, padding 1: all of the relevance goes to the largest."""
    _, c, h, w = before.shape
    down = torch.zeros(c, h, w).double()
    for i, (k, y, x) in enumerate((k, y, x) for k in range(c) for y in range(h) for x in range(w)):
        near = [(u, v) for u in range(max(0, y - 1), min(h, y + 2)) for v in range(max(0, x - 1), min(w, x + 2))]
        u, v = max(near, key=lambda at: float(before[0, k, at[0], at[1]]))
        down[k, u, v] += r[i]
    return down.flatten()


KINDS: dict[str, dict[str, Any]] = {
    "epsilon": {"conv": "epsilon", "dense": "epsilon"},
    "gamma": {"conv": "gamma", "dense": "gamma"},
    "z-plus": {"conv": "z-plus", "dense": "z-plus"},
    "alpha-beta": {"conv": "alpha-beta", "dense": "alpha-beta"},
    "composite": {"conv": "gamma", "dense": "epsilon", "first": "box"},
    "composite-plus": {"conv": "z-plus", "dense": "epsilon", "first": "flat"},
}


@pytest.mark.parametrize("rule", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_rule_is_its_equation(rule: str, bias: bool) -> None:
    model = Net(bias)
    x, k = images(), torch.tensor([2, 0])
    got = lrp(ub.Box(model, PIXELS, outputs="logits"), x, k, rule=rule, epsilon=EPS, gamma=GAMMA)
    with torch.no_grad():
        want = torch.stack([twin(model, x[i], int(k[i]), **KINDS[rule]) for i in range(2)])
    assert float(want.abs().max()) > 1e-3
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12), (got - want).abs().max()


def test_the_rules_differ() -> None:
    """So that the test above can distinguish them."""
    box, x = ub.Box(Net(), PIXELS, outputs="logits"), images()
    made = [lrp(box, x, 1, rule=rule, epsilon=EPS, gamma=GAMMA) for rule in KINDS]
    for i, a in enumerate(made):
        assert all(float((a - b).abs().max()) > 1e-3 for b in made[:i])


# ---- captum ----------------------------------------------------------------------------------------------------------


def by_captum(model: Net, x: Tensor, k: Tensor, rule: Callable[[], Any]) -> Tensor:
    """captum's map, which it gives in units of relevance for an unnormalized input."""
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.rule = rule()
    z = PIXELS.encode(x).requires_grad_()
    return LRP(model).attribute(z, target=k).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_captum_agrees_on_epsilon(bias: bool) -> None:
    x, k = images(), torch.tensor([2, 0])
    got = lrp(ub.Box(Net(bias), PIXELS, outputs="logits"), x, k, rule="epsilon", epsilon=1e-9)
    assert torch.allclose(got, by_captum(Net(bias), x, k, lambda: EpsilonRule(1e-9)), rtol=1e-6, atol=1e-9)


def test_captum_agrees_on_gamma_where_it_is_right() -> None:
    """In the middle of a model without biases; at the end, captum lets a sum below zero cancel to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double().eval()
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(2)).double()
    box = ub.Box(model, ub.Features(tuple("abcdefgh")), outputs="logits")
    model[0].rule, model[2].rule = GammaRule(GAMMA), GammaRule(GAMMA)
    rows = torch.arange(4)
    k = box(x).argmax(1)
    assert (box(x)[rows, k] > 0).all()
    got = lrp(box, x, k, rule="gamma", gamma=GAMMA, epsilon=1e-9)
    want = LRP(model).attribute(x.requires_grad_(), target=k).detach()
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)


def test_captum_on_gamma_with_biases_is_not_the_equation() -> None:
    """Montavon et al. 2019 sum over 0, j: the bias is a weight like another. captum adds to all but the bias."""
    x, k = images(), torch.tensor([2, 0])
    got = lrp(ub.Box(Net(), PIXELS, outputs="logits"), x, k, rule="gamma", gamma=GAMMA)
    assert not torch.allclose(got, by_captum(Net(), x, k, lambda: GammaRule(GAMMA)), rtol=1e-2)


def test_captum_refuses_what_is_ordinary() -> None:
    """Kept as a record: modules without a rule, and modules used twice."""
    torch.manual_seed(1)
    x = torch.rand(1, 4).double()
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)).double()
    for model in (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).double(), twice):
        got = lrp(ub.Box(model, ub.Features(tuple("abcd")), outputs="logits"), x, 0)
        assert got.isfinite().all()
    with pytest.raises(TypeError):
        LRP(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).double()).attribute(x.requires_grad_(), target=0)


def test_unfolding_is_what_a_convolution_does() -> None:
    """The twin's matrices are the layers."""
    model, h = Net(), torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    w, b = matrix(model.conv2, h[0].shape)
    assert torch.allclose(h.flatten() @ w + b, F.conv2d(h, model.conv2.weight, model.conv2.bias, 2, 1, 1, 2).flatten())
