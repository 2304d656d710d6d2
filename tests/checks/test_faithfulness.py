"""Metrics of faithfulness: exact laws, manners on awkward models, and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.common import make_case, result_difference_texts, result_tensors
from contracts.trace import changes, snapshot
from unboxed import checks
from unboxed.checks.perturbing import rank_descending
from unboxed.checks.road import _impute_noisy_linear, _neighbor_weight_matrix
from unboxed.errors import InputError, OutputError

Metric = Callable[..., Any]


def road_of(box: ub.Box, x: Any, maps: Any, *args: Any, **more: Any) -> Any:
    return checks.road(box, x, maps, *args, fractions=(0.1, 0.5), **more)


def moves(box: ub.Box, x: Any, maps: Any, *args: Any, **more: Any) -> Any:
    return checks.max_sensitivity(box, x, ub.attribution.gradient, *args, n_samples=2, **more)


METRICS: dict[str, Metric] = {
    "deletion": lambda *a, **k: checks.deletion(*a, n_steps=4, **k),
    "insertion": lambda *a, **k: checks.insertion(*a, n_steps=4, **k),
    "infidelity": lambda *a, **k: checks.infidelity(*a, n_samples=5, **k),
    "infidelity of squares": lambda *a, **k: checks.infidelity(*a, perturbation="square", n_samples=5, **k),
    "sensitivity_n": lambda *a, **k: checks.sensitivity_n(*a, sizes=[2, 6], n_samples=6, **k),
    "road": road_of,
    "max_sensitivity": moves,
}
OF_MAPS = [name for name in METRICS if name != "max_sensitivity"]
OF_FEATURES = ["deletion", "insertion", "infidelity", "sensitivity_n"]
each = pytest.mark.parametrize("name", METRICS)
of_maps = pytest.mark.parametrize("name", OF_MAPS)


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Linear:
    """A linear model of images in double precision, and what its weights are in units of pixels."""

    box: ub.Box
    x: Tensor
    w: Tensor  # (N, C, H, W) of the class that each x is taken for


@pytest.fixture
def linear() -> Linear:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, 4)).double()
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(1))
    inputs = ub.Pixels((3, 6, 5), mean=0.4, std=0.5)
    x = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = ub.Box(model, inputs, outputs="logits")
    return Linear(box, x, model[1].weight.detach()[box.predict(x)].view(4, 3, 6, 5) / 0.5)


# -- exact laws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perturbation", ["gaussian", "noisy_baseline", "square"])
def test_slopes_of_a_linear_model_have_no_infidelity(linear: Linear, perturbation: Any) -> None:
    settings = {"perturbation": perturbation, "attribution": "local", "n_samples": 20}
    assert checks.infidelity(linear.box, linear.x, linear.w, **settings).infidelity.max() < 1e-20
    assert checks.infidelity(linear.box, linear.x, 1.01 * linear.w, **settings).infidelity.min() > 1e-6


@pytest.mark.parametrize("base", [0.0, 0.3])
def test_shares_of_a_linear_model(linear: Linear, base: float) -> None:
    shares = linear.w * (linear.x - base)
    for phi in (shares, shares.sum(1, keepdim=True)):
        squares = checks.infidelity(linear.box, linear.x, phi, perturbation="square", baseline=base, n_samples=30)
        assert squares.infidelity.max() < 1e-20
        right = checks.sensitivity_n(linear.box, linear.x, phi, baseline=base, sizes=[1, 3, 29], n_samples=30)
        assert torch.allclose(right.correlation, torch.ones(4, 3).double(), atol=1e-9)
    wrong = checks.sensitivity_n(linear.box, linear.x, -shares, baseline=base, sizes=[1, 3, 29], n_samples=30)
    assert torch.allclose(wrong.correlation, -torch.ones(4, 3).double(), atol=1e-9)


def test_random_maps_correlate_with_nothing(linear: Linear) -> None:
    box, x = linear.box, linear.x[:1].expand(40, -1, -1, -1)
    found = checks.sensitivity_n(box, x, checks.random_maps(box, x), sizes=[1, 5, 15], n_samples=100)
    assert found.mean.abs().max() < 0.12  # forty maps of thirty pixels: 0.03 is a standard error


def test_the_best_factor_is_found(linear: Linear) -> None:
    found = checks.infidelity(linear.box, linear.x, linear.w / 3, fit_scale=True)
    assert torch.allclose(found.scale, torch.tensor(3.0).double())
    assert found.infidelity.max() < 1e-20
    a, b = (checks.infidelity(linear.box, linear.x, k * noise(4, 3, 6, 5), fit_scale=True) for k in (1, -7))
    assert torch.allclose(a.infidelity, b.infidelity)
    flat = checks.infidelity(linear.box, linear.x, 0 * linear.w, fit_scale=True)
    plain = checks.infidelity(linear.box, linear.x, 0 * linear.w)
    assert torch.equal(flat.infidelity, plain.infidelity)


def test_the_standard_error_shrinks_with_the_root_of_the_samples(linear: Linear) -> None:
    few, many = (checks.infidelity(linear.box, linear.x, 0 * linear.w, n_samples=n) for n in (100, 1600))
    assert torch.allclose(few.standard_error / many.standard_error, torch.tensor(4.0).double(), rtol=0.35)
    assert ((few.infidelity - many.infidelity).abs() < 4 * few.standard_error).all()


def test_the_true_order_is_best_of_all_orders() -> None:
    """On an additive model with positive contributions, deletion is least and insertion most for the true order."""
    model = nn.Linear(5, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    box = ub.Box(model, ub.Features(tuple("abcde")), outputs="regression")
    x = torch.tensor([[0.3, 2.0, 0.7, 1.1, 0.1]], dtype=torch.float64)
    orders = torch.tensor(list(itertools.permutations(range(5))), dtype=torch.float64)  # (120, 5)
    for curve, best in ((checks.deletion, Tensor.argmin), (checks.insertion, Tensor.argmax)):
        auc = curve(box, x.expand(120, -1), orders, 0, score="logit", baseline=0.0).auc
        assert orders[best(auc)].argsort().tolist() == x[0].argsort().tolist()
        assert len(auc.unique()) > 50
    true = checks.deletion(box, x, x, 0, score="logit", baseline=0.0)
    assert torch.allclose(true.curve, torch.tensor([[4.2, 2.2, 1.1, 0.4, 0.1, 0.0]]).double())
    assert torch.allclose(true.auc, torch.tensor([(4.2 / 2 + 2.2 + 1.1 + 0.4 + 0.1) / 5]).double())


def test_ties_favor_no_position() -> None:
    flat = torch.zeros(2000, 30)
    flat[:, 7] = 1
    rank = rank_descending(flat, 0)
    assert (rank[:, 7] == 0).all()
    assert torch.equal(rank.sort(1).values, torch.arange(30).expand(2000, -1))
    others = rank.float().mean(0)[torch.arange(30) != 7]
    assert (others - 15).abs().max() < 1  # a standard error is 0.19
    assert torch.equal(rank_descending(flat, 0), rank)
    assert torch.equal(rank_descending(flat[:9], 0), rank[:9])
    assert not torch.equal(rank_descending(flat, 1), rank)


def test_negative_zero_ties_with_zero() -> None:
    values = torch.zeros(1, 50)
    assert torch.equal(rank_descending(values, 0), rank_descending(values.where(torch.arange(50) % 2 == 0, -values), 0))


def test_magnitudes() -> None:
    c = make_case("plain", torch.float64)
    phi = noise(3, 1, 8, 8)
    assert torch.equal(
        checks.deletion(c.box, c.x, phi, signed=False).curve, checks.deletion(c.box, c.x, phi.abs()).curve
    )
    assert not torch.equal(checks.deletion(c.box, c.x, phi).curve, checks.deletion(c.box, c.x, phi.abs()).curve)


def test_a_constant_map_has_no_correlation(linear: Linear) -> None:
    found = checks.sensitivity_n(linear.box, linear.x, torch.full((4, 1, 6, 5), 0.1), sizes=[3])
    assert found.correlation.isnan().all()
    black = checks.sensitivity_n(linear.box, torch.zeros_like(linear.x), noise(4, 1, 6, 5), sizes=[3])
    assert black.correlation.isnan().all()  # there is nothing to remove


def test_gradients_of_a_linear_model_keep_still(linear: Linear) -> None:
    assert checks.max_sensitivity(linear.box, linear.x, ub.attribution.gradient).max() < 1e-12


def test_max_sensitivity_of_the_input_itself(linear: Linear) -> None:
    seen: list[Tensor] = []

    def same(box: ub.Box, x: Tensor, target: Tensor) -> Any:
        seen.append(target)
        return _Result(x)

    found = checks.max_sensitivity(linear.box, linear.x, same, radius=0.1, n_samples=20)
    most = 0.1 * 90**0.5
    assert (found <= most).all()
    assert (found > most / 2).all()  # a uniform draw is most/sqrt(3) away
    assert all(torch.equal(t, linear.box.predict(linear.x)) for t in seen)
    more = checks.max_sensitivity(linear.box, linear.x, same, radius=0.1, n_samples=40)
    assert (more >= found).all()
    relative = checks.max_sensitivity(linear.box, linear.x, same, radius=0.1, n_samples=20, relative=True)
    assert torch.allclose(relative, found / linear.x.flatten(1).norm(dim=1))


@dataclass(frozen=True)
class _Result:
    map: Tensor


def test_categories_stay_as_they_are() -> None:
    inputs = ub.Features(("a", "kind"), categories={"kind": (0.0, 1.0)}, low=(0, 0), high=(1, 1))
    torch.manual_seed(0)
    box = ub.Box(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), inputs, outputs="logits")
    x = torch.tensor([[0.5, 1.0], [0.2, 0.0]])
    assert checks.max_sensitivity(box, x, ub.attribution.gradient, radius=0.3).min() > 0


def test_imputation_keeps_what_is_linear() -> None:
    """Inside, the weighted mean of eight neighbors is exact on a ramp; a constant image stays one to its border."""
    ramp = torch.arange(9.0)[:, None] * 2 + torch.arange(7.0)[None] + 1
    image, weights = torch.stack([ramp, torch.full((9, 7), 0.25)]).double(), _neighbor_weight_matrix(9, 7)
    inner = torch.zeros(9, 7, dtype=torch.bool)
    inner[2:7, 1:6] = True
    spoiled = image.masked_fill(inner, 99.0)
    assert torch.allclose(_impute_noisy_linear(spoiled, inner.flatten(), weights), image)
    corner = torch.zeros(9, 7, dtype=torch.bool)
    corner[:4, :4] = True
    mended = _impute_noisy_linear(image.masked_fill(corner, 99.0), corner.flatten(), weights)
    assert torch.allclose(mended[1], image[1])
    assert torch.equal(_impute_noisy_linear(image, torch.zeros(63, dtype=torch.bool), weights), image)
    everything = _impute_noisy_linear(image, torch.ones(63, dtype=torch.bool), weights)
    assert torch.allclose(everything, image.mean((1, 2), keepdim=True).expand_as(image))


def test_road_in_the_other_order_is_road_of_the_negative() -> None:
    c = make_case("plain", torch.float64)
    phi = noise(3, 1, 8, 8)
    a, b = checks.road(c.box, c.x, phi, order="lerf"), checks.road(c.box, c.x, -phi)
    assert torch.equal(a.scores, b.scores)
    assert not torch.equal(a.scores, checks.road(c.box, c.x, phi).scores)
    assert (a.removed_fractions - torch.arange(1, 10).double() / 10).abs().max() < 1e-12


def test_road_with_everything_removed() -> None:
    c = make_case("plain", torch.float64)
    a, b = (checks.road(c.box, c.x, phi, c.y, fractions=[1]) for phi in (noise(3, 1, 8, 8), -noise(3, 1, 8, 8)))
    assert torch.equal(a.scores, b.scores)


def test_pointing_at_planted_masks() -> None:
    masks = torch.zeros(4, 10, 12, dtype=torch.bool)
    masks[:, 2:5, 3:7] = True
    phi = torch.zeros(4, 1, 10, 12)
    phi[0, 0, 3, 4], phi[1, 0, 9, 11], phi[2, 0, 2, 9] = 1.0, 1.0, 2.0
    phi[0, 0, 9, 0], phi[1, 0, 3, 3] = 0.25, -5.0
    area = 12 / 120
    assert checks.pointing_game(phi, masks).tolist() == pytest.approx([1, 0, 0, area])
    assert checks.pointing_game(phi, masks, tolerance=3).tolist() == pytest.approx([1, 0, 1, _near(masks[0]) / 120])
    assert checks.pointing_game(_Result(phi), masks[:, None]).tolist() == pytest.approx([1, 0, 0, area])
    inside = checks.energy_inside(phi, masks[0])
    assert inside[:3].tolist() == pytest.approx([0.8, 0, 0])
    assert inside[3].isnan()


def _near(mask: Tensor) -> int:
    at = mask.nonzero().double()
    every = torch.ones_like(mask).nonzero().double()
    return int((torch.cdist(every, at).min(1).values <= 3).sum())


def test_a_trained_model_distinguishes_maps_from_noise() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(6)
    x = x if tuple(x.shape[1:]) == tuple(box.inputs.shape) else x[..., : box.inputs.shape[1], : box.inputs.shape[2]]
    good, control = ub.attribution.gradient(box, x, y) * x, checks.random_maps(box, x)
    assert checks.deletion(box, x, good, y).auc.mean() < 0.7 * checks.deletion(box, x, control, y).auc.mean()
    assert checks.insertion(box, x, good, y).auc.mean() > checks.insertion(box, x, control, y).auc.mean()
    assert checks.sensitivity_n(box, x, good, y, sizes=[8]).mean > 0.4
    morf, lerf = (checks.road(box, x, good, y, fractions=[0.3], order=o).scores.mean() for o in ("morf", "lerf"))
    assert morf < lerf - 0.1


# -- manners ---------------------------------------------------------------------------------------------------------

AWKWARD = [
    "plain", "color", "non_square", "dict_output", "inplace_first_op", "batchnorm_in_train_mode", "dropout_always_on",
    "random_noise_per_row", "batchnorm_on_batch_statistics", "batchnorm_without_statistics", "exported_flat",
    "compiled",
]  # fmt: skip


def maps_for(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).to(x.dtype)


# Each metric on four of the models, each model with two metrics or three.
COVERING = [(name, model) for i, name in enumerate(METRICS) for j, model in enumerate(AWKWARD) if (i + j) % 3 == 0]


@pytest.mark.parametrize(("name", "model"), COVERING)
def test_splitting_and_traces(name: str, model: str) -> None:
    """Parts of any size give the same, and the model, torch and the caller's tensors stay as they were."""
    c = make_case(model, torch.float64)
    phi = maps_for(c.x)
    before = snapshot(c.box.model, c.x, c.y, phi)
    whole = result_tensors(METRICS[name](c.box, c.x, phi))
    assert changes(before, snapshot(c.box.model, c.x, c.y, phi)) == []
    assert all(h.isfinite().all() for h in whole.values() if h.is_floating_point())
    for size in (1, 2) if name != "max_sensitivity" else (1,):
        part = result_tensors(METRICS[name](c.box, c.x, phi, batch_size=size))
        assert result_difference_texts(part, whole, 1e-9) == []


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    c = make_case("plain", dtype)
    with torch.inference_mode():
        found = result_tensors(METRICS[name](c.box, c.x, maps_for(c.x)))
    assert all(h.dtype == c.box.dtype for h in found.values() if h.is_floating_point())


