"""Integrated gradients: as many steps as an example needs, bounded memory, and what it says of itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.attribution import integrated_gradients, smoothgrad
from unboxed.engine.gradients import adaptive_quadrature
from unboxed.engine.gradients.paths import noise_scale
from unboxed.errors import InputError, UnboxedWarning


class Of(nn.Module):
    """Any function of the flat input (N, 64) -> (N, K)."""

    def __init__(self, score: Any) -> None:
        super().__init__()
        self.score = score
        self.rows = list[int]()

    def forward(self, z: Tensor) -> Tensor:
        self.rows.append(len(z))
        out: Tensor = self.score(z.flatten(1))
        return out


PLAIN_PIXELS = ub.Pixels((1, 8, 8))
W = torch.linspace(-1, 1, 64).double()


def opened(score: Any, n: int = 3) -> tuple[ub.Box, Tensor]:
    model = Of(score)
    box = ub.Box(model, PLAIN_PIXELS, outputs="regression")
    box.device, box.dtype, box.model_dtype = torch.device("cpu"), torch.float64, torch.float64  # it has no parameters
    model.rows.clear()
    return box, awkward.get_model("plain").images(n).double()


def test_exact_on_quadratics() -> None:
    """The midpoint rule is, by any number of steps; so the first evaluations are enough."""
    box, x = opened(lambda z: (z**2 @ W.to(z))[:, None])
    want = x**2 * W.view(1, 1, 8, 8)
    for n in (1, 2, 5):
        assert torch.allclose(integrated_gradients(box, x, 0, n_steps=n).map, want, rtol=1e-12)
    found = integrated_gradients(box, x, 0, tol=1e-12)
    assert torch.allclose(found.map, want, rtol=1e-12)
    assert found.n_steps.tolist() == [adaptive_quadrature.MAX_INITIAL_POINTS] * 3


@pytest.mark.parametrize(("tol", "first"), [(1.0, 4), (0.1, 4), (0.05, 5), (0.03, 9), (0.015, 16), (1e-3, 16)])
def test_a_loose_tolerance_starts_from_fewer_points(tol: float, first: int) -> None:
    """Exact on quadratics from any start, so no point is added to the first evaluations."""
    box, x = opened(lambda z: (z**2 @ W.to(z))[:, None])
    found = integrated_gradients(box, x, 0, tol=tol)
    assert found.n_steps.tolist() == [first] * 3
    assert torch.allclose(found.map, x**2 * W.view(1, 1, 8, 8), rtol=1e-12)


def test_not_exact_beyond_them() -> None:
    box, x = opened(lambda z: (z**4 @ W.to(z))[:, None])
    want = x**4 * W.view(1, 1, 8, 8)
    assert not torch.allclose(integrated_gradients(box, x, 0, n_steps=2).map, want, rtol=1e-2)
    exact = integrated_gradients(box, x, 0, n_steps=2, rule="gauss-legendre").map  # to degree 3 of the gradient
    assert torch.allclose(exact, want, rtol=1e-12)


@pytest.mark.parametrize("tol", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("model", ["plain", "batchnorm", "non_square", "double"])
def test_the_tolerance_is_kept(model: str, tol: float) -> None:
    entry = awkward.get_model(model, torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images(4).double()
    found = integrated_gradients(box, x, tol=tol)
    sums = found.map.flatten(1).sum(1)
    k = box.predict(x)
    difference = (box(x) - box(torch.zeros_like(x)))[torch.arange(4), k]
    assert torch.allclose(found.score_difference, difference, rtol=1e-9)
    assert torch.allclose(found.completeness_error, (sums - difference).abs(), rtol=1e-6, atol=1e-12)
    assert torch.equal(found.converged, found.completeness_error <= tol * difference.abs())
    assert bool(found.converged.all())


def test_examples_stop_one_by_one() -> None:
    """One that is straight takes the first evaluations alone, one with kinks more; each row that ran is counted."""
    box, x = opened(lambda z: (z @ W.to(z)).abs()[:, None] + 40 * (z.sum(1, keepdim=True) - 29.1).relu())
    x[0] = W.view(1, 8, 8).clamp(min=0) / 2
    found = integrated_gradients(box, x, 0, tol=1e-6)
    steps = found.n_steps.tolist()
    assert steps[0] == adaptive_quadrature.MAX_INITIAL_POINTS
    assert max(steps) > adaptive_quadrature.MAX_INITIAL_POINTS
    assert sum(box.model.rows) == sum(steps) + 2 * 3  # and the score at both ends
    limit = integrated_gradients(box, x, 0, n_steps=8_000).map
    assert torch.allclose(found.map, limit, atol=1e-3 * float(limit.abs().max()))


def test_a_kink_is_found() -> None:
    """Steps go where it is: as few as halving takes, where even steps would take a million."""
    box, x = opened(lambda z: 5 * (z.sum(1, keepdim=True) - 20.123).relu() + z @ W.to(z)[:, None])
    found = integrated_gradients(box, x, 0, tol=1e-6)
    assert bool(found.converged.all())
    assert int(found.n_steps.max()) <= 40  # and none where nothing bends


@pytest.mark.parametrize("kept", [16, 24])
def test_memory_is_bounded(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many steps: never more gradients of an example are kept, and the sums are the same as with all kept."""
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    most = 0
    total = adaptive_quadrature._Evaluations.mean_gradient

    def watched(self: Any, weights: Tensor) -> Tensor:
        nonlocal most
        most = max(most, self.gradient.shape[1])
        assert torch.allclose(weights.sum(1), torch.ones(len(weights)).double())
        return total(self, weights)

    monkeypatch.setattr(adaptive_quadrature._Evaluations, "mean_gradient", watched)
    monkeypatch.setattr(adaptive_quadrature, "MAX_STORED_GRADIENTS", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        found = integrated_gradients(box, x, 1, baseline="white", tol=1e-4)
    assert most <= kept
    assert int(found.n_steps.max()) > kept
    limit = integrated_gradients(box, x, 1, baseline="white", n_steps=2000).map
    assert float((found.map - limit).abs().sum() / limit.abs().sum()) < 0.05
    box_, straight = opened(lambda z: z @ W.to(z)[:, None])
    assert torch.allclose(integrated_gradients(box_, straight, 0).map, straight * W.view(1, 1, 8, 8), rtol=1e-12)


def test_the_calmest_are_weighed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients next to kinks stay: with half as many kept, the tolerance is still reached, in no more steps."""
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    monkeypatch.setattr(adaptive_quadrature, "MAX_STORED_GRADIENTS", 40)
    found = integrated_gradients(box, x, 1, baseline="white", tol=1e-3)
    assert bool(found.converged.all())
    assert 40 < int(found.n_steps.max()) <= 90


def test_what_is_weighed_for_good_is_weighed_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is the sum over all points of their last weights times their gradients, kept or not."""
    monkeypatch.setattr(adaptive_quadrature, "MAX_STORED_GRADIENTS", 16)
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    made = list[Any]()
    look = adaptive_quadrature._evaluate_points
    monkeypatch.setattr(adaptive_quadrature, "_evaluate_points", lambda p, t: made.append(look(p, t)) or made[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        found = integrated_gradients(box, x[:1], 1, baseline="white", tol=1e-9, max_steps=60)
    t = torch.cat([h.t for h in made], 1)[0]
    g = torch.cat([h.gradient for h in made], 1)[0]
    assert len(t) == int(found.n_steps[0]) > 16
    ends = torch.cat([torch.zeros(1), t.sort().values, torch.ones(1)]).double()
    h = ends.diff()
    half = torch.cat([h[:1], h[1:-1] / 2, h[-1:]])
    weights = torch.zeros_like(t).scatter(0, t.argsort(), half[1:] + half[:-1])
    want = (weights.view(-1, 1, 1, 1) * g).sum(0) * (x[0] - 1)
    assert torch.allclose(found.map[0], want, rtol=1e-9, atol=1e-12)


def test_a_budget_that_runs_out_is_reported() -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    with pytest.warns(UnboxedWarning, match="did not reach the tolerance for [123] of 3"):
        found = integrated_gradients(box, x, 1, baseline="white", tol=1e-12, max_steps=20)
    assert not bool(found.converged.all())
    assert int(found.n_steps.max()) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrated_gradients(box, x, 1, baseline="white", n_steps=2)  # who asks for two gets two


@pytest.mark.parametrize("max_steps", [1, 5, 16, 17])
def test_never_more_than_the_budget(max_steps: int) -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    with pytest.warns(UnboxedWarning):
        found = integrated_gradients(box, x, 1, tol=1e-12, max_steps=max_steps)
    assert found.n_steps.tolist() == [max_steps] * 3


def test_a_score_without_difference() -> None:
    """x is the baseline: nothing to share, and no step wasted."""
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs)
    found = integrated_gradients(box, torch.zeros(2, 1, 8, 8))
    assert torch.equal(found.map, torch.zeros(2, 1, 8, 8))
    assert bool(found.converged.all())
    assert found.n_steps.tolist() == [adaptive_quadrature.MAX_INITIAL_POINTS] * 2


def test_rounding_is_not_chased() -> None:
    """In single precision the scores themselves are off by more than 1e-9 of a difference."""
    entry = awkward.get_model("plain")
    box, x = ub.Box(entry.model, entry.inputs), entry.images()
    score = ub.logit(1) + 1e6
    found = integrated_gradients(box, x, score, tol=1e-9)
    assert bool(found.converged.all())
    assert int(found.n_steps.max()) == adaptive_quadrature.MAX_INITIAL_POINTS


def test_a_gradient_that_is_nan_stops_its_own_row() -> None:
    box, x = opened(lambda z: ((z - 0.25).clamp(max=1).abs().sqrt() @ W.to(z))[:, None])
    x[1] = 0.5  # its midpoints are at no 0.25; row 0's first pixel is there at t = 3 / 8
    x[0, 0, 0, 0] = 0.25 / (3 / 8)
    x[2] = 0.4
    with pytest.warns(UnboxedWarning):
        found = integrated_gradients(box, x, 0, tol=0.5)
    assert not bool(found.completeness_error[0].isfinite())
    assert found.converged.tolist()[0] is False
    assert int(found.n_steps[0]) == adaptive_quadrature.MIN_INITIAL_POINTS
    assert bool(found.map[1].isfinite().all())


def test_nothing_is_asked_of_the_ends() -> None:
    """A norm has no gradient at a black baseline, and is none the worse for it."""
    box, x = opened(lambda z: z.norm(dim=1, keepdim=True))
    found = integrated_gradients(box, x, 0)
    assert bool(found.converged.all())
    assert torch.allclose(found.map, x**2 / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1), rtol=1e-9)


@pytest.mark.parametrize("model", ["batchnorm_without_statistics", "batchnorm_on_batch_statistics"])
def test_where_examples_depend_on_one_another(model: str) -> None:
    """All examples move together, by a fixed number of steps; what is left open is said."""
    entry = awkward.get_model(model, torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    assert box.batch_dependent
    with pytest.warns(UnboxedWarning, match="did not reach"):
        found = integrated_gradients(box, x, 1)
    assert found.n_steps.tolist() == [50] * 3
    want = torch.zeros_like(x)
    for k in range(50):
        h = ((k + 0.5) / 50 * x).requires_grad_()
        (g,) = torch.autograd.grad(entry.model(entry.inputs.encode(h))[:, 1].sum(), h)
        want += g / 50 * x
    assert torch.allclose(found.map, want, rtol=1e-9, atol=1e-12)


def test_a_hidden_unit_stops_the_model_there() -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), entry.images().double()
    found = integrated_gradients(box, x, ub.neuron("conv2", 1), tol=1e-3)
    assert bool(found.converged.all())
    h, h0 = (box.read(v, "conv2")["conv2"] for v in (x, torch.zeros_like(x)))
    at = tuple(s // 2 for s in h.shape[2:])
    assert torch.allclose(found.score_difference, (h - h0)[:, 1, at[0], at[1]], rtol=1e-9)


BAD: dict[str, dict[str, Any]] = {
    "no steps": {"n_steps": 0},
    "half a step": {"n_steps": 1.5},
    "no tolerance": {"tol": 0},
    "a tolerance below": {"tol": -0.1},
    "no budget": {"max_steps": 0},
    "a rule without steps": {"rule": "midpoint"},
    "an unknown rule": {"n_steps": 5, "rule": "simpson"},
    "an unknown baseline": {"baseline": "grey"},
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_settings(bad: str) -> None:
    entry = awkward.get_model("plain")
    box, x = ub.Box(entry.model, entry.inputs), entry.images()
    with pytest.raises(InputError):
        integrated_gradients(box, x, 1, **BAD[bad])


@pytest.mark.parametrize("bad", [{"n_samples": 0}, {"noise": 0}, {"noise": -1.0}, {"kind": "median"}, {"seed": 0.5}])
def test_bad_settings_of_smoothgrad(bad: dict[str, Any]) -> None:
    entry = awkward.get_model("plain")
    box, x = ub.Box(entry.model, entry.inputs), entry.images()
    with pytest.raises(InputError):
        smoothgrad(box, x, 1, **bad)


def test_noise_in_a_columns_own_units() -> None:
    """On a table, noise is in parts of each column's std: one of a thousand's is larger than one of a unit's."""
    columns = ub.Features(("small", "large"), std=(1.0, 1000.0))
    model = nn.Sequential(nn.Linear(2, 3)).eval()
    box = ub.Box(model, columns)
    seen = list[Tensor]()
    model.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    smoothgrad(box, torch.zeros(1, 2), 1, n_samples=400, noise=0.2)
    z = torch.cat(seen)
    assert torch.allclose(z.std(0), torch.tensor([0.2, 0.2]), rtol=0.15)


def test_noise_in_a_columns_range() -> None:
    """Without std, noise is in parts of each column's range, as attacks are."""
    box = ub.Box(nn.Linear(2, 3).eval(), ub.Features(("small", "large"), low=0, high=(1, 1000)))
    assert noise_scale(box.inputs, torch.zeros(1, 2)).tolist() == [[1.0, 1000.0]]


def test_vargrad_of_a_linear_model_is_zero() -> None:
    entry = awkward.get_model("plain")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    box = ub.Box(model, entry.inputs)
    assert torch.equal(smoothgrad(box, entry.images(), 1, kind="variance"), torch.zeros(3, 1, 8, 8))
