"""Randomized weights under torch's parametrizations: valid ones, unlike the trained, by the seed alone."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import unboxed as ub
from unboxed.engine.randomized import randomize_all_layers

orthogonal, weight_norm, spectral_norm = (
    parametrizations.orthogonal,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
)


class Exponential(nn.Module):
    """Positive weights; with its inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()

    def right_inverse(self, w: Tensor) -> Tensor:
        return w.abs().log()


class LowRank(nn.Module):
    """LoRA: a sum without an inverse, with weights of its own."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(shape[0], 2)), nn.Parameter(torch.randn(2, shape[1:].numel()))

    def forward(self, w: Tensor) -> Tensor:
        return w + (self.a @ self.b).view_as(w)


def own(make: Callable[[nn.Module], nn.Module], module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", make(module))


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": weight_norm,
    "weight_norm of all": partial(weight_norm, dim=None),
    "spectral_norm": spectral_norm,
    "exponential": partial(own, lambda module: Exponential()),
    "low rank": partial(own, lambda module: LowRank(module.weight.shape)),
    "two": lambda module: spectral_norm(weight_norm(module)),
    "pruned": partial(prune.l1_unstructured, name="weight", amount=0.3),
}
ORTHOGONAL = {
    f"orthogonal by {how}, {'' if base else 'no '}base": partial(
        orthogonal, orthogonal_map=how, use_trivialization=base
    )
    for how in ("matrix_exp", "cayley", "householder")
    for base in (True, False)
}


class Net(nn.Module):
    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def randomized(make: Callable[[nn.Module], nn.Module], seed: int, width: int = 8, n: int = 4) -> tuple[Tensor, Tensor]:
    """The trained and the randomized weight of the last layer."""
    torch.manual_seed(0)
    net = Net(width, n)
    make(net.fc)
    net(torch.rand(2, 3, 9, 9))  # the hooks of old code compute the weight
    box = ub.Box(net.eval(), ub.Pixels((3, 9, 9)))
    with torch.no_grad():
        new = randomize_all_layers(box, seed).model
        new(torch.rand(2, 3, 9, 9))
        return net.fc.weight.detach(), new.fc.weight.detach()


@pytest.mark.parametrize("how", {**PARAMETRIZATIONS, **ORTHOGONAL})
def test_a_randomized_weight_is_new_and_about_as_large(how: str) -> None:
    make = {**PARAMETRIZATIONS, **ORTHOGONAL}[how]
    old, new = randomized(make, 1)
    assert torch.isfinite(new).all()
    assert 0.2 < float(new.norm() / old.norm()) < 5
    assert abs(float(F.cosine_similarity(old.flatten(), new.flatten(), 0))) < 0.9 + 0.1 * (how == "exponential")
    assert torch.equal(new, randomized(make, 1)[1])
    assert not torch.allclose(new, randomized(make, 2)[1])


@pytest.mark.parametrize("how", ORTHOGONAL)
@pytest.mark.parametrize(("width", "n"), [(8, 4), (4, 8), (5, 5)], ids=["wide", "tall", "square"])
def test_a_randomized_orthogonal_weight_is_orthogonal(how: str, width: int, n: int) -> None:
    _, new = randomized(ORTHOGONAL[how], 1, width, n)
    gram = new @ new.T if n <= width else new.T @ new
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


@pytest.mark.parametrize("how", ["orthogonal", "spectral_norm"])
def test_a_verdict_has_its_randomization_test(how: str) -> None:
    torch.manual_seed(0)
    net = Net(8, 4)
    getattr(parametrizations, how)(net.fc)
    box = ub.Box(net.eval(), ub.Pixels((3, 9, 9)))
    verdict = ub.checks.verdict(box, torch.rand(4, 3, 9, 9), ub.attribution.gradient, max_draws=2)
    assert verdict.figures["randomization"] == verdict.figures["randomization"]  # no NaN
