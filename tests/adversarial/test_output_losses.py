"""Attacks on numbers, several labels and label maps without an objective: the loss is raised as far as it goes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.adversarial import Adversarial, apgd, bim, fgsm, mi_fgsm, pgd
from unboxed.errors import InputError, OutputError, UnboxedWarning

ATTACKS: dict[str, Callable[..., Adversarial]] = {
    "fgsm": fgsm,
    "bim": bim,
    "pgd": pgd,
    "mi_fgsm": mi_fgsm,
    "apgd": apgd,
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
PIXELS = ub.Pixels((1, 4, 4))


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(n_outputs: int, seed: int = 1) -> nn.Linear:
    layer = nn.Linear(16, n_outputs).double()
    with torch.no_grad():
        layer.weight.copy_(2 * draws(n_outputs, 16, seed=seed) - 1)
        layer.bias.copy_(draws(n_outputs, seed=seed + 1))
    return layer


def regression(model: nn.Module) -> ub.Box:
    return ub.Box(nn.Sequential(nn.Flatten(), model).double(), PIXELS, outputs="regression")


# ---- numbers ---------------------------------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("side", [-100.0, 100.0])
def test_the_error_from_y_is_the_largest_of_a_linear_model(attack: Callable[..., Adversarial], side: float) -> None:
    """Away from y, each pixel is at the end of its range that the weight's sign says."""
    model, x, eps = linear(1), draws(5, 1, 4, 4), 0.3
    box, w = regression(model), model.weight.detach()[0]
    y = torch.full((5,), side, dtype=torch.float64)
    result = attack(box, x, y, eps=eps)
    direction = w.sign() * (-1 if side > 0 else 1)  # down from a large y, up from a small one
    corner = (x.flatten(1) + eps * direction).clamp(0, 1)
    assert result.loss_after is not None
    assert result.loss_before is not None
    assert torch.allclose(result.loss_after, (corner @ w + model.bias[0] - side).abs(), atol=1e-9)
    assert torch.allclose(result.loss_before, (x.flatten(1) @ w + model.bias[0] - side).abs(), atol=1e-9)
    assert result.success.all()
    assert not result.initially_misclassified.any()
    assert "5 of 5 with a larger loss, mean loss" in repr(result)


@every_attack
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_without_y_the_output_moves_by_eps_times_the_dual_norm(
    attack: Callable[..., Adversarial], norm: str, dual: int
) -> None:
    model, x, eps = linear(1), 0.5 + 0.1 * draws(4, 1, 4, 4), 0.05
    result = attack(regression(model), x, eps=eps, norm=norm)
    assert result.output_change is not None
    assert result.loss_before is not None
    expected = torch.full((4,), eps * float(model.weight.detach().norm(dual)), dtype=torch.float64)
    assert torch.allclose(result.output_change[:, 0].abs(), expected, rtol=2e-2)  # steps of PGD turn slowly
    assert torch.equal(result.loss_before, torch.zeros(4, dtype=torch.float64))
    assert (result.distance <= eps * (1 + 1e-6)).all()


@pytest.mark.parametrize("attack", [fgsm, bim, pgd, mi_fgsm], ids=["fgsm", "bim", "pgd", "mi_fgsm"])
@pytest.mark.parametrize("offset", [None, 0.0, 1e-3, -1e-3, 0.02, -0.02])
def test_both_sides_of_the_right_number_are_tried(attack: Callable[..., Adversarial], offset: float | None) -> None:
    """Clipping to [0, 1] leaves more room on one side: the larger of the errors of both corners is found."""
    model, x, eps = linear(1), draws(40, 1, 4, 4), 0.2
    w, b = model.weight.detach()[0], model.bias.detach()[0]
    outputs = x.flatten(1) @ w + b
    y = outputs if offset is None else outputs + offset
    corners = torch.stack([(x.flatten(1) + eps * s * w.sign()).clamp(0, 1) @ w + b for s in (1, -1)])
    farthest = (corners - y).abs().amax(0)
    result = attack(regression(model), x, *([] if offset is None else [y]), eps=eps)
    assert result.loss_after is not None
    assert torch.allclose(result.loss_after, farthest, atol=1e-9)


def test_several_outputs_move_along_the_largest_singular_value() -> None:
    """In L2 the root mean square of W d is largest along the first right singular vector."""
    model, x, eps = linear(3), torch.full((4, 1, 4, 4), 0.5, dtype=torch.float64), 0.05
    result = pgd(regression(model), x, eps=eps, norm="l2", step=eps, steps=200)
    assert result.loss_after is not None
    largest = eps * float(torch.linalg.svdvals(model.weight.detach())[0]) / 3**0.5
    assert torch.allclose(result.loss_after, torch.full((4,), largest, dtype=torch.float64), rtol=1e-3)


