"""Universal perturbations: exact where the best one is known, inside their ball, counted as they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from models import interrupted
from unboxed.adversarial import universal
from unboxed.engine.optimize.constraints import L2, Linf
from unboxed.errors import InputError


def linear() -> tuple[ub.Box, Tensor]:
    """Two classes of which the first wins, and images so far from black and white that nothing is clipped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([5.0, -5.0]))
    box = ub.Box(model, ub.Pixels((1, 8, 8)))
    return box, 0.4 + 0.2 * torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_exact_on_a_linear_model() -> None:
    """The best change is the steepest: eps sign(w1 - w0), or eps (w1 - w0) / |w1 - w0|."""
    box, x = linear()
    w = (box.model[1].weight[1] - box.model[1].weight[0]).detach().view(1, 1, 8, 8)
    for more in ({}, {"target": 1}, {"y": torch.zeros(6, dtype=torch.long)}):
        made = universal(box, x, eps=0.05, steps=25, **more)
        assert torch.allclose(made.perturbation, 0.05 * w.sign(), atol=1e-12)
        made = universal(box, x, eps=0.7, norm="l2", steps=80, **more)
        assert torch.allclose(made.perturbation, 0.7 * w / w.norm(), atol=1e-3)


@pytest.mark.parametrize("more", [{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 1.5}, {"ball": L2(0.3)}])
@pytest.mark.parametrize("model", ["plain", "color", "bfloat16"])
def test_inside_its_ball(model: str, more: dict[str, Any]) -> None:
    entry = awkward.get_model(model)
    box = ub.Box(entry.model, entry.inputs)
    x = entry.images(5)
    made = universal(box, x, steps=6, step=5.0, **more)
    ball = more.get("ball") or {"linf": Linf, "l2": L2}[more["norm"]](more["eps"])
    size = float(ball.distance(made.perturbation, torch.zeros_like(made.perturbation)))
    assert 0 < size <= ball.eps * (1 + 1e-6)
    z = made.apply_to(box, x)
    assert z.min() >= 0
    assert z.max() <= 1
    assert (ball.distance(z, x) <= ball.eps * (1 + 1e-6) + 1e-7).all()


def test_the_fooling_rate_is_counted_one_by_one() -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images(20).double()
    own = box.predict(x)
    y = own.clone()
    y[:4] = (y[:4] + 1) % 4
    made = universal(box, x, y, eps=0.3, steps=4)
    now = box.predict(made.apply_to(box, x))
    assert made.fooling_rate(box, x) == pytest.approx(sum(int(a != b) for a, b in zip(now, own, strict=True)) / 20)
    kept = [i for i in range(20) if own[i] == y[i]]
    assert made.fooling_rate(box, x, y) == pytest.approx(sum(int(now[i] != y[i]) for i in kept) / len(kept))
    aimed = universal(box, x, target=2, eps=0.3, steps=4)
    others = [i for i in range(20) if own[i] != 2]
    hits = sum(int(box.predict(aimed.apply_to(box, x))[i] == 2) for i in others)
    assert aimed.fooling_rate(box, x) == pytest.approx(hits / len(others))


def test_features_and_several_inputs() -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c"), low=(-1, -1, -1), high=(1, 1, 1)))
    x = torch.rand(5, 3) - 0.5
    made = universal(box, x, eps=0.5, steps=5)
    assert made.perturbation.shape == (1, 3)
    assert made.apply_to(box, x).abs().max() <= 1

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(66, 2)

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return self.fc(torch.cat([image.flatten(1), row], 1))

    box = ub.Box(Two(), ub.MultiInput({"image": ub.Pixels((1, 8, 8)), "row": ub.Features(("a", "b"))}))
    both = {"image": torch.rand(4, 1, 8, 8), "row": torch.randn(4, 2)}
    made = universal(box, both, eps=0.5, steps=5)
    assert {k: tuple(v.shape) for k, v in made.perturbation.items()} == {"image": (1, 1, 8, 8), "row": (1, 2)}
    assert made.apply_to(box, both)["image"].shape == (4, 1, 8, 8)
    assert 0 <= made.fooling_rate(box, both) <= 1


def test_it_beats_random_signs_on_held_out_digits() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits().tensors()
    made = universal(box, x[:200], y[:200], eps=0.4, steps=25, images_per_step=32)
    noise = 0.4 * torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0)).sign()
    held, labels = x[1000:1300], y[1000:1300]
    right = box.predict(held) == labels
    by_noise = (box.predict((held + noise).clamp(0, 1)) != labels)[right].double().mean()
    assert made.fooling_rate(box, held, labels) > by_noise + 0.25


def test_an_interrupted_perturbation_keeps_its_steps() -> None:
    box, x = linear()
    whole = universal(box, x, eps=0.2, steps=6)
    with interrupted(box.model, 4):
        got = universal(box, x, eps=0.2, steps=6)
    assert got.interrupted
    assert torch.equal(got.fooling_rates, whole.fooling_rates[:3])
    assert not torch.equal(got.perturbation, universal(box, x, eps=0.2, steps=0).perturbation)


@pytest.mark.parametrize(
    "bad",
    [{"eps": None}, {"eps": 2.0}, {"norm": "l7"}, {"images_per_step": 0}, {"target": torch.tensor([1, 0, 1, 0, 1, 0])}],
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    box, x = linear()
    with pytest.raises(InputError):
        universal(box, x, **{"eps": 0.1, "steps": 1, **bad})
