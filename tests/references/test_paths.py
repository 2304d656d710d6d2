"""Methods along paths against loops written from the papers' equations, and against captum where it is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.attribution import (
    expected_gradients,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
)
from unboxed.attribution.expected_gradients import _draw_reference_orders_and_alphas
from unboxed.engine.gradients.paths import (
    LinePath,
    NoisePath,
    path_mean_gradient,
    path_scores,
    seeded_normal_noise,
)
from unboxed.engine.gradients.quadrature import equal_weights, gauss_legendre, midpoints
from unboxed.engine.perturb.baselines import baseline
from unboxed.model import relu_rules

K = torch.tensor([2, 0, 3])


class Smooth(nn.Module):
    """Bends without kinks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.first, self.second = nn.Linear(64, 7), nn.Linear(7, 4)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(z.flatten(1))))
        return out


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: awkward.get_model("plain").model,
    "batchnorm": lambda: awkward.get_model("batchnorm").model,
    "smooth": lambda: Smooth().eval(),
}
models = pytest.mark.parametrize("model", NETS)


@cache
def box_of(model: str) -> ub.Box:
    return ub.Box(NETS[model]().double(), awkward.GRAY_INPUTS)


def opened(model: str) -> tuple[ub.Box, Tensor]:
    return box_of(model), awkward.get_model("plain").images().double()


def slope(box: ub.Box, x: Tensor, k: int) -> Tensor:
    """d logit k / d x of one image (C, H, W), by autograd alone."""
    x = x[None].clone().requires_grad_()
    (g,) = torch.autograd.grad(box.model(box.inputs.encode(x))[0, k], x)
    return g[0]


@cache
def riemann(model: str, kind: str | None, m: int, shift: float) -> Tensor:
    """Sundararajan et al. 2017, equation 3: (x - x0) / m * sum_k dF(x0 + k / m (x - x0)) / dx, k moved by `shift`."""
    box, x = opened(model)
    x0, found = baseline(box, x, kind), torch.zeros_like(x)
    for i in range(len(x)):
        for k in range(1, m + 1):
            found[i] += slope(box, x0[i] + (k + shift) / m * (x[i] - x0[i]), int(K[i]))
    return found * (x - x0) / m


