"""The verdict's constants, each on both sides, and its figures against their definitions written out."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import gradient
from unboxed.checks.controls import ConstantModel
from unboxed.checks.deletion import PerturbationCurve, deletion
from unboxed.checks.perturbing import random_maps
from unboxed.checks.similarity import MapSimilarity
from unboxed.checks.verdict import grade_figures, verdict

judging = sys.modules["unboxed.checks.verdict"]  # the package's `verdict` is the function
GOOD = {"signed": 0.0, "absolute": 0.0, "ssim": 0.0, "hog": 0.0, "deletion": 0.2, "deletion_random": 0.5,
        "constant_maps": 0.0, "constant_model": 0.0}  # fmt: skip


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


# ---- from figures to a grade ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "grade", "reason"),
    [
        ({}, "pass", "depends on the model; marks what matters"),
        ({"constant_maps": 0.5}, "pass", "depends on the model; marks what matters"),
        ({"constant_maps": above(0.5)}, "fail", "constant map"),
        ({"deletion": 0.5}, "fail", "no better than random"),
        ({"deletion": below(0.5)}, "inconclusive", "little better than random"),
        ({"deletion": 0.45}, "pass", "depends on the model; marks what matters"),
        ({"deletion": above(0.45)}, "inconclusive", "little better than random"),
        ({"signed": 0.6}, "fail", "same map for random weights"),
        ({"signed": below(0.6)}, "inconclusive", "similar map for random weights"),
        ({"signed": 0.45}, "inconclusive", "similar map for random weights"),
        ({"signed": below(0.45)}, "pass", "depends on the model; marks what matters"),
        ({"signed": -1.0}, "pass", "depends on the model; marks what matters"),
        ({"ssim": 0.45}, "inconclusive", "positions follow the input"),
        ({"ssim": below(0.45)}, "pass", "depends on the model; marks what matters"),
        ({"constant_model": above(0.3)}, "fail", "map for a constant model"),
        ({"constant_model": 0.3}, "inconclusive", "weak map for a constant model"),
        ({"constant_model": above(0.01)}, "inconclusive", "weak map for a constant model"),
        ({"constant_model": 0.01}, "pass", "depends on the model; marks what matters"),
        ({"signed": math.nan}, "inconclusive", "not randomized"),
        ({"deletion": math.nan, "deletion_random": math.nan}, "inconclusive", "depends on the model; no deletion test"),
        ({"ssim": math.nan, "constant_model": math.nan}, "pass", "depends on the model; marks what matters"),
    ],
)
def test_each_threshold_on_both_sides(changed: dict[str, float], grade: str, reason: str) -> None:
    assert grade_figures({**GOOD, **changed})[:2] == (grade, reason)


WORST_FIRST = [
    ({"constant_maps": 1.0}, "constant map"),
    ({"deletion": 0.6}, "no better than random"),
    ({"signed": math.nan}, "not randomized"),
    ({"signed": 0.7}, "same map for random weights"),
    ({"constant_model": 0.9}, "map for a constant model"),
    ({"deletion": 0.46}, "little better than random"),
    ({"signed": 0.5}, "similar map for random weights"),
    ({"ssim": 0.9}, "positions follow the input"),
    ({"constant_model": 0.02}, "weak map for a constant model"),
]


@pytest.mark.parametrize("first", range(len(WORST_FIRST)))
def test_of_several_reasons_the_most_serious_is_given(first: int) -> None:
    """A later reason in the list never hides an earlier one (where both can hold at once)."""
    (changed, reason), figures = WORST_FIRST[first], dict(GOOD)
    for other, _ in WORST_FIRST[first + 1 :]:
        figures |= other
    assert grade_figures({**figures, **changed})[1] == reason


# ---- deletion --------------------------------------------------------------------------------------------------------


@dataclass
class Planned:
    """Stands in for `deletion`: curves by baseline and order, as a test wants them; notes how it was asked."""

    random: dict[Any, float]  # {cover: the area under the curve of each random order}
    signed: float = 0.3  # area under the curve of the map's order, by its signs
    magnitude: float = 0.3
    start: float = 1.0
    end: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    orders: list[Tensor] = field(default_factory=list)

    def __call__(
        self, box: Any, x: Tensor, parts: Tensor, *, signed: bool | None = None, **kwargs: Any
    ) -> PerturbationCurve:
        self.asked.append({**kwargs, "signed": signed})
        self.orders.append(parts)
        chance = self.random[kwargs["baseline"]]
        area = chance if signed is None else self.signed if signed else self.magnitude
        middle = 2 * area - (self.start + self.end) / 2  # trapezoids over 0, 1/2, 1
        curve = torch.tensor([[self.start, middle, self.end]], dtype=torch.float64).expand(len(x), 3)
        return PerturbationCurve(torch.tensor([0, 0.5, 1], dtype=torch.float64), curve)

    @property
    def baselines(self) -> list[Any]:
        return [asked["baseline"] for asked in self.asked]


def deletion_figures(planned: Planned, monkeypatch: pytest.MonkeyPatch, **box: Any) -> dict[str, float]:
    monkeypatch.setattr(judging, "deletion", planned)
    opened = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), ub.Pixels((1, 8, 8)), **box)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return judging._deletion_figures(opened, x, x - 0.5, torch.tensor([0, 1]), 7, "auto")


def test_black_is_the_baseline_unless_it_leaves_a_quarter_or_less(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = Planned({"black": 0.25 + 1e-9, "blurred": 0.8})
    assert deletion_figures(enough, monkeypatch)["deletion_random"] == pytest.approx(0.25)
    assert set(enough.baselines) == {"black"}
    little = Planned({"black": 0.25, "blurred": 0.8})
    assert deletion_figures(little, monkeypatch)["deletion_random"] == pytest.approx(0.8)
    assert little.baselines == ["black"] * 2 + ["blurred"] * 4  # the map is judged with the chosen baseline


def test_less_than_a_tenth_of_the_score_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_nan(**planned: Any) -> bool:
        found = deletion_figures(Planned(**planned), monkeypatch)
        assert math.isnan(found["deletion"]) == math.isnan(found["deletion_random"])
        return math.isnan(found["deletion"])

    chance = {"black": 0.05, "blurred": 0.5}
    assert not is_nan(random=chance, start=0.1)
    assert is_nan(random=chance, start=0.1 - 1e-9)
    assert not is_nan(random={"black": 0.1, "blurred": 0.1 + 1e-9})
    assert is_nan(random={"black": 0.1, "blurred": 0.1 - 1e-9})


def test_the_better_of_signed_and_magnitude_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = {"black": 0.5}
    for signed, magnitude in ((0.2, 0.4), (0.4, 0.2)):
        planned = Planned(chance, signed=signed, magnitude=magnitude)
        assert deletion_figures(planned, monkeypatch)["deletion"] == pytest.approx(0.2)
        assert [asked["signed"] for asked in planned.asked] == [None, None, True, False]


def test_random_orders_are_two_and_a_step_is_a_twentieth(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = Planned({"black": 0.5})
    deletion_figures(planned, monkeypatch)
    assert {asked["n_steps"] for asked in planned.asked} == {20}
    first, second = planned.orders[:2]
    assert not torch.equal(first, second)
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).eval(), ub.Pixels((1, 3, 3)))
    few = Planned({"black": 0.5})
    monkeypatch.setattr(judging, "deletion", few)
    judging._deletion_figures(box, torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3), torch.tensor([0]), 0, "auto")
    assert {asked["n_steps"] for asked in few.asked} == {9}  # at most a pixel each


def test_figures_are_fractions_of_what_can_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probability counts from zero; a regression's answer from where it ends when all is removed."""
    planned = Planned({"black": 0.6}, signed=0.5, magnitude=0.5, start=0.8, end=0.4)
    assert deletion_figures(planned, monkeypatch) == pytest.approx(
        {"deletion": 0.5 / 0.8, "deletion_random": 0.6 / 0.8}
    )
    assert deletion_figures(planned, monkeypatch, outputs="regression") == pytest.approx(
        {"deletion": 0.25, "deletion_random": 0.5}
    )


