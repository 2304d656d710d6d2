"""Tables with a column for each output: yes/no labels, several numbers, of rows and of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.read.examples import examples_with_unread_labels
from unboxed.errors import DataError, UnboxedWarning
from unboxed.loading.sources import dataset_with_model_classes

NAMES = ("red", "big", "new")
INPUTS = ub.Features(["a", "b"])
YES = {1: (True, 1, "yes"), 0: (False, 0, "no")}


def frame(n: int = 6) -> tuple[pd.DataFrame, Tensor]:
    """Rows whose labels are written in three ways, and what they are."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, 3))
    columns = {name: [YES[int(v)][k] for v in y[:, k]] for k, name in enumerate(NAMES)}
    return pd.DataFrame({"new": columns["new"], "id": range(n), "b": rng.random(n), "a": rng.random(n),
                         "red": columns["red"], "big": columns["big"]}), torch.tensor(y)  # fmt: skip


def box(outputs: Any = "multilabel", classes: Any = NAMES, n: int = 3) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Linear(2, n), INPUTS, outputs=outputs, classes=classes)


def written(data: pd.DataFrame, path: Path) -> Path:
    data.to_parquet(path) if path.suffix == ".parquet" else data.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["frame", "rows.csv", "rows.parquet"])
def test_columns_that_are_called_as_the_outputs_are_the_labels(form: str, tmp_path: Path) -> None:
    data, y = frame()
    given: Any = data if form == "frame" else written(data, tmp_path / form)
    x = torch.tensor(data[["a", "b"]].to_numpy().copy(), dtype=torch.float32)
    for opened in (given, ub.data.table(given, box()), ub.data.table(given, box()).first(6)):
        found = examples_with_unread_labels(box(), opened)
        torch.testing.assert_close(found.x, x)
        assert torch.equal(torch.stack(list(found.labels)), y.float())  # type: ignore[arg-type]
    wanted = ub.robustness.evaluate_outputs(box(), (x, y), eps=[0.1])
    assert ub.robustness.evaluate_outputs(box(), given, eps=[0.1]).clean == wanted.clean
    if form != "frame":
        assert len(dataset_with_model_classes(str(given), box())) == 6  # type: ignore[arg-type]
    assert "3 labels each" in repr(ub.data.table(given, box()))


def test_a_row_without_one_of_its_labels_is_left_out() -> None:
    data, y = frame()
    data["new"] = data["new"].astype(object)
    data.loc[2, "new"] = None
    with pytest.warns(UnboxedWarning, match="1 of 6 examples has no label"):
        found = examples_with_unread_labels(box(), data)
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(torch.stack(list(found.labels)), y[kept].float())  # type: ignore[arg-type]


def test_several_numbers_and_one_among_other_columns() -> None:
    data, _ = frame()
    data[list(NAMES)] = np.arange(18.0).reshape(6, 3)
    several = examples_with_unread_labels(box("regression"), data)
    assert torch.equal(torch.stack(list(several.labels)), torch.arange(18.0).view(6, 3))  # type: ignore[arg-type]
    one = examples_with_unread_labels(box("regression", ["big"], 1), data)
    assert torch.as_tensor(one.labels).flatten().tolist() == [1, 4, 7, 10, 13, 16]


def test_images_have_such_columns_too(tmp_path: Path) -> None:
    rows = [(f"{i}.png", i % 2, i // 2) for i in range(4)]
    for name, *_ in rows:
        Image.new("L", (4, 4), 60).save(tmp_path / name)
    table = pd.DataFrame([*rows, rows[0], ("none.png", 0, 0)], columns=["file", "odd", "late"])
    path = written(table, tmp_path / "labels.csv")
    opened = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ub.Pixels((1, 4, 4)), outputs="multilabel",
                    classes=["late", "odd"])  # fmt: skip
    with pytest.warns(UnboxedWarning, match="2 rows are left out"):
        data = ub.data.table(path, opened)
    assert [data[i][1].tolist() for i in range(4)] == [[i // 2, i % 2] for i in range(4)]  # type: ignore[attr-defined]
    written(pd.concat([table, pd.DataFrame([("0.png", 1, 1)], columns=table.columns)]), path)
    with pytest.raises(DataError, match=r"0\.png is listed twice, with other labels"):
        ub.data.table(path, opened)


def test_without_names_of_outputs_it_is_said_what_names_them() -> None:
    data, _ = frame()
    with pytest.raises(DataError, match=r"a table with a column for each output, called as it is \(classes=\)"):
        ub.robustness.evaluate_outputs(box(classes=None), data, eps=[0.1])
    data["red"] = "maybe"
    with pytest.raises(DataError, match="'red' holds 'maybe'"):
        ub.data.table(data, box())
