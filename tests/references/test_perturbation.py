"""The perturbation family against twins written from the papers, and against captum where it is right."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.engine.perturb.control_variate import RegressionDesign, fit_local_model_with_control_variate
from unboxed.engine.perturb.estimators import kernel_shapley
from unboxed.engine.perturb.masks import all_subset_masks, bernoulli_masks, rise_masks, shapley_mask_pairs

A = ub.attribution
SQUARES = ub.Features(tuple("abcdef"))
WIDTH = 0.25


def image_case(n: int = 2) -> tuple[ub.Box, Tensor]:
    entry = awkward.get_model("plain", torch.float64)
    return ub.Box(entry.model, entry.inputs), entry.images(n).double()


def quarters() -> Tensor:
    """Six segments of 8x8 pixels, of unequal sizes."""
    of = torch.zeros(8, 8, dtype=torch.long)
    of[:, 4:], of[5:, :4], of[5:, 4:] = 1, 2, 3
    of[0, 0], of[2:4, 6:] = 4, 5
    return of


def hidden(x: Tensor, of: Tensor, keep: np.ndarray | Tensor, base: float = 0.0) -> Tensor:
    """x (1, C, H, W) with the segments that are not kept replaced, pixel by pixel."""
    out = x.clone()
    for i, j in itertools.product(range(8), range(8)):
        if not keep[of[i, j]]:
            out[:, :, i, j] = base
    return out


def value(box: ub.Box, x: Tensor, of: Tensor, keep: Any, k: int, base: float = 0.0) -> float:
    return float(box(hidden(x, of, keep, base))[0, k])


# ---- feature ablation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0.0, 1.0, 0.3])
def test_feature_ablation_one_by_one(base: float) -> None:
    box, x = image_case()
    got = A.feature_ablation(box, x, 1, segments=quarters(), baseline=base)
    for n in range(2):
        whole = value(box, x[n : n + 1], quarters(), [1] * 6, 1)
        for f in range(6):
            keep = [int(g != f) for g in range(6)]
            want = whole - value(box, x[n : n + 1], quarters(), keep, 1, base)
            assert torch.allclose(got[n, 0][quarters() == f], torch.tensor(want).double(), atol=1e-12)


def test_feature_ablation_as_captum() -> None:
    box, x = image_case(3)
    z = awkward.GRAY_INPUTS.encode(x)
    peer = captum.attr.FeatureAblation(box.model)
    black = awkward.GRAY_INPUTS.encode(torch.zeros_like(x))
    for given, mask in (("pixels", torch.arange(64).view(1, 1, 8, 8)), (quarters(), quarters()[None, None])):
        want = peer.attribute(z, black, target=torch.tensor([0, 2, 1]), feature_mask=mask)
        got = A.feature_ablation(box, x, torch.tensor([0, 2, 1]), segments=given)
        assert torch.allclose(got, want, atol=1e-12)
        assert got.std() > 0


# ---- RISE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 7])
def test_rise_is_the_papers_sum(size: Any) -> None:
    """Equation 6 by a loop over masks, for each row alone."""
    box, x = image_case()
    n, p = 31, 0.4
    masks = rise_masks(range(n), (8, 8), 3, p, 5, x)
    got = A.rise(box, x, 1, n_samples=n, cells=3, keep=p, seed=5, on="score", batch_size=size)
    cover = A.rise(box, x, 1, n_samples=n, cells=3, keep=p, seed=5, on="score", normalize="coverage", batch_size=size)
    for row in range(2):
        total = sum(float(box(x[row : row + 1] * m)[0, 1]) * m for m in masks)
        assert torch.allclose(got[row], total / (n * p), atol=1e-9)
        assert torch.allclose(cover[row], total / masks.sum(0), atol=1e-9)


def test_rise_scores_probabilities_by_default() -> None:
    box, x = image_case()
    masks = rise_masks(range(9), (8, 8), 3, 0.5, 0, x)
    want = sum(float(box.probs(x[:1] * m)[0, 2]) * m for m in masks) / 4.5
    assert torch.allclose(A.rise(box, x[:1], 2, n_samples=9, cells=3)[0], want, atol=1e-9)


def test_grids_are_enlarged_as_by_skimage() -> None:
    """Order 1, of the same grid and shift. At the border the outer cells go on (the authors' code mirrors there)."""
    from skimage.transform import resize

    from unboxed import rng

    for k in range(4):
        mask = rise_masks(range(k, k + 1), (10, 7), 3, 0.5, 1, torch.zeros(1, dtype=torch.float64))[0, 0]
        generator = rng.step_generator(1, k, torch.device("cpu"))
        grid = (torch.rand(3, 3, generator=generator) < 0.5).double().numpy()
        i, j = (int(torch.randint(c, (), generator=generator)) for c in (4, 3))
        large = resize(grid, (16, 12), order=1, mode="edge", anti_aliasing=False)
        assert np.allclose(mask.numpy(), large[i : i + 10, j : j + 7], atol=1e-9)


# ---- LIME ------------------------------------------------------------------------------------------------------------


def pi(z: np.ndarray) -> np.ndarray:
    """Section 3.4 and the package: the cosine distance to all ones, exp(-d^2 / width^2), its root."""
    ones = np.ones(z.shape[1])
    norms = np.linalg.norm(z, axis=1) * np.linalg.norm(ones)
    cosine = np.divide(z @ ones, norms, out=np.zeros(len(z)), where=norms > 0)
    return np.sqrt(np.exp(-((1 - cosine) ** 2) / WIDTH**2))


MODELS: dict[str, Any] = {
    "ridge": lambda alpha: Ridge(alpha=alpha),
    "ols": lambda alpha: LinearRegression(),
    "lasso": lambda alpha: Lasso(alpha=alpha, max_iter=100_000, tol=1e-12),
}


def literal_lime(z: np.ndarray, y: np.ndarray, regression: str, alpha: float) -> Any:
    return MODELS[regression](alpha).fit(z, y, sample_weight=pi(z))


@pytest.mark.parametrize(("regression", "alpha"), [("ridge", 1.0), ("ridge", 0.1), ("ols", 0.0), ("lasso", 0.02)])
def test_lime_on_the_same_masks(regression: Any, alpha: float) -> None:
    """scikit-learn's weighted regression of the masks that were drawn; no control variate."""
    generator = np.random.default_rng(0)
    rng = bernoulli_masks(7, 100, seed=3)
    z = rng.float_masks.numpy()
    y = z @ generator.normal(size=7) + 0.5 * z[:, 0] * z[:, 3] - np.sin(z.sum(1))
    got = fit_local_model_with_control_variate(
        RegressionDesign.from_masks(rng, 7, WIDTH, None), torch.from_numpy(y), regression=regression, alpha=alpha
    )
    want = literal_lime(z, y, regression, alpha)
    assert np.allclose(got.weights.numpy(), want.coef_, atol=1e-7)
    assert np.isclose(got.intercept, want.intercept_, atol=1e-7)
    assert np.isclose(got.r2, want.score(z, y, sample_weight=pi(z)), atol=1e-9)


@pytest.mark.parametrize(("regression", "alpha"), [("ridge", 1.0), ("ols", 0.0)])
@pytest.mark.parametrize("n", [40, 101])
def test_limes_errors_are_the_jackknifes(n: int, regression: Any, alpha: float) -> None:
    """Fitted again without each pair of masks in turn."""
    rng = bernoulli_masks(9, n, seed=3)
    z = rng.float_masks.numpy()
    y = np.sin(3 * z @ np.linspace(-1, 2, 9)) + z[:, 2]
    got = fit_local_model_with_control_variate(
        RegressionDesign.from_masks(rng, 9, WIDTH, None), torch.from_numpy(y), regression=regression, alpha=alpha
    )
    pairs = rng.cluster.numpy()
    kept = [pairs != c for c in range(pairs.max() + 1)]
    each = np.stack([literal_lime(z[k], y[k], regression, alpha).coef_ for k in kept])
    want = np.sqrt(((each - each.mean(0)) ** 2).sum(0) * len(kept) / (len(kept) - 1))
    assert np.allclose(got.standard_error.numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("regression", ["ridge", "ols", "lasso"])
def test_lime_from_the_image_to_the_weights(regression: Any) -> None:
    """All of it by hand on every subset, as the draws of so few segments are: probabilities, black, six segments."""
    box, x = image_case()
    got = A.lime(box, x, 1, segments=quarters(), n_samples=200, regression=regression)
    z = all_subset_masks(6).double().numpy()
    z = np.concatenate([np.ones((1, 6)), z])
    for n in range(2):
        y = np.array([float(box.probs(hidden(x[n : n + 1], quarters(), row))[0, 1]) for row in z])
        weight = pi(z) * np.array([1.0] + [199 / 64] * 64)
        want = MODELS[regression]({"ridge": 1.0, "ols": 0.0, "lasso": 0.001}[regression]).fit(
            z, y, sample_weight=weight
        )
        assert np.allclose(got.weights[n].numpy(), want.coef_, atol=1e-7)
        assert np.isclose(float(got.intercept[n]), want.intercept_)
        assert np.isclose(float(got.r2[n]), want.score(z, y, sample_weight=weight))
        assert np.isclose(float(got.prediction[n]), want.predict(np.ones((1, 6)))[0])
        assert np.isclose(float(got.score[n]), y[0])
        assert torch.equal(got.standard_error[n], torch.zeros(6).double())
        for f in range(6):
            assert torch.equal(got.map[n, 0][quarters() == f], got.weights[n, f].expand(int((quarters() == f).sum())))


def test_segments_that_change_nothing_are_summed_over() -> None:
    """Segments that mask nothing: the same as if all subsets of all segments had been run."""
    box, x = image_case(1)
    of = quarters()
    x[:, :, of == 1], x[:, :, of == 4] = 0, 0
    got = A.lime(box, x, 2, segments=of, n_samples=100, on="score")  # 2^4 subsets of the others
    z = np.concatenate([np.ones((1, 6)), all_subset_masks(6).double().numpy()])
    y = np.array([value(box, x, of, row, 2) for row in z])
    want = Ridge(alpha=1.0).fit(z, y, sample_weight=pi(z) * np.array([1.0] + [99 / 64] * 64))
    assert np.allclose(got.weights[0].numpy(), want.coef_, atol=1e-9)
    assert np.isclose(float(got.r2[0]), want.score(z, y, sample_weight=pi(z) * np.array([1.0] + [99 / 64] * 64)))


# ---- Shapley values --------------------------------------------------------------------------------------------------


def by_permutations(v: dict[tuple[int, ...], float], players: int) -> np.ndarray:
    """Shapley 1953: the mean over all orders of what each feature adds to those before it."""
    total = np.zeros(players)
    for order in itertools.permutations(range(players)):
        for i, p in enumerate(order):
            before = tuple(sorted(order[:i]))
            total[p] += v[tuple(sorted((*before, p)))] - v[before]
    return total / math.factorial(players)


def game(box: ub.Box, x: Tensor, of: Tensor, players: int, k: int) -> dict[tuple[int, ...], float]:
    subsets = itertools.chain.from_iterable(itertools.combinations(range(players), s) for s in range(players + 1))
    return {s: value(box, x, of, [int(p in s) for p in range(players)], k) for s in subsets}


def test_shapley_by_permutations() -> None:
    box, x = image_case()
    got = A.shapley(box, x, 1, segments=quarters())
    for n in range(2):
        want = by_permutations(game(box, x[n : n + 1], quarters(), 6, 1), 6)
        assert np.allclose(got.values[n].numpy(), want, atol=1e-12)
        for f in range(6):
            assert torch.allclose(got.map[n, 0][quarters() == f].sum(), got.values[n, f])
    assert torch.allclose(got.values.sum(1), got.score - got.baseline_score, atol=1e-12)


def test_shapley_as_captum() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()  # captum's is for single precision
    box, x = ub.Box(model, SQUARES, outputs="logits"), torch.randn(3, 6)
    k = torch.tensor([2, 0, 1])
    want = captum.attr.ShapleyValues(model).attribute(x, torch.zeros_like(x), target=k, perturbations_per_eval=6)
    assert torch.allclose(A.shapley(box, x, k).map, want, atol=1e-6)


def test_kernel_shap_on_all_subsets_is_shapley() -> None:
    """The paper's theorem 2, and equation by equation: weights (M - 1) / (C(M, s) s (M - s)), both ends held."""
    box, x = image_case(1)
    v = game(box, x, quarters(), 6, 1)
    want = by_permutations(v, 6)
    rng = shapley_mask_pairs(6, 62, seed=0)
    assert len(rng.masks) == 62
    assert bool((rng.cluster == -1).all())
    y = torch.tensor([v[tuple(row.nonzero()[:, 0].tolist())] for row in rng.masks]).double()[rng.mask_index]
    got, error = kernel_shapley(rng, y, v[()], v[tuple(range(6))])
    assert np.allclose(got.numpy(), want, atol=1e-9)
    assert float(error.abs().max()) == 0
    z = rng.float_masks.numpy()
    weight = np.array([5 / (math.comb(6, int(s)) * s * (6 - s)) for s in z.sum(1)])
    reduced, y0 = z[:, :-1] - z[:, -1:], y.numpy() - v[()] - z[:, -1] * (v[tuple(range(6))] - v[()])
    literal = LinearRegression(fit_intercept=False).fit(reduced, y0, sample_weight=weight).coef_
    assert np.allclose(got.numpy()[:-1], literal, atol=1e-9)
    assert np.allclose(A.kernel_shap(box, x, 1, segments=quarters(), n_samples=64).values[0].numpy(), want, atol=1e-12)


@pytest.mark.parametrize("n", [40, 60, 90])
def test_weights_of_the_draws_sum_to_the_kernels(n: int) -> None:
    """Size by size over many seeds: the share that Shapley's kernel gives all subsets of that size together."""
    a = 9
    total = torch.zeros(a)
    for seed in range(60):
        rng = shapley_mask_pairs(a, n, seed)
        assert len(rng.mask_index) <= n
        total.index_add_(0, rng.float_masks.sum(1).long(), rng.weight.float() / 60)
    want = torch.tensor([1 / (s * (a - s)) for s in range(1, a)])
    assert torch.allclose(total[1:], want, rtol=0.1)


def test_kernel_shap_as_captum_in_the_limit() -> None:
    """The same solution from many draws."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)).double().eval()
    box = ub.Box(model, ub.Features(tuple("abcdefghijkl")), outputs="logits")
    x = torch.randn(1, 12).double()
    got = A.kernel_shap(box, x, 1, n_samples=600)
    exact = A.shapley(box, x, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        peer = captum.attr.KernelShap(model).attribute(x, torch.zeros_like(x), target=1, n_samples=3000)
    assert torch.allclose(got.values, peer.double(), atol=0.1)
    off = (got.values - exact.values).abs()
    assert float(off.max()) < 0.05
    assert bool((off <= 5 * got.standard_error + 1e-9).all())


@pytest.mark.parametrize("segments", [("squares", 4), ("squares", 5), "pixels"])
def test_rectangles_run_as_windows_lose_what_they_lose_in_full_runs(
    segments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The squares at the border are smaller where the side does not divide."""
    from unboxed.attribution import feature_ablation as method

    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(2)
    x = x + 0.1 * (1 - x)  # so that every pixel hides something
    module = sys.modules[method.__module__]
    asked: list[Any] = []
    real = module.run_with_replaced_windows

    def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[5])
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "run_with_replaced_windows", counted)
    got = method(box, x, y, segments=segments)
    assert len(asked) == (4 if segments == ("squares", 5) else 1)
    monkeypatch.setattr(module, "_scores_with_rectangles_masked", lambda *args: None)
    want = method(box, x, y, segments=segments)
    # Losses are differences of scores, and rounded as those are.
    assert float((got - want).abs().max()) <= 3e-6 * float(box(x).abs().max())