class Opposites(nn.Module):
    """A number times each factor: the mean of opposite outputs is constant."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.linear = linear(1)
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) * self.factors


@every_attack
@pytest.mark.parametrize("factors", [(1.0, -1.0), (1.0, -2.0, 1.0), (1.0, 1.0, -1.0, -1.0)])
def test_without_y_outputs_of_a_constant_mean_are_moved(
    attack: Callable[..., Adversarial], factors: tuple[float, ...]
) -> None:
    """The first step, at an error of zero, does not need outputs that rise together."""
    model, x, eps = Opposites(*factors), 0.5 + 0.1 * draws(3, 1, 4, 4), 0.05
    result = attack(ub.Box(model.double(), PIXELS, outputs="regression"), x, eps=eps)
    rms = float(model.factors.detach().square().mean().sqrt())
    expected = torch.full((3,), eps * rms * float(model.linear.weight.detach().norm(1)), dtype=torch.float64)
    assert result.loss_after is not None
    assert torch.allclose(result.loss_after, expected, rtol=1e-9)


@every_attack
@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_the_squares_of_large_and_small_errors_do_not_overflow(
    attack: Callable[..., Adversarial], scale: float
) -> None:
    model = Opposites(scale, scale / 2)
    box = ub.Box(model.float(), PIXELS, outputs="regression")
    x = (0.5 + 0.1 * draws(3, 1, 4, 4)).float()
    result = attack(box, x, torch.zeros(3, 2), eps=0.05)
    before, after = (box(h).double().square().mean(1).sqrt() for h in (x, result.images))
    assert result.loss_before is not None
    assert result.loss_after is not None
    assert torch.allclose(result.loss_before.double() / scale, before / scale, rtol=1e-3)
    assert torch.allclose(result.loss_after.double() / scale, after / scale, rtol=1e-3)
    assert (result.loss_after > result.loss_before).all()


def test_a_first_gradient_of_zero_is_warned_of_with_what_helps() -> None:
    box = ub.Box(Opposites(0.0).double(), PIXELS, outputs="regression")
    with pytest.warns(UnboxedWarning, match="take no step there; pgd and apgd start at a random point"):
        bim(box, draws(2, 1, 4, 4), eps=0.1)


class Wave(nn.Module):
    """One number with many local maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(20.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x.flatten(1)).sin().sum(1, keepdim=True)


@pytest.mark.parametrize("attack", [pgd, apgd, fgsm])
def test_the_error_is_never_less_than_before(attack: Callable[..., Adversarial]) -> None:
    """Where a step leads to a smaller error, the original is returned."""
    box, x = ub.Box(Wave(), PIXELS, outputs="regression"), draws(40, 1, 4, 4)
    settings: dict[str, Any] = {} if attack is fgsm else {"steps": 2}
    y = torch.full((40,), 30.0, dtype=torch.float64)
    result = attack(box, x, y, eps=0.3, **settings)
    assert result.loss_after is not None
    assert result.loss_before is not None
    assert (result.loss_after >= result.loss_before).all()
    assert torch.equal(result.success, result.loss_after > result.loss_before)
    unchanged = (result.images == x).flatten(1).all(1)
    assert torch.equal(unchanged, ~result.success)
    if attack is fgsm:
        assert unchanged.any()  # one long step overshoots for some


def test_more_steps_of_one_length_never_find_less() -> None:
    box, x = ub.Box(Wave(), PIXELS, outputs="regression"), draws(20, 1, 4, 4)
    found = [pgd(box, x, eps=0.2, step=0.03, steps=steps).loss_after for steps in (1, 2, 4, 8, 16, 32)]
    for fewer, more in pairwise(found):
        assert fewer is not None
        assert more is not None
        assert (more >= fewer - 1e-12).all()
    restarted = pgd(box, x, eps=0.2, step=0.03, steps=32, restarts=3).loss_after
    assert restarted is not None
    assert (restarted >= found[-1] - 1e-12).all()
    assert (restarted > found[-1] + 1e-3).any()


def test_outputs_are_those_of_the_images_that_are_returned() -> None:
    box, x = ub.Box(Wave(), PIXELS, outputs="regression"), draws(6, 1, 4, 4)
    for bits in (None, 8):
        result = pgd(box, x, eps=0.1, bits=bits)
        assert result.output_before is not None
        assert result.output_after is not None
        assert torch.equal(result.output_after, box(result.images))
        assert torch.equal(result.output_before, box(x))
        assert result.loss_after is not None
        assert torch.allclose(result.loss_after, (box(result.images) - box(x))[:, 0].abs(), atol=1e-9)


def test_columns_of_a_table_move_in_standard_deviations() -> None:
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -2.0]]))
    columns = ub.Features(("age", "wage"), std=torch.tensor([10.0, 1000.0]))
    box = ub.Box(model, columns, outputs="regression")
    x = torch.tensor([[40.0, 3000.0], [20.0, 1000.0]], dtype=torch.float64)
    result = pgd(box, x, eps=0.5)
    assert result.output_change is not None
    raw_weight = model.weight.detach()[0] / torch.tensor([10.0, 1000.0])  # the box divides by the std
    moved = (result.images - x) @ raw_weight.to(x)
    assert torch.allclose(moved, result.output_change[:, 0], atol=1e-9)
    assert torch.allclose(result.output_change[:, 0].abs(), torch.full((2,), 0.5 * 5.0, dtype=torch.float64))


