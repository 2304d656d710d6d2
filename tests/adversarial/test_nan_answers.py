"""A model that gives NaN is refused wherever its answers are judged; masked classes, of logit -inf, are not NaN."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed import adversarial, robustness
from unboxed.adversarial.predictions import top_other_classes
from unboxed.errors import NaNError, OutputError
from unboxed.objectives import dlr, targeted_dlr
from unboxed.robustness.gradient_masking import check_gradient_masking

PIXELS = ub.Pixels((1, 6, 6))
BOUNDED = {"eps": 0.3}
ATTACKS = {
    "fgsm": (adversarial.fgsm, BOUNDED),
    "bim": (adversarial.bim, BOUNDED),
    "mi_fgsm": (adversarial.mi_fgsm, BOUNDED),
    "pgd": (adversarial.pgd, {**BOUNDED, "steps": 5}),
    "pgd, from the input": (adversarial.pgd, {**BOUNDED, "steps": 5, "random_start": False}),
    "apgd": (adversarial.apgd, {**BOUNDED, "steps": 5}),
    "square": (adversarial.square, {**BOUNDED, "queries": 5}),
    "auto_attack": (adversarial.auto_attack, {**BOUNDED, "steps": 3, "queries": 3}),
    "fab": (adversarial.fab, {"steps": 5}),
    "deepfool": (adversarial.deepfool, {"steps": 5}),
    "carlini_wagner": (adversarial.carlini_wagner, {"steps": 5}),
    "lbfgs": (adversarial.lbfgs, {"steps": 5}),
    "boundary": (adversarial.boundary, {"queries": 20}),
    "hop_skip_jump": (adversarial.hop_skip_jump, {"queries": 40}),
}


class Overflowing(nn.Module):
    """NaN where the input's mean is above `limit`: at once for 0, on the way of an attack for .6."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.limit, self.linear = limit, nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1, keepdim=True) > self.limit
        return self.linear(x.flatten(1)).where(~over, torch.nan)


def box_of(limit: float) -> ub.Box:
    return ub.Box(Overflowing(limit), PIXELS, outputs="logits")


def images(n: int = 6) -> Tensor:
    return 0.5 + 0.2 * (torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1)) - 0.5)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore:the first gradient is exactly zero")
def test_an_attack_refuses_a_model_that_gives_nan(name: str) -> None:
    attack, settings = ATTACKS[name]
    y = torch.zeros(6, dtype=torch.long)  # what argmax makes of NaN
    with pytest.raises(OutputError, match=r"gives NaN for the input of rows 0, 1, 2, 3, 4, \.\.\."):
        attack(box_of(-1.0), images(), y, **settings)
    with pytest.raises(OutputError, match=r"gives NaN for the input of row 2:"):
        attack(box_of(0.6), images().index_fill(0, torch.tensor([2]), 0.7), y, **settings)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "bim"])
@pytest.mark.filterwarnings("ignore:the first gradient is exactly zero")
def test_nan_during_an_attack_is_not_robustness(name: str) -> None:
    box = box_of(0.56)
    with torch.no_grad():  # class 0 falls as the image grows brighter, but not far enough to be left
        box.model.linear.weight.copy_(torch.tensor([[-1.0], [0.0], [0.0]]).expand(3, 36))
        box.model.linear.bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
    x = images().clamp_max(0.5)
    x[:4] = 0  # those stay clear of it
    with pytest.raises(OutputError, match="rows 4, 5"):
        ATTACKS[name][0](box, x, torch.zeros(6, dtype=torch.long), eps=0.3)


@pytest.mark.filterwarnings("ignore:the first gradient is exactly zero")
def test_robustness_names_the_row_in_the_data() -> None:
    box = box_of(0.56)
    with torch.no_grad():
        box.model.linear.weight.copy_(torch.tensor([[-1.0], [0.0], [0.0]]).expand(3, 36))
        box.model.linear.bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
    x, y = images().clamp_max(0.5), torch.zeros(6, dtype=torch.long)
    x[1:5], y[0] = 0, 1  # row 0 is wrong already, so the attack's first row is the data's second
    with pytest.raises(OutputError, match="row 5:"):
        robustness.evaluate(
            box, (x, y), {"fgsm": adversarial.fgsm}, eps=[0.3], minimal_attack=None, check_masking=False
        )


