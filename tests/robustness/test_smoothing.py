"""Randomized smoothing: where the truth is known, claims hold as often as they say; more draws certify more."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import unboxed as ub
from contracts.common import MethodCase, make_case
from unboxed.errors import InputError, OutputError
from unboxed.robustness.smoothing import _clopper_pearson_lower

smoothed = ub.robustness.smoothed
SIGMA = 0.25


def halves(n: int) -> tuple[ub.Box, Tensor, Tensor]:
    """A model that splits space by a plane, images (n, 1, 2, 3) and their distance (n,) from it.

    The smoothed model's class holds within exactly that distance: under noise its probability is Phi(distance / sigma).
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double().requires_grad_(False)
    w = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.3], dtype=torch.float64)
    w /= w.norm()
    model[1].weight.copy_(torch.stack([-w, w]))
    model[1].bias.copy_(torch.stack([w.sum() * 0.5, -w.sum() * 0.5]))
    x = 0.5 + 0.2 * torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
    return ub.Box(model, ub.Pixels((1, 2, 3)), outputs="logits"), x.view(n, 1, 2, 3), (x @ w - w.sum() * 0.5)


def test_a_radius_is_too_large_no_more_often_than_alpha() -> None:
    box, x, gap = halves(150)
    made = smoothed(box, x, SIGMA, n0=10, n=40, alpha=0.1)
    wrong = ((made.radius > gap.abs()) | ((made.classes != (gap > 0).long()) & ~made.has_abstained)).sum()
    assert wrong <= binom.ppf(0.999, 150, 0.1)
    assert wrong > 0, "nobody would be that careful: the bound is not the one asked for"
    assert 0.3 < (made.radius / gap.abs())[~made.has_abstained].median() < 1


def test_more_samples_certify_more() -> None:
    box, x, gap = halves(40)
    radii = [smoothed(box, x, SIGMA, n0=20, n=n, alpha=0.01).radius.mean() for n in (20, 80, 400)]
    assert radii[0] < radii[1] < radii[2] < gap.abs().mean()
    sure = [smoothed(box, x, SIGMA, n0=20, n=80, alpha=a).radius for a in (0.001, 0.05)]
    assert (sure[0] <= sure[1]).all()


def test_the_bound_of_a_probability() -> None:
    """At the bound, as many hits or more are exactly as rare as alpha (Clopper & Pearson)."""
    for hits, n, alpha in [(1, 10, 0.05), (7, 10, 0.001), (99, 100, 0.001), (100, 100, 0.001)]:
        assert math.isclose(binom.sf(hits - 1, n, _clopper_pearson_lower(hits, n, alpha)), alpha, rel_tol=1e-6)
    assert _clopper_pearson_lower(0, 10, 0.05) == 0


def test_noise_depends_on_the_row() -> None:
    c = make_case("plain", torch.float64)
    same = c.x[:1].expand(3, -1, -1, -1)
    made = smoothed(c.box, same, 0.4, n0=20, n=80)
    assert not torch.equal(made.class_fractions[0], made.class_fractions[1])
    assert torch.equal(made.class_fractions[:1], smoothed(c.box, c.x[:1], 0.4, n0=20, n=80).class_fractions)


def test_noise_is_not_clipped() -> None:
    seen = list[Tensor]()
    box, x, _ = halves(1)
    box.model.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    smoothed(box, x, SIGMA, n0=1, n=3000)
    drawn = torch.cat(seen) - x
    assert abs(float(drawn.std()) - SIGMA) < 0.005
    assert abs(float(drawn.mean())) < 0.01
    assert float((x + drawn).max()) > 1


def test_certified_accuracy() -> None:
    box, x, gap = halves(30)
    y = (gap > 0).long()
    y[:3] = 1 - y[:3]
    made = smoothed(box, x, SIGMA, n0=20, n=100, alpha=0.01)
    right = (made.classes == y) & ~made.has_abstained
    want = [float((right & (made.radius >= r)).double().mean()) for r in (0, 0.1, 0.2)]
    assert made.certified_accuracy(y, (0, 0.1, 0.2)).tolist() == pytest.approx(want)
    assert want[0] > want[2] > 0
    assert made.certified_accuracy(y).tolist() == pytest.approx(want[:1])


@pytest.mark.parametrize("model", ["batchnorm_on_batch_statistics", "dropout_always_on", "transformer"])
def test_any_model(model: str) -> None:
    c = make_case(model)
    made = smoothed(c.box, c.x, 0.1, n0=5, n=20, alpha=0.05)
    assert torch.allclose(made.class_fractions.sum(1), torch.ones(3))
    assert ((made.radius > 0) == ~made.has_abstained).all()


def test_ctrl_c_keeps_finished_rows() -> None:
    c = make_case("plain")
    whole, calls = smoothed(c.box, c.x, 0.1, n0=5, n=20), 0

    def stop(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    c.box.model.register_forward_pre_hook(stop)
    made = smoothed(c.box, c.x, 0.1, n0=5, n=20)
    assert made.interrupted
    assert not whole.interrupted
    assert torch.equal(made.classes[:2], whole.classes[:2])
    assert made.has_abstained[2]
    assert made.radius[2] == 0


BAD = [{"sigma": 0.0}, {"sigma": math.nan}, {"n": 0}, {"n0": 0}, {"alpha": 0}, {"alpha": 1.0}, {"seed": 1.5}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_settings(bad: dict[str, Any]) -> None:
    c: MethodCase = make_case("plain")
    with pytest.raises(InputError):
        smoothed(c.box, c.x, **{"sigma": 0.1, **bad})


def test_models_without_classes() -> None:
    c = make_case("plain")
    for outputs in ("regression", "multilabel"):
        box = ub.Box(c.box.model, c.box.inputs, outputs=outputs)
        with pytest.raises(OutputError, match=r"without a certificate, by ub\.robustness\.evaluate_outputs"):
            smoothed(box, c.x, 0.1)