def linear_model_with_contributions() -> tuple[ub.Box, Tensor, Tensor]:
    """A model that adds up its pixels by weights of both signs; the true shares of the score, at each pixel."""
    draw = torch.Generator().manual_seed(0)
    w, x = torch.randn(1, 1, 8, 8, generator=draw), torch.rand(2, 1, 8, 8, generator=draw)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([0.3 * w.flatten(), torch.zeros(64)]))
    return ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits"), x, w * x


@pytest.mark.parametrize("read", [lambda share: share, lambda share: -share.clamp_min(0)], ids=["signs", "strengths"])
def test_a_map_is_ranked_by_sign_or_by_magnitude_whichever_is_better(read: Any) -> None:
    """Shares with their signs are right by sign alone; minus the helpful pixels' strength by magnitude alone."""
    box, x, share = linear_model_with_contributions()
    map_, target = read(share), torch.tensor([0, 0])
    found = judging._deletion_figures(box, x, map_, target, 3, "auto")

    def area(order: Tensor, signed: bool = True) -> float:
        return float(deletion(box, x, order, target, n_steps=20, baseline="black", seed=3, signed=signed).auc.mean())

    first = float(box(x).softmax(1)[:, 0].mean())
    by_sign, by_size = area(map_), area(map_, signed=False)
    chance = sum(area(random_maps(box, x, seed=3 + i)) for i in range(2)) / 2
    assert min(by_sign, by_size) < 0.95 * max(by_sign, by_size)
    assert found["deletion"] == pytest.approx(min(by_sign, by_size) / first, rel=1e-5)
    assert found["deletion_random"] == pytest.approx(chance / first, rel=1e-5)


