"""Tables of image files and their labels."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed import loading
from unboxed.cli.app import app
from unboxed.cli.parsing import open_inputs
from unboxed.data.tables import open_table
from unboxed.engine.read.examples import labeled_examples
from unboxed.errors import DataError, InputError, MissingPackageError, UnboxedWarning, UnclearLabelsError
from unboxed.inputs.labels import label_to_text, label_to_value

GRAY = ub.Pixels((1, 8, 8))
NAMES = ("dog", "cat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")
    return tmp_path


def write(root: Path, text: str, name: str = "labels.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def box(classes: Any = NAMES) -> ub.Box:
    return ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), GRAY, classes=classes, outputs="logits")


TABLES = {
    "header": "file,label\n0.png,cat\n1.png,dog\n2.png,cat\n",
    "no header": "0.png,cat\n1.png,dog\n2.png,cat\n",
    "columns swapped": "label,split,filename\ncat,val,0.png\ndog,val,1.png\ncat,val,2.png\n",
    "semicolons, spaces": "Image Path ; Class Name\n 0.png ; cat \n1.png; dog\n\n2.png;cat\n",
    "tabs, a mark, windows": "\ufefffile\tlabel\r\n0.png\tcat\r\n1.png\tdog\r\n2.png\tcat\r\n",
    "quotes": 'path,target\n"0.png","cat"\n"1.png","dog"\n"2.png","cat"\n',
}


@pytest.mark.parametrize("form", TABLES)
def test_a_table_labels_files(form: str, root: Path) -> None:
    path = write(root, TABLES[form])
    plain = ub.data.table(path, GRAY)
    assert [p.name for p in plain.paths] == ["0.png", "1.png", "2.png"]
    assert (plain.classes, [plain[i][1] for i in range(3)]) == (("cat", "dog"), [0, 1, 0])
    for data in (
        ub.data.table(path, box()),
        loading.dataset_with_model_classes(str(path), box()),
        ub.data.table(path, GRAY, NAMES),
    ):
        assert [data[i][1] for i in range(3)] == [1, 0, 1]  # type: ignore[index]
    x, y = plain.tensors()
    torch.testing.assert_close(x[:, 0, 0, 0] * 255, torch.tensor([0.0, 60.0, 120.0]))
    assert y is not None
    model = box()
    accuracy = ub.robustness.calibration(model, plain).accuracy
    assert accuracy == (model.predict(x) == torch.tensor([1, 0, 1])).double().mean()


def test_numbers_are_class_numbers(root: Path) -> None:
    path = write(root, "file,label\n0.png,7\n1.png,3\n")
    data = ub.data.table(path, GRAY)
    assert [data[i][1] for i in range(2)] == [7, 3]
    with pytest.raises(DataError, match=r"labels of .*labels\.csv \(3, 7\) are not the model's 2 classes"):
        ub.data.table(path, box())


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (("7.0", "3.0", "0."), [7, 3, 0]),
        (("1.0", "0", "1"), [1, 0, 1]),
        (("1", "-1", "0"), [1, 0]),  # -1 is none
        (("1.0", "1.5", "1.0"), [0, 1, 0]),  # names
        (("1.0", "cat", "1.0"), [0, 1, 0]),
    ],
)
@pytest.mark.filterwarnings("ignore:a row is left out:unboxed.errors.UnboxedWarning")
def test_whole_numbers_of_spreadsheets(labels: tuple[str, ...], wanted: list[int], root: Path) -> None:
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    data = ub.data.table(write(root, f"file,label\n{rows}"), GRAY)
    assert [data[i][1] for i in range(len(data))] == wanted


WHOLE_NUMBERS = [
    3, 3.0, "3", "3.0", " 3. ", np.float32(3), np.int16(3), np.array(3.0), np.array([3]), torch.tensor(3.0),
    torch.tensor([3]),
]  # fmt: skip
NO_LABELS = [
    None,
    "",
    " ",
    "nan",
    -1,
    -1.0,
    "-1",
    "-1.0",
    math.nan,
    np.float32("nan"),
    np.float64(-1),
    torch.tensor(-1),
]


@pytest.mark.parametrize("label", WHOLE_NUMBERS, ids=repr)
def test_a_whole_number_is_one_in_every_spelling(label: Any) -> None:
    assert label_to_text(label) == "3"
    assert int(ub.Box(nn.Linear(3, 5), ub.Features(tuple("abc")), outputs="logits").class_numbers([label])[0]) == 3


@pytest.mark.parametrize("label", NO_LABELS, ids=repr)
def test_no_label_is_none_in_every_spelling(label: Any) -> None:
    assert label_to_text(label) == ""
    if not isinstance(label, str) or not label.strip():
        assert label_to_value(label) is None


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda y: np.array(y, dtype=object)])
def test_whole_floats_are_classes_at_every_door(kind: Any) -> None:
    box = ub.Box(nn.Linear(3, 12), ub.Features(tuple("abc")), outputs="logits")
    x, y = torch.rand(4, 3), kind([0.0, 11.0, 2.0, 10.0])
    expected = torch.tensor([0, 11, 2, 10])
    assert torch.equal(box.class_labels(y, 4), expected)
    assert torch.equal(labeled_examples(box, (x, y))[1], expected)
    assert torch.equal(ub.attribution.gradient(box, x, y).target, expected)
    texts = [f"{float(k):.1f}" for k in expected]  # not by the order of their names, in which 10.0 is before 2.0
    assert torch.equal(labeled_examples(box, (x, texts))[1], expected)


@pytest.mark.parametrize("y", [[0.5, 1.0], torch.tensor([0.5, 1.0]), np.array([0.5, 1.0])])
def test_numbers_with_a_fraction_are_no_classes(y: Any) -> None:
    box = ub.Box(nn.Linear(3, 5), ub.Features(tuple("abc")), outputs="logits")
    with pytest.raises(InputError, match="must be an int"):
        box.class_labels(y, 2)


@pytest.mark.parametrize(("y", "hint"), [([0, -1], r"\(-1\) out"), (torch.tensor([0, math.nan]), r"\(NaN\) out")])
def test_a_batch_says_what_to_do_with_missing_labels(y: Any, hint: str) -> None:
    box = ub.Box(nn.Linear(3, 5), ub.Features(tuple("abc")), outputs="logits")
    with pytest.raises(InputError, match=f"leave examples without a class {hint}"):
        ub.adversarial.fgsm(box, torch.rand(2, 3), y, eps=0.1)


def test_without_labels(root: Path) -> None:
    assert ub.data.table(write(root, "file\n0.png\n1.png\n"), box()).tensors().y is None
    assert ub.data.table(write(root, "file,label\n0.png,\n"), GRAY).tensors().y is None


def test_what_is_left_out_is_listed(root: Path) -> None:
    (root / "3.png").write_bytes(b"no image")
    path = write(root, "file,label\n0.png,cat\n1.png,dog\n0.png,cat\nnone.png,cat\n3.png,dog\n2.png,\n")
    with pytest.warns(UnboxedWarning, match=r"4 rows are left out of labels\.csv: 0\.png: listed twice, \.\.\.; see"):
        data = ub.data.table(path, GRAY)
    assert [p.name for p in data.paths] == ["0.png", "1.png"]
    assert {p.name: why for p, why in data.skipped} == {
        "0.png": "listed twice",
        "none.png": "there is no such file",
        "3.png": "not an image",
        "2.png": "without a label",
    }


BAD = {
    "two labels": ("0.png,cat\n0.png,dog\n", "has two labels, cat and dog"),
    "no labels": ("file,size\n0.png,3\n", r"which of the columns 'size' has the labels\? Name it"),
    "short rows": ("file,label\n0.png\n", "fewer than 2 columns"),
    "empty": ("", "is empty"),
    "header alone": ("file,label\n", "it has no rows"),
    "nothing found": ("file,label\nnone.png,cat\n", r"none\.png: there is no such file"),
    "other classes": ("file,label\n0.png,cat\n1.png,bird\n", "1 of the 2 labels of .*(bird)"),
}


@pytest.mark.parametrize("form", BAD)
def test_tables_that_hold_no_examples(form: str, root: Path) -> None:
    text, said = BAD[form]
    with pytest.raises(DataError, match=said):
        ub.data.table(write(root, text), box())


def test_wrong_paths(root: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        ub.data.table(root / "none.csv", GRAY)
    with pytest.raises(DataError, match="is no table"):
        ub.data.table(root / "0.png", GRAY)


def test_names_of_any_encoding(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("L", (8, 8), 255).save(root / name)
    (root / "labels.csv").write_bytes(b"file,label\ncaf\xe9.png,cat\n")
    assert ub.data.table(root / "labels.csv", GRAY)[0][0].min() == 1


def test_parquet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "labels.parquet").write_bytes(b"PAR1")
    with monkeypatch.context() as without_pyarrow:
        without_pyarrow.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingPackageError, match="pip install pyarrow"):
            ub.data.table(root / "labels.parquet", GRAY)
    with pytest.raises(DataError, match="no sound Parquet file"):
        ub.data.table(root / "labels.parquet", GRAY)
    parquet.write_table(pa.table({"label": ["dog", "cat"], "path": ["0.png", "1.png"]}), root / "labels.parquet")
    data = ub.data.table(root / "labels.parquet", box())
    assert [(p.name, data[i][1]) for i, p in enumerate(data.paths)] == [("0.png", 0), ("1.png", 1)]


# -- tables of numbers -------------------------------------------------------------------------------------------------

IRIS = ub.Features(("width", "length"), low=0, high=10)


def table_of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "rows.csv").write_text(text)
    return tmp_path / "rows.csv"


def test_a_table_of_numbers_is_read_by_its_columns(tmp_path: Path) -> None:
    path = table_of(tmp_path, "length,species,width\n1,lily,2\n3,rose,4\n5,lily,6\n")
    rows = ub.data.table(path, IRIS)
    x, y = rows.first(3)
    assert x.tolist() == [[2, 1], [4, 3], [6, 5]]
    assert (y.tolist(), rows.classes) == ([0, 1, 0], ("lily", "rose"))
    box = ub.Box(nn.Linear(2, 2), IRIS, classes=("rose", "lily"), outputs="logits")
    assert loading.dataset_with_model_classes(str(path), box).first(3).y.tolist() == [
        1,
        0,
        1,
    ]  # as the model numbers them


def test_numbers_of_classes_and_of_regression(tmp_path: Path) -> None:
    path = table_of(tmp_path, "id,width,length,target\n7,1,2,1.0\n8,3,4,0.0\n")
    assert ub.data.table(path, IRIS).first(2).y.tolist() == [1, 0]
    box = ub.Box(nn.Linear(2, 1), IRIS, outputs="regression")
    rows = loading.dataset_with_model_classes(str(path), box)
    assert rows.first(2).y.tolist() == [1.0, 0.0]
    assert rows[0][1] == 1.0
    unlabeled = ub.data.table(table_of(tmp_path, "width,length\n1,2\n"), IRIS)
    assert (unlabeled.first(1).y, unlabeled[0][1]) == (None, -1)


@pytest.mark.parametrize("outputs", ["logits", "regression"])
def test_rows_without_a_label_are_left_out(outputs: Any, tmp_path: Path) -> None:
    box = ub.Box(nn.Linear(2, 2 if outputs == "logits" else 1), IRIS, outputs=outputs)
    for missing in ("", "nan"):
        path = table_of(tmp_path, f"width,length,label\n1,2,1\n3,4,{missing}\n5,6,0\n")
        with pytest.warns(UnboxedWarning, match=r"rows\.csv: 1 of 3 examples has no label"):
            x, y = ub.data.table(path, box).tensors()
        assert (x.tolist(), y.tolist()) == ([[1, 2], [5, 6]], [1, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width,length,a,b\n1,2,3,4\n", "which of the columns 'a', 'b' has the labels"),
        ("width,label\n1,2\n", "no column 'length'"),
        ("width,length,label\n1,x,0\n", "holds 'x'"),
        ("width,length,label\n1,2,\n", "have no 'label'"),
        ("width,length,label\n", "has no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ub.data.table(table_of(tmp_path, text), IRIS)


def test_a_report_of_a_table_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lines = [f"{i % 10},{i * 3 % 7},{'lily' if i % 2 else 'rose'}" for i in range(40)]
    path = table_of(tmp_path, "\n".join(["width,length,species", *lines]))
    box = ub.Box(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)), IRIS, classes=("rose", "lily"))
    written = ub.report(
        box, loading.dataset_with_model_classes(str(path), box), tmp_path / "r", sections=["overview"], quiet=True
    )
    assert written.failures == {}


def test_labels_of_a_table_that_are_no_classes_are_refused_in_its_own_words(tmp_path: Path) -> None:
    path = table_of(tmp_path, "width,length,label\n1,2,lily\n3,4,rose\n")
    box = ub.Box(nn.Linear(2, 2), IRIS, classes=("oak", "elm"), outputs="logits")
    with pytest.raises(DataError, match=r"rename the labels, or leave them out: a table or file without their column"):
        ub.data.table(path, box)


@pytest.mark.parametrize(
    "words",
    [
        ["attack", "--attack", "fgsm", "--eps", "0.1"],
        ["run", "calibration"],
        ["report", "--sections", "overview"],
        ["doctor"],
    ],
    ids=lambda words: words[0],
)
def test_commands_take_the_column_of_labels(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it they name the option."""
    monkeypatch.setenv("COLUMNS", "300")
    model = tmp_path / "made.py"
    model.write_text(
        "import torch, unboxed as ub\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Linear(2, 2), ub.Features(('width', 'length'))\n"
    )
    table = table_of(tmp_path, "soil,width,length,cultivar\nclay,1,2,0\nsand,3,4,1\nsand,5,6,1\n")
    words = [*words, "--model", f"{model}:make", "--data", str(table), "-q"]
    words += [] if words[0] == "doctor" else ["--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "which of the columns 'soil', 'cultivar' has the labels? Name it: --label COLUMN" in refused.output
    done = CliRunner().invoke(app, [*words, "--label", "cultivar"])
    assert done.exit_code == 0, done.output


def test_the_order_of_classes_that_is_assumed_is_told_as_it_is(tmp_path: Path) -> None:
    opened = ub.Box(nn.Linear(3, 2), ub.Features(tuple("abc")), outputs="logits")
    path = write(tmp_path, "a,b,c,label\n1,2,3,no\n4,5,6,yes\n")
    for classes, order in (
        (["no", "yes"], "the order of their names: 0 is no"),
        (["yes", "no"], "their order there: 0 is yes"),
    ):
        with pytest.warns(UnboxedWarning, match=order):
            ub.robustness.calibration(opened, ub.data.table(path, opened.inputs, classes=classes))


@pytest.mark.parametrize("outputs", ["binary", "logits"])
def test_classes_without_names_are_called_as_their_labels(outputs: Any, tmp_path: Path) -> None:
    """A page that said "predicts 0" made its reader look up which label that is."""
    torch.manual_seed(0)
    path = write(
        tmp_path, "a,b,c,label\n" + "".join(f"{i},{1 - i},0,{'no' if i < 0.5 else 'yes'}\n" for i in (0.1, 0.9, 0.2))
    )
    opened = ub.Box(nn.Linear(3, 1 if outputs == "binary" else 2), ub.Features(tuple("abc")), outputs=outputs)
    with pytest.warns(UnboxedWarning, match="0 is no, 1 is yes"):
        rows = ub.data.table(path, opened)
    assert rows.classes == ("no", "yes")
    assert [y for _, y in (rows[i] for i in range(3))] == [0, 1, 0]
    with pytest.warns(UnboxedWarning, match=r"the labels of labels\.csv are matched"):
        written = ub.report(opened, rows, tmp_path / "out", sections=["overview"], quiet=True)
    assert json.loads((written.path.parent / "report.json").read_text())["classes"] == ["no", "yes"]
    named = ub.Box(opened.model, opened.inputs, outputs=outputs, classes=("yes", "no"))
    assert ub.data.table(path, named).classes == ("yes", "no")


@pytest.mark.parametrize(
    ("outputs", "text", "said"),
    [("regression", "a,y\n1,0.5\n2,3\n", "labels are numbers"), ("logits", "a,y\n1,0\n2,1\n", "2 classes"),
     ("logits", "a\n1\n2\n", "no labels")],
)  # fmt: skip
def test_rows_say_what_their_labels_are(outputs: Any, text: str, said: str, tmp_path: Path) -> None:
    (path := tmp_path / "rows.csv").write_text(text)
    box = ub.Box(nn.Linear(1, 1 if outputs == "regression" else 2), ub.Features(["a"]), outputs=outputs)
    assert repr(ub.data.table(path, box)) == f"Rows('rows.csv', 2 rows of 1 columns, {said})"


@pytest.mark.parametrize("columns", ["file", "file,price", "file,price,color"])
def test_images_of_a_table_need_no_labels_where_none_are_asked_for(columns: str, tmp_path: Path) -> None:
    """Each row is an image, also where one is listed twice or has no label."""
    for k in range(2):
        Image.new("L", (4, 4), 100 * k).save(tmp_path / f"{k}.png")
    rows = [[f"{k % 2}.png", ("2.5", "")[k % 2], "red"][: columns.count(",") + 1] for k in range(3)]
    path = table_of(tmp_path, "\n".join([columns, *map(",".join, rows)]) + "\n")
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), ub.Pixels((1, 4, 4)), outputs="logits")
    assert box(str(path))[:, None].shape == (3, 1, 3)
    if columns != "file":
        with pytest.raises(UnclearLabelsError, match="has the labels"):
            ub.data.table(path, box)
        assert len(open_inputs(str(path), box)) == 3


def test_an_image_without_a_label_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    for k in range(2):
        Image.new("L", (4, 4), 100 * k).save(tmp_path / f"{k}.png")
    path = table_of(tmp_path, "file,label\n0.png,\n1.png,2\n")
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), ub.Pixels((1, 4, 4)), outputs="logits")
    assert [y for _, y in open_table(path, box, keep_unlabeled=True)] == [-1, 2]
    assert [y for _, y in open_table(path, box)] == [2]


def test_the_only_other_column_of_a_regression_has_its_values(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    path = table_of(tmp_path, "file,price\n0.png,2.5\n")
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), ub.Pixels((1, 4, 4)), outputs="regression")
    assert [y for _, y in ub.data.table(path, box)] == [2.5]