def test_probabilities_of_nan_are_refused_as_predictions_are() -> None:
    x = images().index_fill(0, torch.tensor([2]), 0.7)
    for ask in (ub.Box.predict, ub.Box.probs):
        with pytest.raises(NaNError, match="gives NaN for the input of row 2"):
            ask(box_of(0.6), x)
    assert ub.Box.probs(box_of(0.6), images()).isfinite().all()


EVALUATIONS = {
    "robustness": lambda box, x, y: robustness.evaluate(box, (x, y), eps=[0.1]),
    "calibration": lambda box, x, y: robustness.calibration(box, (x, y)),
    "corruptions": lambda box, x, y: robustness.corruptions(box, (x, y), ("contrast",)),
    "smoothed": lambda box, x, y: robustness.smoothed(box, x, 0.1, n0=4, n=8),
    "smoothed_predict": lambda box, x, y: robustness.smoothed_predict(box, x, 0.1, n=8),
    "alarms": lambda box, x, y: check_gradient_masking(box, x, y, y == 0, 0.1),
    "patch": lambda box, x, y: adversarial.patch(box, x, y, steps=2),
    "universal": lambda box, x, y: adversarial.universal(box, x, y, eps=0.1, steps=2),
}


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.filterwarnings("ignore:the first gradient is exactly zero")
def test_an_evaluation_refuses_a_model_that_gives_nan(name: str) -> None:
    with pytest.raises(OutputError, match="gives NaN"):
        EVALUATIONS[name](box_of(-1.0), images(), torch.zeros(6, dtype=torch.long))


# -- classes that are masked -------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Class 2 of 4 is never given."""

    def __init__(self, value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, value, 0.0]))
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().flatten(1)) + self.mask


@pytest.mark.parametrize(
    "attack",
    [
        adversarial.deepfool,
        partial(adversarial.deepfool, norm="linf"),
        partial(adversarial.fab, steps=15),
        partial(adversarial.fab, n_targets=3, steps=15),
        partial(adversarial.carlini_wagner, binary_search_steps=3, steps=60),
        partial(adversarial.apgd, eps=0.1, n_targets=3, loss="margin", steps=20),
        partial(adversarial.apgd, eps=0.1, n_targets=3, loss="dlr", steps=20),
        partial(adversarial.apgd, eps=0.1, loss="dlr", steps=20),
        partial(adversarial.pgd, eps=0.1, steps=20),
    ],
)
def test_a_masked_class_equals_an_improbable_one(attack) -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    boxes = [ub.Box(Masked(v).eval(), ub.Pixels((3, 8, 8)), outputs="logits") for v in (-1e4, -torch.inf)]
    plain, masked = (attack(box, x, box.predict(x)) for box in boxes)
    assert torch.equal(masked.success, plain.success)
    assert masked.success.float().mean() > 0.8
    assert torch.allclose(masked.distance, plain.distance, atol=1e-3)


@pytest.mark.parametrize("mask", [-torch.inf, torch.finfo(torch.float32).min])
def test_dlr_has_a_gradient_with_masked_classes(mask: float) -> None:
    """With fewer classes than the ratio's gap spans, it is the margin itself; with enough, nothing changes."""
    z = torch.tensor([[3.0, 1.0, mask, mask], [3.0, 2.0, 1.0, mask], [4.0, 3.0, 2.0, 1.0]], requires_grad=True)
    zeros, ones = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    assert targeted_dlr(zeros, ones)({"logits": z}).tolist() == pytest.approx([-2, -1, -1 / 2.5])
    assert dlr(zeros)({"logits": z}).tolist() == pytest.approx([-2, -1 / 2, -1 / 2])
    slope = torch.autograd.grad(targeted_dlr(zeros, ones)({"logits": z}).sum(), z)[0]
    assert slope[0].tolist() == slope[1].tolist() == [-1, 1, 0, 0]


def test_calibration_with_a_masked_class() -> None:
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for value in (-1e4, -torch.inf):
        box = ub.Box(Masked(value).eval(), ub.Pixels((3, 8, 8)), outputs="logits")
        y = box.predict(x)
        y[:5] = 3
        found.append(robustness.calibration(box, (x, y)))
    assert found[0].temperature == pytest.approx(found[1].temperature, rel=1e-6)
    assert found[0].uncalibrated.ece == pytest.approx(found[1].uncalibrated.ece, rel=1e-6)


def test_the_label_is_never_among_the_others() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 2.0, -torch.inf], [0.0, 0.0, 0.0, 0.0]])
    others = top_other_classes(logits, torch.tensor([1, 0]), 3)
    assert others[0].tolist() == [2, 0, 3]
    assert sorted(others[1].tolist()) == [1, 2, 3]