@pytest.mark.parametrize(("shorter", "side"), [(8, 1), (20, 1), (22, 2), (28, 2), (34, 2), (36, 3), (224, 16)])
def test_maps_are_averaged_over_squares_of_a_fourteenth(shorter: int, side: int) -> None:
    h = torch.randn(2, 3, shorter, shorter + 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = judging._average_over_squares(h)
    grid = shorter // side, (shorter + 8) // side
    values = F.adaptive_avg_pool2d(h.sum(1, keepdim=True), grid)
    assert parts.shape == (2, 1, shorter, shorter + 8)
    for part, value in zip(parts, values, strict=True):
        assert set(part.flatten().tolist()) == set(value.flatten().tolist())
    assert len(parts[0].unique()) == grid[0] * grid[1]


def test_columns_of_a_table_are_removed_one_by_one() -> None:
    h = torch.randn(2, 5)
    assert judging._average_over_squares(h) is h


# ---- constant models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constant_input", "constant_output", "figure"),
    [(0.02, 0.7, 0.7), (0.7, 0.02, 0.7), (0.4, math.nan, 0.4), (math.inf, 0.1, 0.1), (math.nan, math.nan, math.nan)],
)
def test_the_stronger_of_both_constant_models_counts(
    constant_input: float, constant_output: float, figure: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method with a map for only one of them is not excused by the other."""
    map_ = torch.rand(1, 1, 2, 2)
    made = ConstantModel(torch.tensor([constant_input]), torch.tensor([constant_output]), map_, map_)
    monkeypatch.setattr(judging, "constant_model", lambda *args, **kwargs: made)
    found = judging._constant_model_spread(deep(1), torch.rand(2, 1, 2, 2), gradient, torch.tensor([0, 1]), map_)
    assert found == pytest.approx(figure, nan_ok=True)


# ---- randomization ---------------------------------------------------------------------------------------------------


def deep(layers: int) -> ub.Box:
    torch.manual_seed(0)
    steps = [nn.Flatten(), *(nn.Linear(4, 4) for _ in range(layers))]
    return ub.Box(nn.Sequential(*steps).eval(), ub.Pixels((1, 2, 2)), outputs="logits")


@pytest.mark.parametrize(("n", "copies"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_four_pairs_of_image_and_randomization_at_least(n: int, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    drawn = judging._randomize_upper_half
    monkeypatch.setattr(judging, "_randomize_upper_half", lambda box, k, seed: asked.append(k) or drawn(box, k, seed))
    verdict(deep(2), torch.rand(n, 1, 2, 2), gradient)
    assert asked == [copies]


@pytest.mark.parametrize(("layers", "replaced"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_upper_half_of_the_layers_is_randomized(layers: int, replaced: int) -> None:
    box = deep(layers)
    old = [m.weight for m in box.model if isinstance(m, nn.Linear)]
    found = judging._randomize_upper_half(box, 2, 0)
    assert len(found) == 2
    for other in found:
        new = [m.weight for m in other.model if isinstance(m, nn.Linear)]
        same = [torch.equal(a, b) for a, b in zip(old, new, strict=True)]
        assert same == [True] * (layers - replaced) + [False] * replaced
    assert not torch.equal(found[0].model[layers].weight, found[1].model[layers].weight)  # a draw each


def test_figures_are_means_over_images_and_randomizations() -> None:
    nan = math.nan
    pairs = [
        MapSimilarity(*(torch.tensor(v) for v in ([0.2, nan], [0.1, 0.3], [nan, nan], [0.0, 1.0]))),
        MapSimilarity(*(torch.tensor(v) for v in ([0.4, 0.9], [0.5, 0.7], [0.6, nan], [1.0, 1.0]))),
    ]
    assert judging._mean_similarities(pairs) == pytest.approx(
        {"signed": 0.5, "absolute": 0.4, "ssim": 0.6, "hog": 0.75}
    )
    assert all(math.isnan(v) for v in judging._mean_similarities([]).values())
