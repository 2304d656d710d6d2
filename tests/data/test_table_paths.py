"""A path of a table, and a DataFrame, where examples are wanted: what `ub.data.table` makes of it, at every door."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unboxed as ub
from unboxed.engine.read.examples import fetch_inputs
from unboxed.errors import DataError, InputError

N = 24
ROWS = torch.rand(N, 3, generator=torch.Generator().manual_seed(1))
LABELS = [("no", "yes")[int(row[0] > row[1])] for row in ROWS]
CLASSES = ("yes", "no")  # in another order than the names of the table


def rows_box(outputs: Any = "logits") -> ub.Box:
    torch.manual_seed(0)
    classes, n = (None, 1) if outputs == "regression" else (CLASSES, 2)
    return ub.Box(nn.Sequential(nn.Linear(3, n)), ub.Features(tuple("abc")), classes=classes, outputs=outputs)


def images_box() -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    return ub.Box(model, ub.Pixels((1, 8, 8)), classes=CLASSES, outputs="logits")


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    """The columns in another order, and one beside them that is no input."""
    lines = [f"{c},{label},{a},{b}" for (a, b, c), label in zip(ROWS.tolist(), LABELS, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["c,label,a,b", *lines]))
    return tmp_path / "rows.csv"


@pytest.fixture
def images_path(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    lines = [f"{i}.png,{label}" for i, label in enumerate(LABELS)]
    (tmp_path / "images.csv").write_text("\n".join(["file,label", *lines]))
    return tmp_path / "images.csv"


def scores(result: Any) -> Any:
    return result.to_dict() if hasattr(result, "to_dict") else torch.as_tensor(result).tolist()


def calibration(box: ub.Box, data: Any) -> list[float]:
    result = ub.robustness.calibration(box, data)
    return [result.accuracy, result.temperature, result.uncalibrated.nll, result.uncalibrated.ece]


LABELED: dict[str, Callable[[ub.Box, Any], Any]] = {
    "evaluate": lambda box, data: ub.robustness.evaluate(box, data, eps=[0.1], quiet=True, check_masking=False),
    "calibration": calibration,
    "influence": lambda box, data: ub.influence.influence_functions(box, box.noise(2), None, data).scores,
    "gradient_dot": lambda box, data: ub.influence.gradient_dot(box, box.noise(2), None, data, lr=0.1).scores,
    "mislabels": lambda box, data: ub.influence.suspected_mislabels(box, data).scores,
    "self_influence": lambda box, data: ub.influence.self_influence(box, data).scores,
}
INPUTS: dict[str, Callable[[ub.Box, Any], Any]] = {
    "predict": lambda box, x: box.predict(x),
    "gradient": lambda box, x: ub.attribution.gradient(box, x),
    "occlusion": lambda box, x: ub.attribution.feature_ablation(box, x),
    "read": lambda box, x: box.read(x, ["logits"])["logits"],
    "fetch": lambda box, x: fetch_inputs(x, [3, 1], box.inputs),
    "expected gradients": lambda box, x: ub.attribution.expected_gradients(box, box.noise(2), references=x),
}
every_kind = pytest.mark.parametrize("kind", ["rows", "images"])


@pytest.fixture
def opened(kind: str, rows_path: Path, images_path: Path) -> tuple[ub.Box, Path]:
    return (rows_box(), rows_path) if kind == "rows" else (images_box(), images_path)


@every_kind
@pytest.mark.parametrize("door", LABELED)
def test_what_wants_labels_takes_the_path(door: str, opened: tuple[ub.Box, Path], kind: str) -> None:
    box, path = opened
    x, y = ub.data.table(path, box).tensors()
    assert y is not None
    assert [box.classes[k] for k in y.tolist()] == LABELS
    expected = scores(LABELED[door](box, (x, y)))
    for data in (path, str(path)):
        assert scores(LABELED[door](box, data)) == expected


@every_kind
@pytest.mark.parametrize("door", INPUTS)
def test_what_wants_inputs_takes_the_path(door: str, opened: tuple[ub.Box, Path], kind: str) -> None:
    box, path = opened
    x = ub.data.table(path, box).tensors()[0]
    if kind == "rows":
        assert torch.allclose(x, ROWS)
    expected = torch.as_tensor(INPUTS[door](box, x))
    for data in (path, str(path)):
        assert torch.equal(torch.as_tensor(INPUTS[door](box, data)), expected)


def test_numbers_are_read_as_numbers(rows_path: Path) -> None:
    values = [float(i) for i in range(N)]
    lines = [f"{a},{b},{c},{v}" for (a, b, c), v in zip(ROWS.tolist(), values, strict=True)]
    rows_path.write_text("\n".join(["a,b,c,price (USD)", *lines]))
    box = rows_box("regression")
    found = ub.robustness.evaluate_outputs(box, str(rows_path), eps=[0.1], check_masking=False)
    error = (box(ROWS)[:, 0] - torch.tensor(values)).abs().mean()
    assert found.clean["MAE"].mean == pytest.approx(float(error), rel=1e-4)


def test_a_report_of_a_path_is_that_of_the_table(rows_path: Path, tmp_path: Path) -> None:
    box = rows_box()
    facts = []
    for name, data in (("path", str(rows_path)), ("table", ub.data.table(rows_path, box))):
        ub.report(box, data, tmp_path / name, sections=["overview"], quiet=True)
        facts.append(json.loads((tmp_path / name / "report.json").read_text())["findings"]["overview"])
    assert facts[0] == facts[1]


def test_a_frame_of_image_files_is_taken(images_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(images_path.parent)
    box = images_box()
    assert calibration(box, pandas.read_csv(images_path)) == calibration(box, images_path)


def test_what_is_no_such_table_is_said(tmp_path: Path, rows_path: Path) -> None:
    box = rows_box()
    with pytest.raises(DataError, match=r"there is no file .*row\.csv.*rows\.csv"):
        ub.robustness.calibration(box, str(tmp_path / "row.csv"))
    several = tmp_path / "several.csv"
    several.write_text("a,b,c,soil,kind\n1,2,3,clay,yes\n")
    with pytest.raises(DataError, match=r'name the column: ub\.data\.table\(data, box, label="COLUMN"\)'):
        ub.robustness.calibration(box, several)
    assert torch.equal(box.predict(several), box.predict(torch.tensor([[1.0, 2, 3]])))
    (tmp_path / "wrong.csv").write_text("A,b,c,label\n1,2,3,no\n")
    with pytest.raises(InputError, match="no column 'a'; 'A' is spelled like 'a'"):
        box.predict(str(tmp_path / "wrong.csv"))
    for name, advice in (("x.npy", r"np\.load"), ("x.xlsx", r"pandas\.read_excel"), ("x.db", "a table is a .csv")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=rf"{name} is a path: .*{advice}"):
            ub.robustness.calibration(box, tmp_path / name)


def test_an_array_beside_a_path_has_its_labels(rows_path: Path) -> None:
    box, y = rows_box(), torch.arange(N) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = calibration(box, (rows_path, y))
    assert pair == calibration(box, (ROWS, y))
