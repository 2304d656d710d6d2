"""Results say which examples they are of: files that cannot be read, labels in another order, wrong names of inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unboxed as ub
from unboxed.errors import UnboxedError, UnboxedWarning

pandas = pytest.importorskip("pandas")


def image_box() -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)), ub.Pixels((3, 4, 4)))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(made):
        Image.fromarray(np.full((4, 4, 3), 40 * i + 20, np.uint8)).save(path)
    made[1].write_bytes(b"broken")
    return made


IN_ONE_BATCH: dict[str, Callable[[ub.Box, Any], Any]] = {
    "logits": lambda box, x: box(x),
    "predictions": lambda box, x: box.predict(x),
    "maps": lambda box, x: ub.attribution.gradient(box, x, 0).map,
    "an attack": lambda box, x: ub.adversarial.fgsm(box, x, 0, eps=0.1).images,
    "images": lambda box, x: ub.image(x, like=box),
}


@pytest.mark.parametrize("asked", IN_ONE_BATCH)
def test_a_broken_file_in_a_list_is_named_with_its_row(asked: str, paths: list[Path]) -> None:
    box = image_box()
    said = r"1 example can't be read and is left out: .*1\.png: .* \(row 1\); results number the others from 0$"
    with pytest.warns(UnboxedWarning, match=said):
        got = IN_ONE_BATCH[asked](box, paths)
    torch.testing.assert_close(got, IN_ONE_BATCH[asked](box, [paths[0], *paths[2:]]))


def test_a_pass_over_data_keeps_their_numbers(paths: list[Path]) -> None:
    with pytest.warns(UnboxedWarning, match=r"left out: .*1\.png: .* \(row 1\)$"):
        (top,) = ub.activations.top_examples(image_box(), paths, ["1"], k=3)
    assert {*top.example_index.flatten().tolist()} == {0, 2, 3}


def table_box() -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(torch.nn.Linear(2, 3), ub.Features(("u", "v")), outputs="logits")


WITH_LABELS_APART: dict[str, Callable[[ub.Box, Any, Any], Any]] = {
    "an attack": lambda box, x, y: ub.adversarial.fgsm(box, x, y, eps=0.1),
    "a universal attack": lambda box, x, y: ub.adversarial.universal(box, x, y, eps=0.1, steps=1),
    "attribution": lambda box, x, y: ub.attribution.gradient(box, x, y),
    "an attribute": lambda box, x, y: ub.concepts.probe(box, x, y, n_random=0),
    "influence": lambda box, x, y: ub.influence.gradient_dot(box, x, y, (x, y.loc[x.index])),
    "an evaluation": lambda box, x, y: ub.robustness.evaluate(box, (x, y), eps=[0.1]),
}


@pytest.mark.parametrize("asked", WITH_LABELS_APART)
def test_labels_in_another_order_are_refused_wherever_they_are_given(asked: str) -> None:
    x = pandas.DataFrame({"u": np.linspace(-1, 1, 24), "v": np.linspace(1, 0, 24)})
    y = pandas.Series([0, 1, 2] * 8)
    with pytest.raises(UnboxedError, match=r"one index in two orders.*y\.loc\[x\.index\]"):
        WITH_LABELS_APART[asked](table_box(), x, y[::-1])
    if asked in ("an attack", "attribution"):
        WITH_LABELS_APART[asked](table_box(), x, y)
        WITH_LABELS_APART[asked](table_box(), x, y.to_numpy()[::-1])  # without an index: by position


def test_labels_are_compared_with_their_own_inputs_alone() -> None:
    """References and training examples are other rows, in any order."""
    x = pandas.DataFrame({"u": np.linspace(-1, 1, 8), "v": np.linspace(1, 0, 8)})
    y, others = pandas.Series([0, 1, 2, 0, 1, 2, 0, 1]), x[::-1]
    table = others.assign(label=y)
    box = table_box()
    got = ub.attribution.expected_gradients(box, x, y, references=others, n_samples=2)
    want = ub.attribution.expected_gradients(
        box, x, y, references=torch.tensor(others.to_numpy().copy()).float(), n_samples=2
    )
    torch.testing.assert_close(got.map, want.map)
    given = ub.influence.gradient_dot(box, x, y, table)
    torch.testing.assert_close(given.scores, ub.influence.gradient_dot(box, x, y, (others, table["label"])).scores)


class TwoInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 3), torch.nn.Linear(2, 3)

    def forward(self, image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.a(image.flatten(1)) + self.b(row)  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["a batch", "(x, y)", "examples"])
def test_wrong_names_of_inputs_are_told_with_those_wanted(form: str) -> None:
    inputs = ub.MultiInput({"image": ub.Pixels((1, 4, 4)), "row": ub.Features(("u", "v"))})
    box = ub.Box(TwoInputs(), inputs, outputs="logits")
    x = {"img": torch.rand(2, 1, 4, 4), "row": torch.rand(2, 2)}
    one = {name: part[0] for name, part in x.items()}
    calls: dict[str, Callable[[], object]] = {
        "a batch": lambda: box(x),
        "(x, y)": lambda: ub.robustness.calibration(box, (x, [0, 1])),
        "examples": lambda: ub.robustness.calibration(box, [(one, 0), (one, 1)]),
    }
    with pytest.raises(UnboxedError, match=r"wanted a dict of tensors, 'image', 'row'; got keys \['img', 'row'\]"):
        calls[form]()


def test_the_mean_and_std_of_columns_may_be_series_matched_by_name() -> None:
    table = pandas.DataFrame({"v": [0.0, 4.0, 8.0], "u": [1.0, 2.0, 3.0], "label": [0, 1, 0]})
    inputs = ub.Features(("u", "v"), mean=table.mean(), std=table.std(), low=table.min()[["v", "u"]])
    assert (inputs.mean, inputs.std, inputs.low) == ((2.0, 4.0), (1.0, 4.0), (1.0, 0.0))
    assert ub.Features(("a", "b"), mean=table["u"].iloc[:2]).mean == (1.0, 2.0)  # without such names, by position
