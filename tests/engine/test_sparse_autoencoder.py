"""Sparse autoencoders: planted directions are recovered, dead features come back, twins stay as they are."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from unboxed.engine.linear import sparse_autoencoder as module
from unboxed.engine.linear.clusters import k_means
from unboxed.engine.linear.sparse_autoencoder import AutoencoderConfig, fit_autoencoders, matched_cosines
from unboxed.errors import InputError


def planted(n: int = 3000, f: int = 24, d: int = 16, k: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """More directions than dimensions, and rows that are k of them each."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(f, d, generator=generator), dim=1)
    active = torch.rand(n, f, generator=generator).argsort(1)[:, :k]
    amounts = torch.zeros(n, f).scatter(1, active, 0.5 + torch.rand(n, k, generator=generator))
    return directions, amounts @ directions


@pytest.mark.parametrize("activation", ["top_k", "batch_top_k"])
def test_planted_directions_are_recovered(activation: str) -> None:
    directions, h = planted()
    plan = AutoencoderConfig(36, 2, activation, n_steps=400)  # type: ignore[arg-type]
    (found,), (frozen,) = fit_autoencoders(h, plan, [0], n_frozen=1)
    assert float((matched_cosines(directions, found.directions) > 0.9).double().mean()) > 0.95
    assert float((matched_cosines(directions, frozen.directions) > 0.9).double().mean()) <= 0.15
    amounts = found.encode(h)
    active = (amounts > 0).sum(1).double()
    assert active.max() <= 2 if activation == "top_k" else abs(float(active.mean()) - 2) < 0.5
    error = (found.decode(amounts) - h).square().sum() / (h - h.mean(0)).square().sum()
    assert float(error) < 0.15


def test_only_the_active_features_have_a_gradient() -> None:
    """Top-k passes the gradient to the k largest amounts, as to a plain selection."""
    amounts = torch.rand(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    kept = module._keep_top_k(amounts, 3)
    kept.sum().backward()
    assert amounts.grad is not None
    assert torch.equal(amounts.grad > 0, kept > 0)
    assert amounts.grad.sum() == 12
    assert torch.autograd.gradcheck(lambda a: module._keep_top_k(a, 3), amounts)


def test_the_loss_is_the_literal_one() -> None:
    """Squared error of the k largest, and the auxiliary loss of dead features, row by row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    plan = AutoencoderConfig(10, 2)
    stack = module._AutoencoderStack.start(x, plan, [0], 1)
    dead = torch.tensor([1, 4, 7])
    stack.idle_steps[:, dead] = 10**6
    for m in range(2):
        stack.encoder.data[m, dead] *= -1e-3  # which no row has among its k largest
    batch = x[None].repeat(2, 1, 1)
    expected = 0.0
    directions = torch.cat([stack.learned(), stack.frozen])
    for m in range(2):
        squares, auxiliary, rests = 0.0, 0.0, 0.0
        for row in batch[m]:
            pre = (stack.encoder[m] @ row).clamp(min=0)
            rest = row - sum(pre[j] * directions[m, j] for j in pre.topk(2).indices)
            back = sum(pre[j] * directions[m, j] for j in dead)  # 3 of them, D / 2 = 3
            squares, auxiliary = squares + rest.square().sum(), auxiliary + (rest - back).square().sum()
            rests = rests + rest.square().sum()
        expected = expected + squares / 180 + module.AUXILIARY_WEIGHT * auxiliary / rests
    torch.testing.assert_close(stack.loss(batch, 0), expected)


def test_dead_features_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _, h = planted(f=40, k=1)
    shares = []
    for revived in (False, True):
        if not revived:
            monkeypatch.setattr(module, "RESTART_EVERY_STEPS", 10**9)
            monkeypatch.setattr(module, "AUXILIARY_WEIGHT", 0.0)
        (found,), _ = fit_autoencoders(h, AutoencoderConfig(40, 1, n_steps=200), [0])
        shares.append(float((~(found.encode(h) > 0).any(0)).double().mean()))
        monkeypatch.undo()
    assert shares[0] > 0.15
    assert shares[1] < 0.05


def test_archetypes_are_mixtures_of_the_data_and_agree_more() -> None:
    _, h = planted(n=600)
    cosines = []
    for archetypal in (False, True):
        found, _ = fit_autoencoders(h, AutoencoderConfig(24, 2, archetypal=archetypal, n_steps=150), [0, 1])
        cosines.append(float(matched_cosines(*(a.directions for a in found)).mean()))
    assert cosines[1] > cosines[0]
    x = (h - h.mean(0)) / (h - h.mean(0)).square().mean().sqrt()
    points = k_means(x, 96).centers
    outside = torch.linalg.lstsq(points.T, found[0].directions.T)
    assert torch.allclose(points.T @ outside.solution, found[0].directions.T, atol=1e-4)


def test_frozen_directions_are_the_start() -> None:
    _, h = planted(n=300)
    found, frozen = fit_autoencoders(h, AutoencoderConfig(24, 2, n_steps=5), [3, 4], n_frozen=2)
    for seed, twin, own in zip((3, 4), frozen, found, strict=True):
        assert torch.equal(twin.directions, module._random_directions(24, 16, seed).to(h))
        assert not torch.equal(twin.directions, own.directions)
        assert not torch.equal(twin.encoder, twin.directions)


def test_same_seed_same_autoencoder_whatever_is_fitted_beside_it() -> None:
    _, h = planted(n=300)
    h = h.double()
    plan = AutoencoderConfig(24, 2, n_steps=60)
    (a, b), (twin,) = fit_autoencoders(h, plan, [0, 1], n_frozen=1)
    (alone,), _ = fit_autoencoders(h, plan, [1])
    torch.testing.assert_close(b.directions, alone.directions, rtol=1e-9, atol=1e-9)
    (again, _), (twin_again,) = fit_autoencoders(h, plan, [0, 1], n_frozen=1)
    assert torch.equal(a.directions, again.directions)
    assert torch.equal(twin.encoder, twin_again.encoder)
    assert not torch.allclose(a.directions, b.directions)


def test_matching_is_the_best_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    best = max(sum(float(cosines[i, p[i]]) for i in range(5)) for p in permutations(range(5)))
    assert float(matched_cosines(a, b).sum()) == pytest.approx(best, abs=1e-6)
    assert float(matched_cosines(a, -a).mean()) < 0.9
    torch.testing.assert_close(matched_cosines(a, -a[[3, 1, 4, 0, 2]], signed=False), torch.ones(5).double())


def test_what_the_data_do_not_allow() -> None:
    _, h = planted(n=100)
    with pytest.raises(InputError, match="larger than the 100 rows of activations allow"):
        fit_autoencoders(h, AutoencoderConfig(101, 2), [0])
    with pytest.raises(InputError, match="k must be 10 or less"):
        fit_autoencoders(h, AutoencoderConfig(10, 11), [0])
    constant, _ = fit_autoencoders(torch.ones(50, 4), AutoencoderConfig(8, 2, n_steps=5), [0])
    torch.testing.assert_close(constant[0].decode(constant[0].encode(torch.ones(3, 4))), torch.ones(3, 4))
