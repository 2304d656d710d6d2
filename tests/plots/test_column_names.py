"""Results of tables carry what their figures need: names of columns and the unit of a change, without the box."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from unboxed.plots.figures import figures
from unboxed.plots.results import adversarial as figures_of_attacks
from unboxed.plots.results import attribution as figures_of_attribution
from unboxed.plots.results import synthesis as figures_of_synthesis

TABLE = ub.Features(("ash", "magnesium"), mean=(2.0, 100.0), std=(0.5, 20.0))


def table_box() -> ub.Box:
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.0], [-2.0, 0.1], [0.0, -0.1]]))
        model.bias.zero_()
    return ub.Box(model, TABLE, outputs="logits")


def rows() -> Tensor:
    return torch.tensor([[2.0, 100.0], [1.5, 120.0], [2.5, 80.0]])


class ImageAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.table = nn.Linear(16, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.image(image.flatten(1)) + self.table(table)


def drawn(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[Any, dict[str, Any]]]:
    """Record how a chart is drawn."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or Image.new("RGB", (8, 8)))
    return calls


@pytest.mark.parametrize("make", [lambda a: a, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_an_attribution_names_its_columns(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch, figures_of_attribution, "contribution_bars")
    a = make(ub.attribution.gradient(table_box(), rows(), 1))
    figures(a)
    assert [args[2] for args, _ in calls] == [["ash", "magnesium"]] * 3
    assert "columns" not in a.extras


def test_the_axis_of_a_gradient_says_slope_and_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slope in the column's own unit: ten more of magnesium raise logit 1 by one."""
    box = table_box()
    a = ub.attribution.gradient(box, rows(), 1)
    assert a.unit == "slope: change of the score per unit of the column"
    more = rows() + torch.tensor([0.0, 10.0])
    torch.testing.assert_close(10 * a.detach()[:, 1], (box(more) - box(rows()))[:, 1])
    units = {kind: ub.attribution.smoothgrad(box, rows(), 1, n_samples=2, kind=kind).unit for kind in
             ("mean", "squared", "variance")}  # fmt: skip
    assert all(unit.endswith("of the score per unit of the column") for unit in units.values())
    assert len(set(units.values())) == 3
    assert not ub.attribution.gradient_x_input(box, rows(), 1).unit
    images = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), ub.Pixels((1, 4, 4)), outputs="logits")
    assert not ub.attribution.gradient(images, torch.rand(2, 1, 4, 4), 1).unit


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_the_bars_of_an_attack_are_in_its_unit(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box, settings = table_box(), {"eps": 0.5} if attack == "pgd" else {}
    calls = drawn(monkeypatch, figures_of_attacks, "column_change_bars")
    found = getattr(ub.adversarial, attack)(box, rows(), torch.tensor([0, 1, 2]), **settings)
    figures(found)
    without_box = [args[0] for args, _ in calls]
    calls.clear()
    figures(found, box)
    assert without_box == [args[0] for args, _ in calls]
    for i, changes in zip(figures_of_attacks._rows_fooled_first(found), without_box, strict=True):
        expected = (found.images[i] - rows()[i]) / torch.tensor(TABLE.std)
        assert {c.name: pytest.approx(c.change) for c in changes} == {
            name: float(v) for name, v in zip(TABLE.names, expected, strict=True) if v
        }
        assert {c.unit for c in changes} <= {"standard deviations of its column"}
    assert "input_spec" not in repr(found)


def test_the_bars_of_a_morph_are_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch, figures_of_synthesis, "column_change_bars")
    figures(ub.synthesis.morph(table_box(), rows(), 1, steps=3))
    names = {c.name for args, _ in calls for c in args[0]}
    assert names == {"ash", "magnesium"}
    assert {c.unit for args, _ in calls for c in args[0]} == {"standard deviations of its column"}


def test_a_table_beside_an_image_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    box = ub.Box(ImageAndTable(), ub.MultiInput({"image": ub.Pixels((1, 4, 4)), "table": TABLE}), outputs="logits")
    x = {"image": torch.rand(3, 1, 4, 4), "table": rows()}
    calls = drawn(monkeypatch, figures_of_attribution, "contribution_bars")
    figures(ub.attribution.gradient(box, x, 1))
    assert {tuple(args[2]) for args, _ in calls} == {("ash", "magnesium")}
    assert {kwargs["label"] for _, kwargs in calls} == {
        "slope: change of the score per unit of the value or standard deviation of the column"
    }
