"""Models that draw from generators of their own: a run leaves them as they were, and answers the same however split."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub

P = 0.95  # of an open gate: most batches of a few rows show no closed one
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def numpy_gates(rng: Any, n: int) -> Tensor:
    return torch.from_numpy(rng.random((n, 1)) < P).float()


OWN: dict[str, tuple[Callable[[], Any], Callable[[Any, int], Tensor]]] = {
    "torch": (lambda: torch.Generator().manual_seed(5), lambda g, n: (torch.rand(n, 1, generator=g) < P).float()),
    "torch, in place": (torch.Generator, lambda g, n: torch.empty(n, 1).bernoulli_(P, generator=g)),
    "numpy": (lambda: np.random.default_rng(3), numpy_gates),
    "numpy, another": (lambda: np.random.Generator(np.random.MT19937(3)), numpy_gates),
    "numpy, old": (
        lambda: np.random.RandomState(3),
        lambda g, n: torch.from_numpy(g.random_sample((n, 1)) < P).float(),
    ),
    "python": (
        lambda: random.Random(3),
        lambda g, n: torch.tensor([[float(g.random() < P)] for _ in range(n)]),
    ),
    "in a list": (lambda: [np.random.default_rng(3)], lambda gs, n: numpy_gates(gs[0], n)),
}
WITHIN: dict[str, Callable[[int], Tensor]] = {
    "seeded by a draw": lambda n: torch.rand(n, 1, generator=torch.Generator().manual_seed(int(torch.randint(99, ())))),
    "always the same": lambda n: torch.rand(n, 1, generator=torch.Generator().manual_seed(5)),
}


class Gated(nn.Module):
    """Features that per-row gates close."""

    def __init__(self, gates: Callable[[int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.scores, self.gates = nn.Linear(64, 8), nn.Linear(8, 3), gates

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x.flatten(1)).relu() * self.gates(len(x)))


def open_box(gates: Callable[[int], Tensor], own: Any = None) -> ub.Box:
    model = Gated(gates).eval()
    model.own = own
    return ub.Box(model, ub.Pixels((1, 8, 8)))


def assert_same_however_split(box: ub.Box) -> None:
    whole = ub.attribution.gradient(box, X, 0, batch_size=12).map
    for size in (1, 5, 12):
        assert torch.equal(ub.attribution.gradient(box, X, 0, batch_size=size).map, whole)


def next_draws(kind: str, own: Any) -> list[float]:
    return OWN[kind][1](own, 200).flatten().tolist()


@pytest.mark.filterwarnings("ignore:the gradient of logit 0 is exactly zero")
@pytest.mark.parametrize("kind", OWN)
def test_generators_of_a_models_own_are_left_as_they_were(kind: str) -> None:
    make, draw = OWN[kind]
    own = make()
    box = open_box(lambda n: draw(own, n), own)
    assert box.stochastic
    assert box.batch_dependent
    assert_same_however_split(box)
    assert next_draws(kind, own) == next_draws(kind, make())


@pytest.mark.filterwarnings("ignore:the gradient of logit 0 is exactly zero")
@pytest.mark.parametrize("kind", WITHIN)
def test_gates_from_a_generator_made_in_the_forward_are_seen(kind: str) -> None:
    box = open_box(lambda n: (WITHIN[kind](n) < P).float())
    assert box.batch_dependent
    assert_same_however_split(box)


@pytest.mark.parametrize("own", [torch.Generator(), np.random.default_rng(0), random.Random(0)])
def test_a_generator_that_is_not_used_changes_nothing(own: Any) -> None:
    box = open_box(lambda n: torch.ones(n, 1), own)
    assert not box.stochastic
    assert not box.batch_dependent