def test_data_with_numbers_are_read() -> None:
    box, x = regression(linear(1)), draws(3, 1, 4, 4).float()
    data = [(image, 7.5) for image in x]
    by_data, by_tensors = pgd(box, data, eps=0.1), pgd(box, x, torch.full((3, 1), 7.5), eps=0.1)
    assert torch.equal(by_data.images, by_tensors.images)
    assert torch.equal(by_data.images, pgd(box, x, 7.5, eps=0.1).images)


# ---- labels and maps -------------------------------------------------------------------------------------------------


@every_attack
def test_labels_of_separate_pixels_fall_one_by_one(attack: Callable[..., Adversarial]) -> None:
    """Label k reads pixel k alone: it goes down where the label is on, up where it is off."""
    weight = torch.diag(torch.tensor([4.0, -3.0, 2.0] + [0.0] * 13, dtype=torch.float64))[:3]
    model = nn.Linear(16, 3).double()
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    box = ub.Box(nn.Sequential(nn.Flatten(), model), PIXELS, outputs="multilabel")
    x, y, eps = 0.4 + 0.2 * draws(4, 1, 4, 4), (draws(4, 3, seed=3) > 0.5).double(), 0.1
    result = attack(box, x, y, eps=eps)
    sign = (1 - 2 * y) * torch.tensor([1.0, -1.0, 1.0])
    z = (x.flatten(1)[:, :3] + eps * sign) * weight.diagonal()
    expected = torch.stack([-(y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z))[i].mean() for i in range(4)])
    assert result.loss_after is not None
    assert torch.allclose(result.loss_after, expected, atol=1e-9)


@every_attack
def test_each_position_of_a_map_goes_to_the_other_class(attack: Callable[..., Adversarial]) -> None:
    """A 1x1 convolution with two classes: each pixel moves away from its own class; unlabeled ones do not count."""
    model = nn.Conv2d(1, 2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1))
        model.bias.zero_()
    box = ub.Box(model, PIXELS)
    x, eps = 0.4 + 0.2 * draws(3, 1, 4, 4), 0.1
    y = (draws(3, 4, 4, seed=4) > 0.5).long()
    y[:, 0] = 255  # without a class, as in Pascal VOC
    result = attack(box, x, y, eps=eps)
    counted = y != 255
    z = 6 * (x[:, 0] + eps * torch.where(y == 1, -1.0, 1.0))  # logit 1 - logit 0
    losses = torch.where(y == 1, -F.logsigmoid(z), -F.logsigmoid(-z))
    expected = torch.stack([losses[i][counted[i]].mean() for i in range(3)])
    assert result.loss_after is not None
    assert torch.allclose(result.loss_after, expected, atol=1e-9)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_minimal_attacks_need_an_objective() -> None:
    box, x = regression(linear(1)), draws(2, 1, 4, 4)
    for attack in (ub.adversarial.deepfool, ub.adversarial.carlini_wagner, ub.adversarial.fmn, ub.adversarial.ddn):
        with pytest.raises(OutputError, match="objective="):
            attack(box, x, torch.zeros(2))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3), r"the correct numbers of shape \(2, 1\); got shape \(3,\)"),
        (torch.tensor([[0.0], [float("nan")]]), "the value of example 1 is NaN"),
        ("seven", "as numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused(y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pgd(regression(linear(1)), draws(2, 1, 4, 4), y, eps=0.1)


def test_labels_of_another_form_are_refused() -> None:
    x = draws(2, 1, 4, 4)
    labels = ub.Box(nn.Sequential(nn.Flatten(), linear(3)), PIXELS, outputs="multilabel")
    with pytest.raises(InputError, match=r"a 0 or a 1 for each label of shape \(2, 3\)"):
        pgd(labels, x, torch.tensor([0, 1]), eps=0.1)
    with pytest.raises(InputError, match="from 0 to 2"):
        pgd(labels, x, torch.tensor([[0, 1, 2], [0, 0, 0]]), eps=0.1)
    with pytest.raises(InputError, match="needs y, a 0 or a 1 for each label"):
        pgd(labels, x, eps=0.1)
    label_map = ub.Box(nn.Conv2d(1, 3, 1).double(), PIXELS)
    with pytest.raises(InputError, match=r"one class for each position of shape \(2, 4, 4\)"):
        pgd(label_map, x, torch.tensor([0, 1]), eps=0.1)
    with pytest.raises(InputError, match="example 1 has no position with a class"):
        pgd(label_map, x, torch.stack([torch.zeros(4, 4), torch.full((4, 4), 255.0)]).long(), eps=0.1)
    with pytest.raises(InputError, match="leave loss= out"):
        pgd(regression(linear(1)), x, eps=0.1, loss="margin")
