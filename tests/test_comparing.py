"""Models side by side: the same question to each, checkpoints of a training, and their maps on one scale."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.activations import cka
from unboxed.attribution import gradient
from unboxed.comparing import compare, epochs
from unboxed.errors import InputError, ModelError, UnboxedWarning
from unboxed.plots import colors
from unboxed.plots import compare as drawn
from unboxed.training import Snapshots, fit


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()


def box(seed: int = 0) -> ub.Box:
    return ub.Box(make(seed), awkward.GRAY_INPUTS)


def test_the_same_question_to_each() -> None:
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    a, b = box(0), box(1)
    found = compare({"a": a, "b": b}, gradient, x, y, batch_size=2)
    assert list(found) == ["a", "b"]
    assert torch.equal(found["a"], gradient(a, x, y, batch_size=2))
    assert torch.equal(found["b"], gradient(b, x, y, batch_size=2))


def test_other_inputs_are_refused_before_any_model_runs() -> None:
    asked = []
    table = ub.Box(nn.Linear(3, 4), ub.Features(("a", "b", "c")))
    large = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(100, 4)), ub.Pixels((1, 10, 10)))
    for other in (table, large):
        with pytest.raises(InputError, match="same inputs; got 'a'"):
            compare({"a": box(), "other": other}, asked.append)
    few = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), awkward.GRAY_INPUTS)
    with pytest.raises(InputError, match="outputs"):
        compare({"a": box(), "few": few}, asked.append)
    with pytest.raises(InputError, match="Box"):
        compare({"a": make(0)}, asked.append)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no model"):
        compare({}, asked.append)
    assert asked == []


def test_a_box_for_each_checkpoint(tmp_path: Path) -> None:
    models = {f"epoch{i}": make(i) for i in range(3)}
    files = []
    for name, model in models.items():
        files.append(tmp_path / f"{name}.pt")
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, files[-1])
    mine = box(9)
    before = {k: v.clone() for k, v in mine.model.state_dict().items()}
    x = torch.rand(2, 1, 8, 8)
    found = compare(epochs(mine, files), lambda b: b(x))
    assert list(found) == list(models)
    assert all(torch.equal(found[n], ub.Box(model, awkward.GRAY_INPUTS)(x)) for n, model in models.items())
    assert all(torch.equal(v, before[k]) for k, v in mine.model.state_dict().items())
    states = {n: model.state_dict() for n, model in models.items()}
    assert all(torch.equal(v, found[n]) for n, v in compare(epochs(mine, states), lambda b: b(x)).items())
    assert list(compare(epochs(mine, list(states.values())), lambda b: 0)) == ["1", "2", "3"]


def test_files_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    files = [tmp_path / str(i) / "last.pt" for i in range(2)]
    for i, file in enumerate(files):
        file.parent.mkdir()
        torch.save(make(i).state_dict(), file)
    assert [name for name, _ in epochs(box(), files)] == list(map(str, files))


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="doesn't fit"):
        list(epochs(box(), [nn.Linear(2, 2).state_dict()]))
    with pytest.raises(ModelError, match="no weights file"):
        list(epochs(box(), [tmp_path / "none.pt"]))
    torch.save(make(0), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="never does"):
        list(epochs(box(), [tmp_path / "whole.pt"]))
    for one in (make(0).state_dict(), tmp_path / "whole.pt"):
        with pytest.raises(InputError, match="several"):
            list(epochs(box(), one))  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", ["memory", "files"])
def test_snapshots_of_a_training(tmp_path: Path, kept: str) -> None:
    model, x, y = make(0), torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    data = torch.utils.data.TensorDataset(x, y)
    shots = Snapshots(4, to=tmp_path if kept == "files" else None)
    fit(model, awkward.GRAY_INPUTS, data, epochs=2, batch_size=10, quiet=True, watch=shots)
    assert list(shots.weights) == ["step 4", "step 8"]
    found = compare(epochs(ub.Box(model, awkward.GRAY_INPUTS), shots.weights), lambda b: b(x))
    assert torch.equal(found["step 8"], ub.Box(model, awkward.GRAY_INPUTS)(x))
    assert not torch.equal(found["step 4"], found["step 8"])
    with pytest.raises(InputError, match="every"):
        Snapshots(0)


# -- pictures --------------------------------------------------------------------------------------------------------


def images(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_one_scale_for_all_models() -> None:
    """The same value has the same color in every column, and the largest of all the strongest."""
    shown = drawn.colored_panels({"a": images(1.0, -2.0), "b": images(1.0, 4.0)})
    assert shown.bar is not None
    assert (shown.bar.kind, shown.bar.vmax) == ("signed", 4.0)
    a, b = shown.images["a"], shown.images["b"]
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(b[1][0, 0], colors.SIGNED_COLORMAP[-1])
    assert np.array_equal(drawn.colored_panels({"a": images(0.2), "b": images(0.5)}, kind="image").images["a"][0],
                          colors.image_to_rgb(images(0.2))[0])  # fmt: skip


def test_sheets() -> None:
    maps = {"trained": torch.randn(2, 1, 8, 8), "untrained": torch.randn(2, 1, 8, 8)}
    sheet = drawn.side_by_side(maps, torch.rand(2, 1, 8, 8), title="t", captions=["one", "two"])
    assert sheet.width > 3 * 64
    assert drawn.side_by_side({"a": torch.rand(1, 3, 8, 8)}, kind="image").width > 64
    strip = drawn.side_by_side({f"step {i}": torch.rand(1, 1, 8, 8) for i in range(9)})
    assert strip.width > 9 * 64
    with pytest.raises(InputError, match="same"):
        drawn.side_by_side({"a": torch.rand(1, 1, 8, 8), "b": torch.rand(2, 1, 8, 8)})
    with pytest.raises(InputError, match="C, H, W"):
        drawn.side_by_side({"a": torch.rand(3, 4)})
    with pytest.raises(InputError, match="nothing"):
        drawn.side_by_side({})


def test_a_heatmap_has_a_cell_for_each_pair() -> None:
    found = cka(box(0), box(1), torch.rand(12, 1, 8, 8))
    picture = drawn.cka_plot(found.cka, found.layers_a, found.layers_b, ("a", "b"))
    assert picture.width > 4 * 20
    plain = drawn.cka_plot(torch.eye(2), ["x", "y"], ["x", "y"], ("", ""))
    levels = np.asarray(plain)
    for color in (colors.MAGNITUDE_COLORMAP[-1], colors.MAGNITUDE_COLORMAP[0]):
        assert (levels == color).all(-1).sum() > 100
    undefined = drawn.cka_plot(torch.full((1, 1), float("nan")), ["x"], ["y"], ("", ""))
    assert (np.asarray(undefined) == 128).all(-1).any()


def test_ctrl_c_ends_the_comparison() -> None:
    def cut(box: ub.Box) -> Any:
        return SimpleNamespace(interrupted=True, box=box)

    with pytest.warns(UnboxedWarning, match="'a' is incomplete"):
        found = compare({"a": box(0), "b": box(1)}, cut)
    assert list(found) == ["a"]


def test_what_was_drawn_is_shown_as_images() -> None:
    found = compare({"a": box(0), "b": box(1)}, ub.synthesis.class_image, [0, 1], steps=2)
    shown = drawn.colored_panels(found)
    assert shown.bar is None
    assert np.array_equal(shown.images["a"], colors.image_to_rgb(found["a"].images))
    with pytest.raises(InputError, match="pass one of its tensors"):
        drawn.colored_panels({"a": (1, 2)})
    with pytest.raises(InputError, match="pairs"):
        compare([box(0), box(1)], gradient)  # type: ignore[list-item]
