"""Self-influence by its definition: g^T (H + damping)^-1 g / n, with H from the Hessian of a linear model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unboxed as ub
from unboxed.errors import DataError, LayerError, NaNError, OutputError
from unboxed.influence import self_influence

N = 12
INPUTS = ub.Pixels((1, 2, 2))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(N, 1, 2, 2, generator=generator, dtype=torch.float64), torch.arange(N) % 3


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def slow(model: nn.Module, x: Tensor, y: Tensor, damping: float) -> Tensor:
    """The Hessian of the mean loss by autograd: for a linear model it is the Gauss-Newton matrix."""
    w, b = model[1].weight.detach(), model[1].bias.detach()  # type: ignore[index]

    def loss(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x.flatten(1) @ p[:12].reshape(3, 4).T + p[12:], y)

    p = torch.cat([w.flatten(), b])
    h = torch.autograd.functional.hessian(lambda p: loss(p, x, y), p) + damping * torch.eye(15, dtype=p.dtype)
    leaf = p.requires_grad_()
    g = torch.stack([torch.autograd.grad(loss(leaf, x[i : i + 1], y[i : i + 1]), leaf)[0] for i in range(N)])
    return (g @ torch.linalg.inv(h) * g).sum(1) / N


def test_gauss_newton_is_the_definition() -> None:
    x, y = data()
    r = self_influence(ub.Box(linear(), INPUTS), (x, y), damping=0.01)
    torch.testing.assert_close(r.scores, slow(linear(), x, y, 0.01), rtol=1e-9, atol=1e-12)
    assert (r.unit, r.damping, r.layers) == ("nats per example left out", 0.01, ("1",))
    assert torch.equal(r.top(2), r.scores.topk(2).indices)


def test_default_damping_is_a_tenth_of_the_mean_eigenvalue() -> None:
    x, y = data()
    r = self_influence(ub.Box(linear(), INPUTS), (x, y))
    p = linear()(x).detach().softmax(1)
    trace = ((p - p.square()).sum(1) * (1 + x.flatten(1).square().sum(1))).mean()  # of H
    assert r.damping == pytest.approx(0.1 * float(trace) / 15, rel=1e-9)
    torch.testing.assert_close(r.scores, slow(linear(), x, y, r.damping), rtol=1e-9, atol=1e-12)


def test_without_damping_the_null_space_is_left_out() -> None:
    """Adding the same to all logits changes nothing: H is singular, the scores are finite."""
    x, y = data()
    r, near = (self_influence(ub.Box(linear(), INPUTS), (x, y), damping=d).scores for d in (0.0, 1e-9))
    torch.testing.assert_close(r, near, rtol=1e-4, atol=1e-6)


def test_identity_is_the_squared_gradient_norm_of_all_parameters() -> None:
    x, y = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double()
    r = self_influence(ub.Box(model, INPUTS), (x, y), curvature="identity")
    for i in range(N):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        want = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))
        assert float(r.scores[i]) == pytest.approx(want, rel=1e-9)
    assert r.unit == "squared gradient norm"


def test_layers_are_chosen() -> None:
    x, y = data()
    torch.manual_seed(1)
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double(), INPUTS)
    last, first, both = (self_influence(box, (x, y), layers=a).scores for a in (None, "1", ["1", "3"]))
    assert torch.equal(last, self_influence(box, (x, y), layers="3").scores)
    assert not torch.allclose(last, first)
    assert not torch.allclose(last, both)


def test_bad_input_is_refused() -> None:
    x, y = data()
    box = ub.Box(linear(), INPUTS)
    with pytest.raises(DataError, match="no labels"):
        self_influence(box, x)
    wide = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(4, 1500)).double(), INPUTS)
    with pytest.raises(LayerError, match=r'up to 4096 parameters; got 7500.*curvature="identity"'):
        self_influence(wide, (x, y))
    with pytest.raises(OutputError, match="self-influence"):
        self_influence(ub.Box(linear(), INPUTS, outputs="regression"), (x, y))
    per_batch = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    with pytest.raises(OutputError, match="change one another"):
        self_influence(ub.Box(per_batch, INPUTS), (x, y))


def test_a_gradient_that_is_not_finite_names_its_example() -> None:
    x, y = data()
    x[5] = 0

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)).abs().sqrt()

    with pytest.raises(NaNError, match="1 of 12 training examples") as caught:
        self_influence(ub.Box(Root(), INPUTS, outputs="logits"), (x, y), curvature="identity")
    assert caught.value.rows == [5]


def test_a_model_that_is_one_layer_has_the_scores_of_that_layer() -> None:
    torch.manual_seed(0)
    alone, x = torch.nn.Linear(4, 3), torch.randn(12, 4)
    y, names = x[:, :3].argmax(1), ("a", "b", "c", "d")
    one, layered = (ub.Box(m, ub.Features(names), outputs="logits") for m in (alone, torch.nn.Sequential(alone)))
    got, want = (ub.influence.self_influence(box, (x, y)) for box in (one, layered))
    assert got.layers == ("weight", "bias")
    torch.testing.assert_close(got.scores, want.scores, rtol=0, atol=0)