@models
@pytest.mark.parametrize("kind", [None, "white", "blurred", "random"])
@pytest.mark.parametrize("size", ["auto", 4])
def test_fixed_steps_against_the_papers_sum(model: str, kind: str | None, size: Any) -> None:
    box, x = opened(model)
    x0 = baseline(box, x, kind)
    want = riemann(model, kind, 7, -0.5)
    found = integrated_gradients(box, x, K, baseline=kind, n_steps=7, batch_size=size)
    assert torch.allclose(found.map, want, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(riemann(model, kind, 7, 0), want, rtol=1e-2)  # right-hand ends give another sum
    rows = torch.arange(3)
    difference = (box(x) - box(x0))[rows, K]
    assert torch.allclose(found.score_difference, difference, rtol=1e-9)
    assert torch.allclose(found.completeness_error, (want.flatten(1).sum(1) - difference).abs(), rtol=1e-6, atol=1e-12)


@models
@pytest.mark.parametrize("rule", ["midpoint", "gauss-legendre"])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_captum(model: str, rule: str, n: int) -> None:
    box, x = opened(model)
    peer = captum.attr.IntegratedGradients(lambda x: box.model(box.inputs.encode(x)))
    method = {"midpoint": "riemann_middle", "gauss-legendre": "gausslegendre"}[rule]
    want = peer.attribute(x, baselines=0.3, target=K, n_steps=n, method=method)
    found = integrated_gradients(box, x, K, baseline=0.3, n_steps=n, rule=rule)
    assert torch.allclose(found.map, want, rtol=1e-6, atol=1e-9)  # captum's weights are in single precision


@models
def test_steps_by_itself_against_a_sum_of_many(model: str) -> None:
    """Within the tolerance in the sum, and near the limit in each pixel: as near as as many even steps would be."""
    box, x = opened(model)
    found = integrated_gradients(box, x, K, baseline=0.3, tol=1e-3)
    limit = integrated_gradients(box, x, K, baseline=0.3, n_steps=3000).map
    even = integrated_gradients(box, x, K, baseline=0.3, n_steps=16).map

    def off(h: Tensor) -> Tensor:
        return (h - limit).abs().flatten(1).sum(1) / limit.abs().flatten(1).sum(1)

    assert bool(found.converged.all())
    assert bool((found.completeness_error <= 1e-3 * found.score_difference.abs()).all())
    assert bool((off(found.map) <= off(even) + 1e-9).all())
    assert float(off(found.map).max()) < 0.02


@models
def test_gradient_x_input(model: str) -> None:
    box, x = opened(model)
    want = torch.stack([slope(box, h, int(k)) for h, k in zip(x, K, strict=True)])
    assert torch.allclose(gradient_x_input(box, x, K), x * want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(gradient_x_input(box, x, K, baseline="white"), (x - 1) * want, rtol=1e-9, atol=1e-12)
    peer = captum.attr.InputXGradient(lambda x: box.model(box.inputs.encode(x)))
    assert torch.allclose(
        gradient_x_input(box, x, K),
        peer.attribute(x.clone().requires_grad_(), target=K).detach(),
        rtol=1e-9,
        atol=1e-12,
    )


# ---- SmoothGrad ------------------------------------------------------------------------------------------------------


def noisy_slopes(box: ub.Box, x: Tensor, samples: int, noise: float, seed: int) -> Tensor:
    """(N, K, C, H, W), one at a time, each noise drawn separately."""
    found = []
    for i in range(len(x)):
        sigma = noise * (x[i].max() - x[i].min())
        eps = [seeded_normal_noise(x, torch.tensor([i]), torch.tensor([k]), seed)[0] for k in range(samples)]
        found.append(torch.stack([slope(box, x[i] + sigma * e, int(K[i])) for e in eps]))
    return torch.stack(found)


@cache
def slopes_of(model: str) -> Tensor:
    return noisy_slopes(*smoothed(model), 11, 0.2, 5)


def smoothed(model: str) -> tuple[ub.Box, Tensor]:
    box, x = opened(model)
    x[1] *= 0.5  # another range, and so another noise
    return box, x


MOMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda g: g.mean(1),  # Smilkov et al. 2017, section 3
    "squared": lambda g: (g**2).mean(1),  # Hooker et al. 2019
    "variance": lambda g: g.var(1, unbiased=False),  # Adebayo et al. 2018
}


@models
@pytest.mark.parametrize("kind", MOMENTS)
@pytest.mark.parametrize("size", ["auto", 1, 7])
def test_smoothgrad_against_the_loop(model: str, kind: Any, size: Any) -> None:
    box, x = smoothed(model)
    g = slopes_of(model)
    found = smoothgrad(box, x, K, n_samples=11, noise=0.2, kind=kind, seed=5, batch_size=size)
    assert torch.allclose(found, MOMENTS[kind](g), rtol=1e-9, atol=1e-12)
    assert not any(torch.allclose(found, m(g), rtol=1e-2) for name, m in MOMENTS.items() if name != kind)


def test_the_noise_is_normal() -> None:
    like = torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    n, k = torch.arange(4).repeat_interleave(100), torch.arange(100).repeat(4)
    drawn = seeded_normal_noise(like, n, k, 3).flatten(1)  # (400, 64)
    assert abs(float(drawn.mean())) < 4 / drawn.numel() ** 0.5
    assert abs(float(drawn.var()) - 1) < 4 * (2 / drawn.numel()) ** 0.5
    assert float(drawn.view(4, 100, 64)[:, :, 0].flatten().unique().numel()) == 400  # no two alike
    some = torch.tensor([7, 8, 9, 250])
    assert torch.equal(seeded_normal_noise(like, n[some], k[some], 3).flatten(1), drawn[some])


@pytest.mark.parametrize("kind", ["mean", "squared"])
def test_noise_tunnel(kind: Any) -> None:
    """captum draws its own noise, so the two agree as two samples do."""
    box, x = opened("plain")
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 0.0, 1.0  # captum's noise does not know the image's range
    peer = captum.attr.NoiseTunnel(captum.attr.Saliency(lambda x: box.model(box.inputs.encode(x))))
    own = {"mean": "smoothgrad", "squared": "smoothgrad_sq"}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = peer.attribute(x, target=K, nt_type=own, nt_samples=2000, stdevs=0.15, abs=False)
    found = smoothgrad(box, x, K, n_samples=2000, kind=kind)
    few = noisy_slopes(box, x, 100, 0.15, 1)
    spread = (few if kind == "mean" else few**2).std(1) * (2 / 2000) ** 0.5  # of the difference of two means
    z = (found - want) / spread.clamp_min(1e-3 * float(spread.max()))
    assert float((z**2).mean()) < 1.5
    assert float((z**2).mean()) > 0.5
    other = smoothgrad(box, x, K, n_samples=2000, noise=0.5, kind=kind)
    assert float((((other - want) / spread.clamp_min(1e-3 * float(spread.max()))) ** 2).mean()) > 3


# ---- expected gradients ----------------------------------------------------------------------------------------------


@cache
def expected_by_loop(model: str, m: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """References (M, 1, 8, 8), the map and the mean score of the references drawn."""
    box, x = opened(model)
    others = torch.rand(m, 1, 8, 8, generator=torch.Generator().manual_seed(9)).double()
    order, alpha = _draw_reference_orders_and_alphas(3, m, samples, 4)
    want, low = torch.zeros_like(x), torch.zeros(3).double()
    for i in range(3):
        for s in range(samples):
            ref = others[order[i, s % m]]
            want[i] += (x[i] - ref) * slope(box, ref + alpha[i, s] * (x[i] - ref), int(K[i])) / samples
            low[i] += box(ref[None])[0, K[i]] / samples
    return others, want, low


@models
@pytest.mark.parametrize(("m", "samples"), [(3, 8), (9, 4), (1, 5)])
@pytest.mark.parametrize("size", ["auto", 1, 5])
def test_expected_gradients_against_the_loop(model: str, m: int, samples: int, size: Any) -> None:
    """Erion et al. 2021: the mean of (x - x') dF(x' + alpha (x - x')) / dx over draws of x' and alpha."""
    box, x = opened(model)
    others, want, low = expected_by_loop(model, m, samples)
    found = expected_gradients(box, x, K, references=others, n_samples=samples, seed=4, batch_size=size)
    assert torch.allclose(found.map, want, rtol=1e-9, atol=1e-12)
    difference = box(x)[torch.arange(3), K] - low
    assert torch.allclose(found.score_difference, difference, rtol=1e-9)
    assert torch.allclose(found.completeness_error, (want.flatten(1).sum(1) - difference).abs(), rtol=1e-6, atol=1e-12)


def test_alphas_are_stratified_and_references_drawn_evenly() -> None:
    order, alpha = _draw_reference_orders_and_alphas(5, 4, 10, 0)
    assert torch.equal((alpha * 10).long().sort(1).values, torch.arange(10).expand(5, -1))
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(5, -1))
    assert len({tuple(row) for row in alpha.tolist()}) == 5
    assert not torch.equal(alpha, alpha.sort(1).values)


@models
def test_expected_gradients_come_to_the_mean_of_integrated_ones(model: str) -> None:
    box, x = opened(model)
    others = awkward.get_model("plain").images(4, seed=8).double()
    want = torch.stack([integrated_gradients(box, x, K, baseline=o, n_steps=400).map for o in others]).mean(0)
    found = expected_gradients(box, x, K, references=others, n_samples=4000)
    few = expected_gradients(box, x, K, references=others, n_samples=40)
    off, coarse = ((h.map - want).abs().mean() / want.abs().mean() for h in (found, few))
    assert float(off) < 0.03
    assert float(coarse) > 2 * float(off)
    assert bool((found.completeness_error <= 0.05 * found.score_difference.abs().clamp_min(1)).all())


# ---- the loop with other rules and layers ----------------------------------------------------------------------------


def test_a_rule_along_a_path() -> None:
    """Guided SmoothGrad is the mean of guided backprop's maps over the same noise."""
    box, x = opened("plain")
    x = 0.4 + 0.2 * x  # so that noise leaves it an image
    path = NoisePath(x, torch.full_like(x, 0.05), equal_weights(6), seed=2)
    found = path_mean_gradient(box, ub.logit(K), path, 3, rule=relu_rules.GUIDED_BACKPROP_RULE).map
    want = torch.zeros_like(x)
    for k in range(6):
        points, _ = path(torch.arange(3), torch.full((3,), k))
        want += guided_backprop(box, points.clamp(0, 1), K) / 6
    assert torch.allclose(found, want, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, path_mean_gradient(box, ub.logit(K), path, 3).map, rtol=1e-2)


def test_a_layer_along_a_path() -> None:
    """Internal influence (Leino et al. 2018): the mean gradient at a layer while the input goes from black to x."""
    box, x = opened("plain")
    found = path_mean_gradient(box, ub.logit(K), LinePath(x, torch.zeros_like(x), *midpoints(9)), 3, wrt="conv1").map
    model = nn.Module()
    model.forward = lambda x: box.model(box.inputs.encode(x))  # type: ignore[method-assign]
    peer = captum.attr.InternalInfluence(model, box.model.conv1)
    want = peer.attribute(x, baselines=0.0, target=K, n_steps=9, method="riemann_middle")
    assert found.shape == (3, 4, 8, 8)
    assert torch.allclose(found, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", ["auto", 1, 4])
def test_scores_along_a_path(size: Any) -> None:
    box, x = opened("plain")
    path = LinePath(x, torch.zeros_like(x), *midpoints(5))
    want = torch.stack([box(t * x)[torch.arange(3), K] for t in path.t], 1)
    assert torch.allclose(path_scores(box, ub.logit(K), path, 3, batch_size=size), want, rtol=1e-9)


@pytest.mark.parametrize("n_rows", [3, 20, 47, 60])  # a few points of one example, or many of several
def test_points_of_a_line_are_the_same_however_many_are_made(n_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, start = torch.rand(2, 4, 3, 5, generator=generator)
    t = torch.rand(20, generator=generator, dtype=torch.float64)
    index = torch.arange(11, 11 + n_rows)
    points, factors = LinePath(x, start, t, t)(index // 20, index % 20)
    want = [start[i] + t[k].float() * (x[i] - start[i]) for i, k in zip(index // 20, index % 20, strict=True)]
    assert torch.equal(points, torch.stack(want))
    assert factors is None


@pytest.mark.parametrize("k", [1, 2, 7])
def test_gauss_legendre_is_exact_on_polynomials(k: int) -> None:
    t, weights = gauss_legendre(k)
    for power in range(2 * k):
        assert abs(float((weights * t**power).sum()) - 1 / (power + 1)) < 1e-12
    assert abs(float((weights * t ** (2 * k)).sum()) - 1 / (2 * k + 1)) > 1e-12


def test_little_noise_is_the_gradient() -> None:
    box, x = opened("smooth")
    assert torch.allclose(smoothgrad(box, x, K, noise=1e-9, n_samples=3), gradient(box, x, K), rtol=1e-5, atol=1e-9)