@each
def test_seeds(name: str) -> None:
    c = make_case("plain", torch.float64)
    a, b = (result_tensors(METRICS[name](c.box, c.x, 0 * c.x + 1e-3 * maps_for(c.x).round(), seed=s)) for s in (0, 0))
    assert result_difference_texts(a, b, 0) == []
    other = result_tensors(METRICS[name](c.box, c.x, 0 * c.x + 1e-3 * maps_for(c.x).round(), seed=1))
    assert result_difference_texts(a, other, 1e-6) != []


class Counting(nn.Module):
    """Notes how many rows come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.most = nn.Linear(64, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        return self.fc(x.flatten(1))


@of_maps
def test_memory_is_bounded(name: str) -> None:
    model = Counting()
    box = ub.Box(model, awkward.GRAY_INPUTS, outputs="logits")
    model.most = 0
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    METRICS[name](box, x, maps_for(x), batch_size=4)
    assert model.most == 4


@pytest.mark.parametrize("name", OF_FEATURES)
def test_features(name: str) -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)), ub.Features(tuple("abcdefghi")))
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    found = result_tensors(METRICS[name](box, x, maps_for(x), baseline=1.0))
    assert all(h.isfinite().all() for h in found.values())
    assert checks.random_maps(box, x).shape == x.shape


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.a(image.flatten(1)) * self.b(row).tanh()


@pytest.mark.parametrize("name", [*OF_FEATURES, "max_sensitivity"])
def test_several_inputs(name: str) -> None:
    torch.manual_seed(0)
    inputs = ub.MultiInput({"image": ub.Pixels((1, 4, 4)), "row": ub.Features(("p", "q"))})
    box = ub.Box(Two(), inputs, outputs="logits")
    x = {"image": torch.rand(3, 1, 4, 4), "row": torch.randn(3, 2)}
    phi = {k: maps_for(v) for k, v in x.items()}
    found = result_tensors(METRICS[name](box, x, phi))
    assert all(h.isfinite().all() for h in found.values())
    assert {k: v.shape for k, v in checks.random_maps(box, x).items()} == {k: v.shape for k, v in x.items()}
    if name != "max_sensitivity":
        packed = result_tensors(METRICS[name](box, x, torch.cat([v.flatten(1) for v in phi.values()], 1)))
        assert result_difference_texts(found, packed, 0) == []
        with pytest.raises(InputError, match="a map"):
            METRICS[name](box, x, {"image": phi["image"][:, :, :2], "row": phi["row"]})


@each
def test_any_score(name: str) -> None:
    """A class, one an example, a hidden unit; an objective that couples rows is not split."""
    c = make_case("plain", torch.float64)
    phi = maps_for(c.x)
    METRICS[name](c.box, c.x, phi, 2)
    METRICS[name](c.box, c.x, phi, c.y)
    METRICS[name](c.box, c.x, phi, ub.channel("conv2", 1))
    mean = ub.logit(0) + ub.diversity("conv1")
    assert (
        result_difference_texts(
            result_tensors(METRICS[name](c.box, c.x, phi, mean, batch_size=1)),
            result_tensors(METRICS[name](c.box, c.x, phi, mean)),
            1e-9,
        )
        == []
    )


def test_road_of_an_objective_has_no_accuracy() -> None:
    c = make_case("plain")
    found = checks.road(c.box, c.x, maps_for(c.x), ub.channel("conv2", 1))
    assert found.correct is None
    with pytest.raises(OutputError, match="needs classes"):
        _ = found.accuracy


def test_regression() -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), awkward.GRAY_INPUTS, outputs="regression")
    x = torch.rand(3, 1, 8, 8)
    for metric in (checks.deletion, checks.insertion, checks.road):
        with pytest.raises(OutputError, match='score="logit"'):
            metric(box, x, maps_for(x), 1)
        metric(box, x, maps_for(x), 1, score="logit")
    assert checks.sensitivity_n(box, x, maps_for(x), 1, sizes=[3]).correlation.shape == (3, 1)
    with pytest.raises(OutputError, match="needs classes"):
        _ = checks.road(box, x, maps_for(x), 1, score="logit").accuracy


# -- refusals --------------------------------------------------------------------------------------------------------


@of_maps
@pytest.mark.parametrize("shape", [(3, 1, 8, 7), (2, 1, 8, 8), (3, 2, 8, 8), (3, 64), (8, 8)])
def test_maps_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    c = make_case("color")
    with pytest.raises(InputError, match="wanted maps of shape"):
        METRICS[name](c.box, c.x, torch.zeros(shape))


@of_maps
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_that_are_not_finite(name: str, value: float) -> None:
    c = make_case("plain")
    phi = maps_for(c.x)
    phi[1, 0, 2, 2] = value
    with pytest.raises(InputError, match=r"1 of 3 maps \(first: map 1\)"):
        METRICS[name](c.box, c.x, phi)
    with pytest.raises(InputError, match=r"1 of 3 maps"):
        checks.pointing_game(phi, torch.ones(8, 8, dtype=torch.bool))


REFUSED: dict[str, tuple[Metric, dict[str, Any], str]] = {
    "no map": (lambda b, x, m: checks.deletion(b, x, "gradient"), {}, "wanted a map"),
    "score": (checks.deletion, {"score": "accuracy"}, "score must be"),
    "score of an objective": (checks.deletion, {"target": ub.channel("conv1", 0), "score": "logit"}, "objective is"),
    "class": (checks.deletion, {"target": 9}, "classes 0 to 3"),
    "no step": (checks.deletion, {"n_steps": 0}, "n_steps"),
    "too many steps": (checks.insertion, {"n_steps": 65}, "at most"),
    "baseline": (checks.deletion, {"baseline": "gray"}, "baseline is"),
    "seed": (checks.deletion, {"seed": 0.5}, "seed"),
    "perturbation": (checks.infidelity, {"perturbation": "salt"}, "perturbation must be"),
    "attribution": (checks.infidelity, {"attribution": "both"}, "attribution must be"),
    "shares under noise": (checks.infidelity, {"attribution": "global"}, "perturbation='square'"),
    "all of noise": (checks.infidelity, {"n_samples": None}, "squares"),
    "sigma": (checks.infidelity, {"sigma": 0}, "sigma"),
    "window": (checks.infidelity, {"perturbation": "square", "window": 9}, "at most"),
    "no sample": (checks.infidelity, {"n_samples": 0}, "n_samples"),
    "one sample": (checks.sensitivity_n, {"n_samples": 1}, "n_samples"),
    "no size": (checks.sensitivity_n, {"sizes": []}, "sizes must be"),
    "size 0": (checks.sensitivity_n, {"sizes": [0]}, "a size"),
    "size of all": (checks.sensitivity_n, {"sizes": [64]}, "sizes must be"),
    "fraction 0": (checks.road, {"fractions": [0.0, 0.5]}, "a fraction"),
    "fraction above 1": (checks.road, {"fractions": [0.5, 1.5]}, "a fraction must be a number above 0 and 1 or less"),
    "percentages": (checks.road, {"fractions": [10, 20]}, "a fraction must be a number above 0 and 1 or less"),
    "one fraction": (checks.road, {"fractions": 0.5}, "a list of numbers"),
    "no fraction": (checks.road, {"fractions": []}, "a list of numbers"),
    "order": (checks.road, {"order": "most"}, "order must be"),
    "noise": (checks.road, {"noise": -1}, "noise"),
    "radius": (moves, {"radius": 0}, "radius"),
    "no method": (lambda b, x, m: checks.max_sensitivity(b, x, m), {}, "callable as"),
    "another map": (
        lambda b, x, m: checks.max_sensitivity(b, x, lambda box, z, t: z[:, 0]), {}, "wanted maps of shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    metric, settings, said = REFUSED[what]
    c = make_case("plain")
    with pytest.raises(InputError, match=said):
        metric(c.box, c.x, maps_for(c.x), **settings)


def test_local_maps_have_a_value_for_each_number() -> None:
    c = make_case("color")
    one = maps_for(c.x)[:, :1]
    with pytest.raises(InputError, match="a value for each value"):
        checks.infidelity(c.box, c.x, one)
    assert checks.infidelity(c.box, c.x, one, perturbation="square").infidelity.shape == (3,)


def test_images_only() -> None:
    box = ub.Box(nn.Linear(4, 3), ub.Features(tuple("abcd")))
    x = torch.randn(2, 4)
    with pytest.raises(InputError, match="images"):
        checks.road(box, x, x)
    with pytest.raises(InputError, match="images"):
        checks.infidelity(box, x, x, perturbation="square")


BAD_MASKS: dict[str, tuple[Any, str]] = {
    "size": (torch.ones(2, 8, 7, dtype=torch.bool), "wanted masks"),
    "number": (torch.ones(3, 8, 8, dtype=torch.bool), "wanted masks"),
    "whole numbers": (torch.ones(2, 8, 8), "bool"),
    "no tensor": ([[True]], "bool"),
    "empty": (torch.arange(128).view(2, 8, 8) < 64, "1 of 2 masks are empty"),
}


@pytest.mark.parametrize("what", BAD_MASKS)
@pytest.mark.parametrize("metric", [checks.pointing_game, checks.energy_inside])
def test_bad_masks(metric: Metric, what: str) -> None:
    masks, said = BAD_MASKS[what]
    with pytest.raises(InputError, match=said):
        metric(torch.randn(2, 1, 8, 8), masks)
    with pytest.raises(InputError, match="wanted maps"):
        metric(torch.randn(2, 8), torch.ones(8, 8, dtype=torch.bool))


def test_a_tolerance_below_zero() -> None:
    with pytest.raises(InputError, match="tolerance"):
        checks.pointing_game(torch.randn(2, 1, 8, 8), torch.ones(8, 8, dtype=torch.bool), tolerance=-1)
