"""Inversion and minimal deactivation against literal references: the paper's equations, distances to a plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.synthesis import inversion, minimal_deactivation
from unboxed.synthesis.inversion import _image_prior_objective, _InversionSettings


@pytest.fixture
def box() -> ub.Box:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 36, 4)).double()
    return ub.Box(model, ub.Pixels((2, 8, 8)), outputs="logits")


@pytest.fixture
def linear() -> ub.Box:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    return ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def the_prior(z: np.ndarray, alpha: float, smooth: float, beta: float) -> float:
    """Eq. 3 and section 3.1 and 3.2, loop by loop, for an image (C, H, W) in [0, 1] with B = 1/2 around 1/2."""
    c, h, w = z.shape
    norm = variation = 0.0
    for k in range(c):
        for i in range(h):
            for j in range(w):
                norm += abs(z[k, i, j] - 0.5) ** 6
                across = z[k, i, j + 1] - z[k, i, j] if j + 1 < w else 0.0
                down = z[k, i + 1, j] - z[k, i, j] if i + 1 < h else 0.0
                variation += (across**2 + down**2) ** (beta / 2)
    return alpha * norm / (c * h * w * 0.5**6) + smooth * variation / (c * h * w * 0.5**beta)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_the_prior_is_the_papers(alpha: float, beta: float) -> None:
    z = draw(3, 2, 6, 7)
    config = _InversionSettings("euclidean", None, 2.0, beta, 0.01, alpha, 0, 5, 1, None, 0, "auto")
    prior = _image_prior_objective(z[0].numel(), (9.0, 9.0), config)
    want = [-the_prior(one.numpy(), alpha, 2.0, beta) for one in z]
    assert np.allclose(prior({"input": z}).numpy(), want, rtol=1e-5)


def test_the_optimization_is_the_papers_descent(box: ub.Box) -> None:
    """One loop of torch over eq. 1 to 3 with the same start, step rule and falling weight."""
    x, steps = draw(2, 2, 8, 8), 6
    result = inversion(box, x, "0", canvas="pixels", alpha=0.3, beta=2.0, steps=steps, jitter=0, frame_every=1)
    assert result.frames is not None
    z = result.frames[0].clone().requires_grad_()
    wanted = box.model[0](x).detach()
    adam = torch.optim.Adam([z], lr=0.3)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.3 * (1 + np.cos(np.pi * step / steps)) / 2
        share = 0.01 ** (step / (steps - 1))
        loss = (box.model[0](z) - wanted).flatten(1).pow(2).sum(1) / wanted.flatten(1).pow(2).sum(1)
        far = 0.3 * (2 * (z - 0.5)).pow(6).flatten(1).mean(1)
        across, down = (2 * z.diff(dim=-1)).pow(2), (2 * z.diff(dim=-2)).pow(2)
        rough = 3.0 * (across.flatten(1).sum(1) + down.flatten(1).sum(1)) / z[0].numel()
        (z.grad,) = torch.autograd.grad((loss + share * (far + rough)).sum(), z)
        adam.step()
        z.data.clamp_(0, 1)
    assert torch.allclose(result.images, z.detach(), atol=1e-9)
    error = (box.model[0](z) - wanted).flatten(1).pow(2).sum(1) / wanted.flatten(1).pow(2).sum(1)
    assert torch.allclose(result.errors, error.detach())
    assert torch.allclose(result.scores, -error.detach())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_unit_is_deactivated_by_a_step_to_its_hyperplane(linear: ub.Box, norm: str) -> None:
    """-(w x + b) w / |w|^2 (in L-infinity: along the sign of w, by (w x + b) / |w|_1)."""
    x, k = 0.4 + 0.2 * draw(5, 1, 8, 8), 2
    w, z = linear.model[1].weight[k].detach(), linear(x)[:, k]
    below = float(z.min()) - 0.3
    result = minimal_deactivation(linear, x, ub.logit(k), threshold=below, norm=norm)
    along = w / w.dot(w) if norm == "l2" else w.sign() / w.abs().sum()
    want = -(z - below)[:, None] * along
    assert result.deactivated.all()
    assert torch.allclose(result.change.flatten(1), want, atol=1e-4 * float(want.abs().max()))
    assert torch.allclose(result.score_before, z)
    assert torch.allclose(result.score_after, torch.full_like(z, below), atol=1e-4)


def test_at_the_bounds_of_the_range_the_change_is_nearly_the_smallest(linear: ub.Box) -> None:
    """Against a projection onto half-space and box (Dykstra), for images near the end of the range."""
    x = draw(3, 1, 8, 8) * 0.1
    w, b = linear.model[1].weight[1].detach(), linear.model[1].bias[1].detach()
    below = float((x.flatten(1) @ w + b).min()) - 0.4
    result = minimal_deactivation(linear, x, ub.logit(1), threshold=below)
    for row, got in zip(x.flatten(1), result.distance, strict=True):
        z, p, q = row.clone(), torch.zeros_like(row), torch.zeros_like(row)
        for _ in range(2000):
            y = z + p
            y = y - w * ((y @ w + b - below).clamp_min(0) / w.dot(w))
            p = z + p - y
            z = (y + q).clamp(0, 1)
            q = y + q - z
        assert float(got) >= float((z - row).norm()) * (1 - 1e-3)
        assert float(got) <= float((z - row).norm()) * 1.03
