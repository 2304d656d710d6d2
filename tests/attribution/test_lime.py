"""LIME: its masks, its errors, its steadiness, and what it is asked."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.engine.memory_format import faster_memory_format
from unboxed.engine.perturb.control_variate import RegressionDesign, fit_local_model_with_control_variate
from unboxed.engine.perturb.masks import SampledMasks, all_subset_masks, bernoulli_masks
from unboxed.engine.perturb.surrogate import MIN_TRAINING_MASKS, KernelRidgeSurrogate
from unboxed.errors import InputError, UnboxedWarning

A = ub.attribution
WIDTH = 0.25


def score(z: Tensor) -> Tensor:
    """A probability of masks (K, 12) in which features interact in twos and threes."""
    weight = torch.linspace(-2, 3, 12, dtype=torch.float64)
    return (z @ weight + 3 * z[:, 0] * z[:, 5] - 4 * z[:, 2] * z[:, 7] * z[:, 9] - 3).sigmoid()


def limit() -> Tensor:
    """The weights of the regression on all subsets: what every draw estimates."""
    z = torch.cat([torch.ones(1, 12), all_subset_masks(12)]).bool()
    weight = torch.cat([torch.ones(1), torch.full((2**12,), 399 / 2**12)]).double()
    draws = SampledMasks(z, torch.arange(len(z)), weight, torch.full((len(z),), -1))
    return fit_local_model_with_control_variate(
        RegressionDesign.from_masks(draws, 12, WIDTH, None), score(draws.float_masks), regression="ridge", alpha=1.0
    ).weights


@cache
def drawn(seed: int, control: bool, n: int = 400) -> tuple[Tensor, Tensor]:
    draws = bernoulli_masks(12, n, seed)
    known = (KernelRidgeSurrogate(draws.float_masks[1:]), bernoulli_masks(12, 8000, seed + 1)) if control else None
    found = fit_local_model_with_control_variate(
        RegressionDesign.from_masks(draws, 12, WIDTH, known),
        score(draws.float_masks),
        regression="ridge",
        alpha=1.0,
        use_log_odds=True,
    )
    return found.weights, found.standard_error


@cache
def independent(seed: int, n: int = 400) -> Tensor:
    """As the lime package draws."""
    z = torch.rand(n, 12, generator=torch.Generator().manual_seed(seed)) < 0.5
    z[0] = True
    draws = SampledMasks(z, torch.arange(n), torch.ones(n).double(), torch.arange(n))
    return fit_local_model_with_control_variate(
        RegressionDesign.from_masks(draws, 12, WIDTH, None), score(draws.float_masks), regression="ridge", alpha=1.0
    ).weights


def test_the_target_is_the_packages() -> None:
    """The mean over seeds is the regression on all subsets, with independent draws as with ours."""
    want = limit()
    for estimate in (independent, lambda s: drawn(s, False)[0], lambda s: drawn(s, True)[0]):
        each = torch.stack([estimate(seed) for seed in range(30)])
        off = each.mean(0) - want
        assert float((off.abs() / (each.std(0) / 30**0.5)).max()) < 4.5
        assert float(off.abs().max()) < 0.014


def test_less_noise() -> None:
    """Together, the orthogonal array and the control variate bring the variance of the weights down to a fifth."""
    spread = [
        float(torch.stack([estimate(seed) for seed in range(30)]).var(0).mean())
        for estimate in (independent, lambda s: drawn(s, False)[0], lambda s: drawn(s, True)[0])
    ]
    assert spread[1] < spread[0]
    assert spread[2] < 0.2 * spread[0]


@pytest.mark.parametrize("control", [False, True])
def test_standard_errors_are_true(control: bool) -> None:
    """What they say of one seed is how seeds differ."""
    each = [drawn(seed, control) for seed in range(40)]
    found = torch.stack([w for w, _ in each]).std(0)
    said = torch.stack([e for _, e in each]).square().mean(0).sqrt()
    assert 0.7 < float((said / found).median()) < 1.5


def bent(z: Tensor) -> Tensor:
    """A score of masks (K, 12) of which much is due to features in twos, threes and more."""
    g = torch.Generator().manual_seed(0)
    twos, ones, threes = (
        torch.randn(12, 12, generator=g),
        torch.randn(12, generator=g),
        torch.randn(12, 12, 12, generator=g),
    )
    z = z.float()
    found = 0.5 * (z @ twos * z).sum(1) + 0.7 * z @ ones + 0.1 * torch.einsum("ni,nj,nk,ijk->n", z, z, z, threes)
    return (found + torch.sin(4 * z[:, 0] + 3 * z[:, 3] * z[:, 7])).double()


def on_all_subsets(n: int, regression: Any) -> Tensor:
    """What n draws estimate."""
    z = torch.cat([torch.ones(1, 12), all_subset_masks(12)]).bool()
    weight = torch.cat([torch.ones(1), torch.full((2**12,), (n - 1) / 2**12)]).double()
    draws = SampledMasks(z, torch.arange(len(z)), weight, torch.full((len(z),), -1))
    return fit_local_model_with_control_variate(
        RegressionDesign.from_masks(draws, 12, WIDTH, None), bent(draws.float_masks), regression=regression, alpha=1.0
    ).weights


@pytest.mark.parametrize(
    ("n", "regression"),
    [(14, "ridge"), (16, "ols"), (26, "ridge"), (48, "ols"), (48, "ridge"), (120, "ols"), (600, "ridge")],
)
def test_intervals_cover(n: int, regression: Any) -> None:
    """1.96 standard errors hold what is estimated nine times in ten or more, with few draws too; nor are they vast."""
    want, off, said = on_all_subsets(n, regression), [], []
    for seed in range(25 if n < 600 else 12):
        draws = bernoulli_masks(12, n, seed)
        known = (
            (KernelRidgeSurrogate(draws.float_masks[1:]), bernoulli_masks(12, min(4096, 16 * n), seed + 1))
            if n >= MIN_TRAINING_MASKS
            else None
        )
        found = fit_local_model_with_control_variate(
            RegressionDesign.from_masks(draws, 12, WIDTH, known),
            bent(draws.float_masks),
            regression=regression,
            alpha=float(regression == "ridge"),
        )
        off.append(found.weights - want)
        said.append(found.standard_error)
    away, error = torch.stack(off), torch.stack(said)
    assert float((away.abs() <= 1.96 * error).double().mean()) >= 0.9
    assert float(error.square().mean().sqrt()) < (1.7 if n >= 48 else 5) * float(away.square().mean().sqrt())


def test_few_samples_are_warned_of() -> None:
    box, x = digits(1)
    with pytest.warns(UnboxedWarning, match=r"n_samples=60 are few for \d+ segments .* take n_samples of \d+") as met:
        A.lime(box, x, 7, segments=("squares", 4), n_samples=60)
    assert met[0].filename == __file__
    assert "tensor" not in str(met[0].message)
    A.lime(box, x, 7, n_samples=60)  # segments by default are as few as that takes


@pytest.mark.parametrize("method", [A.lime, A.kernel_shap])
def test_too_few_samples_for_the_superpixels_of_an_image(method: Any) -> None:
    """They are refused: one segment for the whole image would be a map of nothing."""
    box, x = digits(1)
    with pytest.raises(InputError, match=r"these images have \d+ segments, .* n_samples of \d+ or more; got 5"):
        method(box, x, 7, n_samples=5)


def test_masks_are_an_orthogonal_array() -> None:
    """In a whole block every three features are kept in all eight ways equally often; each mask is a fair draw."""
    z = bernoulli_masks(12, 1 + 2 * 16 * 3, 0).float_masks[1:]
    for i, j, k in [(0, 1, 2), (3, 7, 11), (5, 6, 10)]:
        ways = (4 * z[:, i] + 2 * z[:, j] + z[:, k]).long()
        assert torch.bincount(ways).tolist() == [12] * 8
    first = torch.stack([bernoulli_masks(12, 40, seed).float_masks[1] for seed in range(400)])
    assert float((first.mean(0) - 0.5).abs().max()) < 0.1
    assert float((torch.corrcoef(first.T) - torch.eye(12)).abs().max()) < 0.2


def digits(n: int = 2) -> tuple[ub.Box, Tensor]:
    return ub.Box(*ub.zoo.load("mnist-cnn")), ub.data.digits("test").first(n)[0]


def digits_and_rows_run(n: int) -> tuple[ub.Box, Tensor, list[int]]:
    """The list grows by the rows of each forward pass; the model has been asked for its faster memory format."""
    (box, x), rows_run = digits(n), list[int]()
    box.model.register_forward_pre_hook(lambda m, args: rows_run.append(len(args[0])))
    faster_memory_format(box, ["logits"], 1000)
    rows_run.clear()
    return box, x, rows_run


def test_a_mask_is_run_once() -> None:
    box, x, ran = digits_and_rows_run(1)
    A.lime(box, x, 7, segments=("squares", 14), n_samples=500)
    assert sum(ran) <= 2**4
    ran.clear()
    A.lime(box, x, 7, segments=("squares", 4), n_samples=500)
    assert 2**8 < sum(ran) <= 500


def test_several_classes_in_one_set_of_runs() -> None:
    box, x, ran = digits_and_rows_run(2)
    top = A.lime_top(box, x, 3, segments="slic", n_samples=150)
    assert sum(ran) <= 2 * 150 + 2
    assert torch.equal(top.classes, box.probs(x).topk(3, 1).indices)
    for t, own in enumerate(top.explanations):
        alone = A.lime(box, x, top.classes[:, t], segments="slic", n_samples=150)
        assert torch.allclose(own.weights, alone.weights, atol=1e-5)
        assert torch.equal(own.target, top.classes[:, t])


def test_positive_masks() -> None:
    box, x = digits()
    found = A.lime(box, x, segments="slic", n_samples=200)
    mask = A.positive_segments_mask(found, 3)
    assert mask.shape == (2, 28, 28)
    assert mask.dtype == torch.bool
    for row in range(2):
        chosen = found.segments[row][mask[row]].unique()
        best = found.weights[row].topk(3)
        assert set(chosen.tolist()) == set(best.indices[best.values > 0].tolist())
    assert float(found.map[:, 0][mask].min()) > 0
    with pytest.raises(InputError):
        A.positive_segments_mask(found.map)


def test_the_model_is_what_it_says() -> None:
    box, x = digits()
    found = A.lime(box, x, segments="slic", n_samples=400, baseline=0.5)
    assert torch.allclose(found.prediction, found.intercept + found.weights.sum(1), atol=1e-5)
    assert torch.allclose(found.score, box.probs(x).gather(1, found.target[:, None])[:, 0], atol=1e-5)
    assert bool((found.r2 > 0).all())
    assert bool((found.r2 < 1).all())
    assert bool((found.standard_error > 0)[:, :20].all())


def test_few_features() -> None:
    box, x = digits(1)
    few = A.lime(box, x, 7, segments="slic", n_samples=200, n_features=4)
    assert int((few.weights != 0).sum()) == 4
    sparse = A.lime(box, x, 7, segments="slic", n_samples=200, regression="lasso", alpha=0.005)
    assert 0 < int((sparse.weights != 0).sum()) < 12
    assert torch.equal(sparse.weights != 0, sparse.standard_error > 0)


@pytest.mark.parametrize("target", [None, ub.channel("conv2", 1), ub.logit(2)])
def test_on_scores(target: Any) -> None:
    """A linear score has R^2 of 1; objectives are scored by themselves."""
    entry = awkward.get_model("plain", torch.float64)
    box = ub.Box(entry.model, entry.inputs)
    found = A.lime(box, entry.images().double(), target, segments=("squares", 3), n_samples=60, on="score")
    assert bool(found.r2.isfinite().all())
    with pytest.raises(InputError, match="goes with a class"):
        A.lime(box, entry.images().double(), ub.channel("conv2", 1), n_samples=60, on="probability")


def test_a_linear_score_is_found_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    box = ub.Box(model, awkward.GRAY_INPUTS, outputs="logits")
    x = awkward.get_model("plain").images().double()
    found = A.lime(box, x, 1, segments=("squares", 2), n_samples=90, on="score", regression="ols")
    w = model[1].weight[1].detach().view(1, 8, 8) / 0.5
    want = torch.stack([(w * x)[:, 0][:, found.segments[0] == k].sum(1) for k in range(16)], 1)
    assert torch.allclose(found.weights, want, atol=1e-9)
    assert torch.allclose(found.r2, torch.ones(3).double())
    assert float(found.standard_error.abs().max()) < 1e-9


def test_a_regression_model() -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(6, 2), ub.Features(tuple("abcdef")), outputs="regression")
    x = torch.randn(3, 6)
    assert A.lime(box, x, 1, n_samples=64).map.shape == (3, 6)
    with pytest.raises(InputError, match="regression"):
        A.lime(box, x, 1, n_samples=64, on="probability")


BAD = [
    {"n_samples": 9}, {"n_samples": 1.5}, {"kernel_width": 0}, {"kernel_width": "wide"}, {"regression": "forest"},
    {"alpha": -1}, {"alpha": float("nan")}, {"n_features": 0}, {"on": "logit"}, {"seed": 1.5}, {"baseline": "segments"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_settings(bad: dict[str, Any]) -> None:
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs)
    with pytest.raises(InputError):
        A.lime(box, entry.images(), 1, **{"segments": ("squares", 3), "n_samples": 40, **bad})
    with pytest.raises(InputError):
        A.lime_top(box, entry.images(), 5, segments=("squares", 3))
