"""Attacks on tables: changes are measured in standard deviations of a column or in its range; categories stay."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.column_units import ScaledInputs, column_scales, inputs_to_original_units, to_scaled_box_and_inputs
from unboxed.errors import UnboxedWarning

STD = (0.01, 100.0, 3.0)
ATTACKS: dict[str, Any] = {
    "fgsm": partial(ub.adversarial.fgsm, eps=0.5),
    "pgd": partial(ub.adversarial.pgd, eps=0.5, steps=5),
    "pgd l2": partial(ub.adversarial.pgd, eps=0.5, norm="l2", steps=5),
    "apgd": partial(ub.adversarial.apgd, eps=0.5, steps=5),
    "deepfool": ub.adversarial.deepfool,
    "fmn": partial(ub.adversarial.fmn, steps=20),
    "hop_skip_jump": partial(ub.adversarial.hop_skip_jump, queries=300),
}


def table(**settings: Any) -> tuple[ub.Box, Tensor, Tensor]:
    """Both classes are predicted of some of 12 rows."""
    torch.manual_seed(0)
    inputs = ub.Features(("a", "b", "c"), mean=(1.0, 500.0, 0.0), std=STD, **settings)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight[:, 2] *= 0.1
        z = model(torch.randn(500, 3))
        model[2].bias[0] -= (z[:, 0] - z[:, 1]).median()
    box = ub.Box(model, inputs, outputs="logits")
    x = inputs.decode(torch.randn(12, 3)).clamp(min=torch.tensor(inputs.low))
    for values in inputs.categories.values():
        x[:, 2] = torch.tensor(values).repeat(4)
    return box, x, box.predict(x)


def distances(images: Tensor, x: Tensor, norm: str) -> Tensor:
    z = (images - x) / torch.tensor(STD)
    return z.abs().amax(1) if norm == "linf" else z.norm(dim=1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_distances_are_in_standard_deviations(attack: str) -> None:
    box, x, y = table(low=(0.98, -1e9, -1e9))
    result = ATTACKS[attack](box, x, y)
    assert result.success.any()
    assert torch.equal(result.success, box.predict(result.images) != y)
    assert torch.allclose(result.distance, distances(result.images, x, result.norm), atol=1e-3)
    if "eps" in getattr(ATTACKS[attack], "keywords", {}):
        assert float(distances(result.images, x, result.norm).max()) <= 0.5 + 1e-4
    box.inputs.check(result.images)
    unchanged = result.distance == 0
    assert torch.equal(result.images[unchanged], x[unchanged])
    assert torch.equal(result.input, x)


def test_they_are_those_of_the_model_on_standardized_columns() -> None:
    box, x, y = table()
    bare = ub.Box(box.model, ub.Features(("a", "b", "c")), outputs="logits")
    want = ub.adversarial.fgsm(bare, box.inputs.encode(x), y, eps=0.3)
    got = ub.adversarial.fgsm(box, x, y, eps=0.3)
    assert torch.allclose(box.inputs.encode(got.images), want.images, atol=1e-4)
    assert torch.equal(got.success, want.success)


def test_without_std_they_are_in_the_columns_ranges() -> None:
    inputs = ub.Features(("a", "b"), low=(0.0, -1000.0), high=(1.0, 1000.0))
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1e-3]]))
    box, x = ub.Box(model, inputs, outputs="logits"), torch.tensor([[0.5, 0.0], [0.2, 900.0]])
    made = ub.adversarial.fgsm(box, x, box.predict(x), eps=0.1)
    change = ((made.images - x) / torch.tensor([1.0, 2000.0])).abs()
    assert float(change.max()) == pytest.approx(0.1, abs=1e-5)


def test_a_std_of_one_counts_where_it_is_given() -> None:
    bare = ub.Features(("a", "b"), low=0, high=(1, 1000))
    given = replace(bare, std=1)
    assert column_scales(bare) == (1.0, 1000.0)
    assert column_scales(given) == (1.0, 1.0)
    assert column_scales(replace(bare, high=(10, 1000))) == (10.0, 1000.0)
    assert "std=1" in repr(given)
    assert "std" not in repr(bare)
    assert given != bare


@pytest.mark.parametrize("attack", ATTACKS)
def test_categories_stay(attack: str) -> None:
    box, x, y = table(categories={"c": (-3.0, 0.0, 3.0)})
    wide = {"eps": 20.0} if "eps" in getattr(ATTACKS[attack], "keywords", {}) else {}
    result = ATTACKS[attack](box, x, y, **wide)
    assert torch.equal(result.images[:, 2], x[:, 2])
    assert result.success.any()
    box.inputs.check(result.images)


def test_universal_and_smoothing_use_these_units() -> None:
    box, x, y = table()
    made = ub.adversarial.universal(box, x, y, eps=0.5, steps=5)
    assert float((made.perturbation / torch.tensor(STD)).abs().max()) == pytest.approx(0.5, abs=1e-4)
    assert made.apply_to(box, x).shape == x.shape
    bare = ub.Box(box.model, ub.Features(("a", "b", "c")), outputs="logits")
    got = ub.robustness.smoothed(box, x, sigma=0.2, n=50)
    want = ub.robustness.smoothed(bare, box.inputs.encode(x), sigma=0.2, n=50)
    assert (got.class_fractions - want.class_fractions).abs().max() < 0.1


def test_parts_of_several_inputs_have_their_own_units() -> None:
    image, rows = ub.Pixels((1, 2, 2)), ub.Features(("a", "b"), std=(2.0, 0.5))
    inputs = ub.MultiInput({"image": image, "row": rows})
    assert column_scales(inputs) == (1.0, 1.0, 1.0, 1.0, 2.0, 0.5)

    class Two(nn.Module):
        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return torch.cat([image.flatten(1).sum(1, keepdim=True), row.sum(1, keepdim=True)], 1)

    box = ub.Box(Two(), inputs, outputs="logits")
    x = {"image": torch.rand(3, 1, 2, 2), "row": torch.randn(3, 2)}
    scaled, u = to_scaled_box_and_inputs(box, box.validate_inputs(x))
    assert isinstance(scaled.inputs, ScaledInputs)
    assert torch.allclose(scaled(u), box(x), atol=1e-5)
    assert torch.equal(inputs_to_original_units(scaled, u, box.validate_inputs(x)), box.validate_inputs(x))
    made = ub.adversarial.fgsm(box, x, box.predict(x), eps=0.1)
    assert float((made.images["image"] - x["image"]).abs().max()) <= 0.1 + 1e-6
    assert float(((made.images["row"] - x["row"]) / torch.tensor([2.0, 0.5])).abs().max()) == pytest.approx(
        0.1, abs=1e-5
    )


def test_columns_of_unlike_spread_without_a_unit_are_warned_of() -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 2) * torch.tensor([1.0, 30.0])
    model, columns = nn.Linear(2, 2), ub.Features(["narrow", "wide"])
    several = ub.MultiInput((ub.Pixels((1, 2, 2)), columns))
    message = "'wide' varies far more than 'narrow'"
    with pytest.warns(UnboxedWarning, match=message):
        ub.adversarial.fgsm(ub.Box(model, columns), x, target=1, eps=0.1)
    with pytest.warns(UnboxedWarning, match=message):
        ub.adversarial.fgsm(ub.Box(OfTwo(), several), (torch.rand(12, 1, 2, 2), x), target=1, eps=0.1)
    known = ub.Features(["narrow", "wide"], low=x.amin(0).tolist(), high=x.amax(0).tolist())
    ub.adversarial.fgsm(ub.Box(model, known), x, target=1, eps=0.1)
    kinds = x.mul(torch.tensor([1.0, 0.0])) + torch.tensor([[0.0, 90.0]] * 6 + [[0.0, 0.0]] * 6)
    stays = ub.Features(["narrow", "wide"], categories={"wide": [0, 90]})
    ub.adversarial.fgsm(ub.Box(model, stays), kinds, target=1, eps=0.1)
    ub.adversarial.fgsm(ub.Box(model, columns), x[:4], target=1, eps=0.1)  # too few rows to know
    ub.adversarial.fgsm(ub.Box(model, columns), x * torch.tensor([1.0, 0.1]), target=1, eps=0.1)


class OfTwo(nn.Module):
    """Logits of an image and a row."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.fc(torch.cat([image.flatten(1), row], 1))
