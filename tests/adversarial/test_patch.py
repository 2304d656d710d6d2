"""Patches: where they lie, what they are made to do, and how that is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from models import interrupted
from unboxed import plots
from unboxed.adversarial import patch, universal_objective
from unboxed.adversarial.patch_placement import PatchPlacement
from unboxed.errors import InputError
from unboxed.objectives import Objective
from unboxed.rng import hashed_uniform


def boxed(model: str = "plain") -> ub.Box:
    entry = awkward.get_model(model, torch.float64)
    return ub.Box(entry.model, entry.inputs)


def linear(shape: tuple[int, ...] = (1, 8, 8)) -> ub.Box:
    """Two classes, of which the second has the larger bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2)).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-3.0, 3.0]))
    return ub.Box(model, ub.Pixels(shape))


def images(n: int = 6, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- where it lies ---------------------------------------------------------------------------------------------------


def put_literally(placing: PatchPlacement, image: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """Pixel by pixel: turn its center back into the patch, check whether that is inside, and mix the four nearest."""
    out = x.clone()
    side, height, width = image.shape[-1], *x.shape[-2:]
    for i, (a, s, across, down) in enumerate(u.double().tolist()):
        angle = math.radians(placing.max_rotation) * (2 * a - 1)
        radius = placing.radius(height, width) * (1 + placing.scale_range * (2 * s - 1))
        reach = radius * (1 if placing.shape == "circle" else abs(math.cos(angle)) + abs(math.sin(angle)))
        free = width - 2 * reach, height - 2 * reach
        if placing.max_rotation == placing.scale_range == 0:
            left, top = (math.floor(v * (round(f) + 1)) for v, f in zip((across, down), free, strict=True))
        else:
            left, top = across * free[0], down * free[1]
        for row in range(height):
            for column in range(width):
                dx, dy = column + 0.5 - left - reach, row + 0.5 - top - reach
                p = (math.cos(angle) * dx + math.sin(angle) * dy) / radius
                q = (-math.sin(angle) * dx + math.cos(angle) * dy) / radius
                if (p * p + q * q if placing.shape == "circle" else max(abs(p), abs(q))) <= 1:
                    out[i, :, row, column] = mixed(image, ((p + 1) * side - 1) / 2, ((q + 1) * side - 1) / 2, side)
    return out


def mixed(image: Tensor, across: float, down: float, side: int) -> Tensor:
    """The color between pixels (C,); beyond the edge that of the nearest."""
    across, down = (min(max(v, 0.0), side - 1.0) for v in (across, down))
    c, r = min(int(across), max(side - 2, 0)), min(int(down), max(side - 2, 0))
    d, s = min(c + 1, side - 1), min(r + 1, side - 1)
    f, g = across - c, down - r
    above = (1 - f) * image[:, r, c] + f * image[:, r, d]
    return (1 - g) * above + g * ((1 - f) * image[:, s, c] + f * image[:, s, d])


RULES = [
    PatchPlacement(0.3, "circle", 22.5, 0.1),
    PatchPlacement(0.2, "square", 45, 0.2),
    PatchPlacement(0.3, "square", 180, 0),
    PatchPlacement(0.25, "square", 0, 0),
    PatchPlacement(0.25, "circle", 0, 0),
    PatchPlacement(0.1, "square", 0, 0.5),
]


@pytest.mark.parametrize("placing", RULES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_placement_against_a_reference(placing: PatchPlacement, shape: tuple[int, int, int]) -> None:
    x, side = images(4, shape), placing.patch_side(*shape[1:])
    image, u = images(1, (shape[0], side, side), seed=1)[0], hashed_uniform(0, torch.arange(4), 3, 4)
    got = placing.paste(image[None], x, u)
    assert torch.allclose(got, put_literally(placing, image, x, u), atol=1e-12)
    assert (got != x).any()


@pytest.mark.parametrize("placing", RULES, ids=str)
def test_it_covers_its_area_inside_the_image(placing: PatchPlacement) -> None:
    """A white patch on black: its mean is the area, and its center of mass stays as far from the edge as it reaches."""
    x = torch.zeros(400, 1, 40, 40, dtype=torch.float64)
    side = placing.patch_side(40, 40)
    z = placing.paste(torch.ones(1, 1, side, side, dtype=torch.float64), x, hashed_uniform(1, torch.arange(400), 0, 4))
    share = z.mean((1, 2, 3))
    assert share.mean() == pytest.approx(
        placing.area * (1 + placing.scale_range**2 / 3), rel=0.06 if placing.is_pixel_aligned else 0.04
    )
    if placing.scale_range == 0:
        assert share.std() < 0.01
    at = torch.arange(40) + 0.5
    least = placing.radius(40, 40) * (1 - placing.scale_range)
    for axis in (2, 3):
        center = (z.sum((1, 5 - axis)) * at).sum(1) / z.sum((1, 2, 3))
        assert center.min() >= least - 0.3
        assert center.max() <= 40 - least + 0.3
        if placing.area < 0.3:
            assert center.std() > 1


def test_at_integer_positions_it_shows_its_pixels() -> None:
    placing = PatchPlacement(16 / 64, "square", 0, 0)
    image, x = images(1, (1, 4, 4)), torch.zeros(50, 1, 8, 8, dtype=torch.float64)
    z = placing.paste(image, x, hashed_uniform(0, torch.arange(50), 0, 4))
    windows = z.unfold(2, 4, 1).unfold(3, 4, 1).reshape(50, -1, 4, 4)  # all places
    same = torch.isclose(windows, image, atol=1e-12).all(-1).all(-1)
    assert (same.sum(1) == 1).all()
    assert len(same.double().argmax(1).unique()) > 15  # of 25
    assert ((z != 0).sum((1, 2, 3)) <= 16).all()


def test_the_mask_is_the_shape() -> None:
    assert PatchPlacement(shape="square").mask(5, torch.device("cpu")).all()
    disc = PatchPlacement(shape="circle").mask(20, torch.device("cpu"))
    assert disc.double().mean() == pytest.approx(math.pi / 4, abs=0.02)
    assert not disc[0, 0]
    assert disc[10, 10]


@pytest.mark.parametrize(
    "bad",
    [
        {"area": 0}, {"area": 1.0}, {"area": "big"}, {"area": 0.9}, {"shape": "star"}, {"shape": None},
        {"rotation": -1}, {"rotation": 200}, {"rotation": float("nan")}, {"scale": -0.1}, {"scale": 1}, {"scale": "no"},
        {"area": 0.6, "rotation": 45}, {"images_per_step": 0}, {"step": 0}, {"target": None, "y": None, "x": images(0)},
        {"target": torch.tensor([1, 2, 3])},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings(bad: dict[str, Any]) -> None:
    given = {"x": images(3), "y": torch.tensor([0, 1, 2]), "target": 1, "steps": 1, **bad}
    with pytest.raises(InputError):
        patch(boxed(), **given)


def test_a_patch_that_does_not_fit_names_the_largest() -> None:
    with pytest.raises(InputError, match=r"0\.59 or less"):
        patch(boxed(), images(3), target=1, area=0.7, shape="circle", scale=0.15)
    PatchPlacement(0.59, "circle", 22.5, 0.15).patch_side(8, 8)


def test_only_images_take_patches() -> None:
    box = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c")))
    with pytest.raises(InputError, match="images"):
        patch(box, torch.zeros(2, 3), target=1)


# ---- what it is made to do -------------------------------------------------------------------------------------------


def test_exact_on_a_linear_model() -> None:
    """Over the whole image there is one place, and the best patch is white where the target's weight is the larger."""
    box = linear((1, 4, 4))
    made = patch(box, images(5, (1, 4, 4)), target=0, area=0.98, rotation=0, scale=0, steps=30, step=0.15)
    difference = box.model[1].weight[0] - box.model[1].weight[1]
    assert torch.equal(made.pixels.flatten(), (difference > 0).double())
    best = (difference.clamp_min(0).sum() + box.model[1].bias[0] - box.model[1].bias[1]).item()
    assert made.fooling_rate(box, images(9, (1, 4, 4), seed=3), torch.ones(9, dtype=torch.long)) == float(best > 0)


def test_untargeted_on_a_linear_model() -> None:
    """Leaving class 1 of two is becoming class 0, whether the labels say so or the model."""
    box, x = linear((1, 4, 4)), images(5, (1, 4, 4))
    assert (box.predict(x) == 1).all()
    how = {"area": 0.98, "rotation": 0, "scale": 0, "steps": 12}
    want = patch(box, x, target=0, **how)
    for made in (patch(box, x, torch.ones(5, dtype=torch.long), **how), patch(box, x, **how)):
        assert made.target is None
        assert torch.allclose(made.pixels, want.pixels, atol=1e-12)


def test_objective_of_the_caller() -> None:
    box, x = linear((1, 4, 4)), images(5, (1, 4, 4))
    wanted = ub.logit(0) - ub.logit(1)
    made = patch(box, x, objective=wanted, area=0.98, rotation=0, scale=0, steps=12)
    want = patch(box, x, target=0, area=0.98, rotation=0, scale=0, steps=12)
    assert torch.allclose(made.pixels, want.pixels, atol=1e-12)
    assert made.fooling_rate(box, x) == want.fooling_rate(box, x)


def test_images_of_the_target_are_left_out() -> None:
    box, x = boxed(), images(6)
    y = torch.tensor([0, 1, 2, 3, 1, 0])
    some = y != 1
    a = patch(box, x, y, target=1, area=0.2, steps=3)
    z = x.clone()
    z[~some] = 1 - z[~some]
    assert torch.equal(patch(box, z, y, target=1, area=0.2, steps=3).pixels, a.pixels)
    z[0] = 1 - z[0]
    assert not torch.equal(patch(box, z, y, target=1, area=0.2, steps=3).pixels, a.pixels)


def test_without_images_the_patch_is_random() -> None:
    made = patch(boxed(), images(3), torch.tensor([1, 1, 1]), target=1, area=0.2, steps=3)
    assert made.fooling_rates.shape == (0,)
    assert torch.equal(made.pixels, patch(boxed(), images(3), target=1, area=0.2, steps=0).pixels)


def test_each_step_samples_images() -> None:
    """Five of the forty images a step, not always the same, each one once."""
    seen = list[Tensor]()
    box, x = boxed(), images(40)
    keep = universal_objective.AttackState.evaluate_with_grad

    def noting(self: Any, z: Tensor, rows: Tensor, *args: Any) -> Any:
        seen.append(rows)
        return keep(self, z, rows, *args)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(universal_objective.AttackState, "evaluate_with_grad", noting)
        patch(box, x, torch.zeros(40, dtype=torch.long), target=1, area=0.2, steps=30, images_per_step=5)
    assert {len(rows) for rows in seen} == {5}
    assert all(len(rows.unique()) == 5 for rows in seen)
    assert len(torch.cat(seen).unique()) > 30


def test_an_interrupted_patch_keeps_its_steps() -> None:
    box, x = boxed(), images(6)
    whole = patch(box, x, target=1, area=0.2, steps=5)
    with interrupted(box.model, 3):
        got = patch(box, x, target=1, area=0.2, steps=5)
    assert got.interrupted
    assert torch.equal(got.fooling_rates, whole.fooling_rates[:2])
    assert not torch.allclose(got.pixels, patch(box, x, target=1, area=0.2, steps=0).pixels, atol=0.02)


def test_root_of_the_loss() -> None:
    m = torch.tensor([-30.0, -2.0, 0.0, 3.0, 200.0], dtype=torch.float64, requires_grad=True)
    score = universal_objective.quartic_root_objective(
        Objective(lambda acts: acts["input"], frozenset({"input"}), "m")
    )({"input": m})
    want = [-((math.log1p(math.exp(-v)) + universal_objective.QUARTIC_ROOT_EPSILON) ** 0.25) for v in m.tolist()]
    assert torch.allclose(score.detach(), torch.tensor(want, dtype=torch.float64), atol=1e-9)
    (grad,) = torch.autograd.grad(score.sum(), m)
    assert torch.isfinite(grad).all()
    assert (grad >= 0).all()


# ---- how that is counted ---------------------------------------------------------------------------------------------


def test_success_is_counted_one_by_one() -> None:
    box, x = boxed(), images(12)
    y = box.predict(x)
    y[:3] = 1
    made = patch(box, x, y, target=1, area=0.3, steps=2)
    hits = [
        int(box.predict(made.apply_to(x, seed=7 + draw))[i]) == 1 for draw in range(3) for i in range(12) if y[i] != 1
    ]
    assert made.fooling_rate(box, x, y, n_samples=3, seed=7) == pytest.approx(sum(hits) / len(hits))
    free = patch(box, x, y, area=0.3, steps=2)
    right = [i for i in range(12) if box.predict(x)[i] == y[i]]
    left = [int(box.predict(free.apply_to(x))[i]) != int(y[i]) for i in right]
    assert free.fooling_rate(box, x, y) == pytest.approx(sum(left) / len(left))
    with pytest.raises(InputError, match="none of these images counts"):
        made.fooling_rate(box, x, torch.ones(12, dtype=torch.long))


def test_apply() -> None:
    made, x = patch(boxed(), images(3), target=1, area=0.2, steps=1), images(5)
    assert torch.equal(made.apply_to(x), made.apply_to(x))
    assert not torch.equal(made.apply_to(x), made.apply_to(x, seed=1))
    assert torch.equal(made.apply_to(x)[:2], made.apply_to(x[:2]))
    assert (made.apply_to(x) != x).double().mean() == pytest.approx(0.2, abs=0.06)
    for other in (images(2, (3, 8, 8)), images(2, (1, 16, 16)), x[0]):
        with pytest.raises(InputError):
            made.apply_to(other)


def test_it_beats_a_random_patch_on_held_out_digits() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits().tensors()
    gained = []
    for target in (2, 8):
        made, control = (
            patch(box, x[:200], y[:200], target=target, area=0.3, steps=n, images_per_step=24) for n in (25, 0)
        )  # fmt: skip
        gained.append(
            made.fooling_rate(box, x[1000:1300], y[1000:1300]) - control.fooling_rate(box, x[1000:1300], y[1000:1300])
        )
    assert min(gained) > 0.25


def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that is never turned, and a success that counts images of the target."""
    seen = PatchPlacement._pixels_in_patch_coordinates
    monkeypatch.setattr(
        PatchPlacement,
        "_pixels_in_patch_coordinates",
        lambda self, x, u: seen(self, x, u.index_fill(1, torch.tensor([0]), 0.5)),
    )
    with pytest.raises(AssertionError):
        test_placement_against_a_reference(RULES[1], (1, 8, 8))
    monkeypatch.undo()
    monkeypatch.setattr(universal_objective.torch, "ne", lambda a, b: torch.ones_like(a, dtype=torch.bool))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_success_is_counted_one_by_one()


# ---- to print --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_page_to_print(shape: str) -> None:
    made = patch(boxed(), images(3), target=1, area=0.2, shape=shape, steps=1)
    page = np.asarray(plots.printable_patch(made, classes=["a", "toaster", "c", "d"], success=0.5, side=240))
    plain = np.asarray(plots.printable_patch(made, side=240))
    assert page.shape[0] > 300
    assert page.shape[1] > 240
    assert page.shape != plain.shape  # the measured success takes lines
    assert (page[0] == 255).all()
    assert page.std() > 10
    said = (
        plots.patch._patch_title(made, ["a", "toaster", "c", "d"]),
        " ".join(plots.patch._placement_instructions(made, 0.5)),
    )
    assert "toaster" in said[0]
    assert shape in said[1]
    assert "0.2 of the image" in said[1]
    assert "50%" in said[1]
