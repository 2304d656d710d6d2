"""Minimal deactivating change: what is particular to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from models import interrupted
from unboxed.errors import InputError
from unboxed.synthesis import MinimalDeactivation, minimal_deactivation


@pytest.fixture(scope="module")
def box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return ub.data.digits("test").first(4).x


@pytest.fixture(scope="module")
def found(box: ub.Box, x: Tensor) -> MinimalDeactivation:
    """What deactivates one hidden unit; many tests read it."""
    return minimal_deactivation(box, x, ub.neuron("fc1", 5))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_hidden_unit_is_deactivated(box: ub.Box, x: Tensor, found: MinimalDeactivation, norm: str) -> None:
    result = found if norm == "l2" else minimal_deactivation(box, x, ub.neuron("fc1", 5), norm=norm)
    assert result.deactivated.all()
    now = box.read(result.images, "fc1")["fc1"][:, 5]
    assert torch.allclose(now, result.score_after)
    assert (now <= 1e-3).all()
    d = result.change.flatten(1)
    assert torch.allclose(d.norm(dim=1) if norm == "l2" else d.abs().amax(1), result.distance)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    initially_inactive = result.score_before <= 0
    assert (result.distance[initially_inactive] == 0).all()
    assert (result.distance[~initially_inactive] > 0).all()


def test_after_a_relu_too(box: ub.Box, x: Tensor, found: MinimalDeactivation) -> None:
    """There the score can't pass zero, and is zero exactly where the unit before is not above it."""
    after = minimal_deactivation(box, x, ub.neuron("relu3", 5))
    assert after.deactivated.all()
    assert torch.allclose(after.distance, found.distance, rtol=0.02, atol=1e-4)


def test_a_smaller_change_does_not_deactivate(box: ub.Box, x: Tensor, found: MinimalDeactivation) -> None:
    initially_active = found.score_before > 0
    middle = box.read(x + 0.97 * found.change, "fc1")["fc1"][:, 5]
    assert (middle[initially_active] > 0).all()


def test_smaller_than_a_plain_descent(box: ub.Box, x: Tensor, found: MinimalDeactivation) -> None:
    grad = ub.attribution.gradient(box, x, ub.neuron("fc1", 5))
    initially_active = found.score_before > 0
    step = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    shorter = (x - 0.98 * found.distance.view(-1, 1, 1, 1) * step).clamp(0, 1)
    assert (box.read(shorter, "fc1")["fc1"][:, 5][initially_active] > -1e-3).all()


def test_a_ball_that_is_too_small_is_reported(box: ub.Box, x: Tensor) -> None:
    result = minimal_deactivation(box, x, ub.logit(int(box.predict(x)[0])), threshold=-5.0, eps=0.01)
    assert not result.deactivated[0]
    assert (result.distance <= 0.01 * (1 + 1e-5)).all()
    assert (result.score_after <= result.score_before).all()


def test_each_row_has_its_own_radius(box: ub.Box, x: Tensor) -> None:
    unit = ub.neuron("fc1", torch.tensor([5, 6, 7, 8]))
    together = minimal_deactivation(box, x, unit)
    for i in range(2):
        alone = minimal_deactivation(box, x[i : i + 1], unit.rows(slice(i, i + 1)))
        assert torch.allclose(alone.distance[0], together.distance[i], rtol=1e-3, atol=1e-5)


def test_tabular_models(x: Tensor) -> None:
    model = nn.Linear(3, 2)
    box = ub.Box(model, ub.Features(("a", "b", "c")), outputs="regression")
    rows = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
    z = box(rows)[:, 0]
    result = minimal_deactivation(box, rows, ub.logit(0), threshold=float(z.min()) - 100)
    want = (z - float(z.min()) + 100) / model.weight[0].norm()
    assert result.deactivated.all()
    assert torch.allclose(result.distance, want.detach(), rtol=1e-3)


def test_ctrl_c_keeps_the_smallest_change(box: ub.Box, x: Tensor, found: MinimalDeactivation) -> None:
    with interrupted(box.model, 40, once=True):
        result = minimal_deactivation(box, x, ub.neuron("fc1", 5))
    assert result.interrupted
    assert result.deactivated.any()
    assert (result.distance[result.deactivated] >= found.distance[result.deactivated] * (1 - 1e-3)).all()


def test_bad_settings_are_refused(box: ub.Box, x: Tensor) -> None:
    with pytest.raises(InputError, match="objective"):
        minimal_deactivation(box, x, 3)  # type: ignore[arg-type]
    for bad in ({"norm": "l7"}, {"eps": 0.0}, {"threshold": float("nan")}, {"steps": -1}):
        with pytest.raises(InputError):
            minimal_deactivation(box, x, ub.logit(0), **bad)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_score_does_not_matter(box: ub.Box, x: Tensor, scale: float) -> None:
    """Down to the threshold itself, and an input above it does not count as deactivated."""
    result = minimal_deactivation(box, x[:2], scale * ub.neuron("relu3", 5))
    assert (result.score_before > 0).any()
    assert result.deactivated.all()
    assert (result.score_after <= 0).all()
    assert (result.distance[result.score_before > 0] > 0).all()
