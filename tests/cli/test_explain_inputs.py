"""`unboxed explain` on what a model takes: rows of a table, arrays, signals, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli
from unboxed.cli.parsing import parse_baseline
from unboxed.errors import DataError, InputError, UnboxedError
from unboxed.loading.input_files import read_array, read_inputs

SOURCE = """
import torch, unboxed as ub
from torch import nn

def _made(inputs, *layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval(), inputs

def table():
    columns = ub.Features(("age", "height"), mean=(40, 1.7), std=(10, .1))
    return _made(columns, nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))

def signal():
    return _made(ub.Pixels((1, 32)), nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(112, 2))

def image():
    return _made(ub.Pixels((3, 12, 12)), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
"""
ROWS = "height,name,age\n1.8,Ann,33\n1.6,Bob,60\n1.7,Cid,41\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "rows.tsv").write_text(ROWS.replace(",", "\t"))
    generator = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", np.array([[33, 1.8], [60, 1.6]]))
    np.save(tmp_path / "signal.npy", generator.random((1, 32)))
    np.savez(tmp_path / "image.npz", x=(generator.random((12, 12, 3)) * 255).astype(np.uint8))
    for name in ("cat/1", "dog/1", "dog/2"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((generator.random((12, 12, 3)) * 255).astype(np.uint8)).save(tmp_path / f"images/{name}.png")
    (tmp_path / "images" / "dog" / "broken.png").write_bytes(b"none")
    return tmp_path / "mine.py"


def run(file: Path, kind: str, name: str, *words: Any) -> Result:
    model = ["--model", f"{file}:{kind}", "--method", "gradient", "--method", "occlusion", "-q"]
    where = [str(file.parent / name), "-o", str(file.parent / "out")]
    return CliRunner().invoke(cli.app, ["explain", *where, *model, *map(str, words)])


@pytest.mark.parametrize(
    ("kind", "name", "names"),
    [
        ("table", "rows.csv", ["rows-0", "rows-1", "rows-2"]),
        ("table", "rows.tsv", ["rows-0", "rows-1", "rows-2"]),
        ("table", "rows.npy", ["rows-0", "rows-1"]),
        ("signal", "signal.npy", [""]),
        ("image", "image.npz", [""]),
        ("image", "images", ["cat-1", "dog-1", "dog-2"]),
    ],
)
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_each_input_has_a_figure_and_numbers(kind: str, name: str, names: list[str], file: Path) -> None:
    done = run(file, kind, name)
    assert done.exit_code == 0, done.output
    out = file.parent / "out"
    for folder in names:
        assert (out / folder / "explained.png").stat().st_size > 1000
        assert set(json.loads((out / folder / "explained.json").read_text())["methods"]) == {"gradient", "occlusion"}
    assert {p.name for p in out.iterdir() if p.is_dir()} - {"maps"} == set(filter(None, names))
    assert (out / "verdicts.json").is_file()
    assert done.output.count("One example decides") == 1


def test_the_first_so_many_are_explained(file: Path) -> None:
    assert run(file, "table", "rows.csv", "--n", 2).exit_code == 0
    assert {p.name for p in (file.parent / "out").iterdir()} == {"rows-0", "rows-1", "verdicts.json"}
    assert "--n must be a whole number, 1 or more" in run(file, "table", "rows.csv", "--n", 0).output


def test_one_row_is_explained_by_its_number(file: Path) -> None:
    wanted = ub.explain(ub.load(f"{file}:table"), torch.tensor([[60.0, 1.6]]), methods=["gradient", "occlusion"])
    done = run(file, "table", "rows.csv", "--row", 1, "--json")
    (found,) = json.loads(done.stdout)
    assert found["outputs"] == pytest.approx(wanted.to_dict()["outputs"])
    assert "rows-1" in (file.parent / "out" / "explained.html").read_text()
    assert "--row is from 0 to 2 here; got 3" in run(file, "table", "rows.csv", "--row", 3).output
    assert "--row must be a whole number, 0 or more" in run(file, "table", "rows.csv", "--row", -1).output


def test_a_baseline_is_a_kind_a_number_or_the_mean_of_a_file(file: Path) -> None:
    words = ("--n", 1, "--method", "gradient_x_input", "--json", "--baseline")
    for name, values in ((file.parent / "rows.csv", (44.66667, 1.7)), ("mean", (40, 1.7)), ("0", (0, 0))):
        box, x = ub.load(f"{file}:table"), torch.tensor([[33, 1.8]])
        expected = ub.attribution.gradient_x_input(box, x, baseline=torch.tensor(values)).map[0]
        seen = parse_baseline(str(name), box)
        assert torch.allclose(ub.attribution.gradient_x_input(box, x, baseline=seen).map[0], expected, atol=1e-4)
        (said,) = json.loads(run(file, "table", "rows.csv", *words, name).stdout)
        assert "baseline=" in said["methods"]["gradient_x_input"]["settings"]
    missing = run(file, "table", "rows.csv", *words, "none.csv")
    assert missing.exit_code == 2
    assert "--baseline" in missing.output
    assert "got 'nonsense'" in run(file, "table", "rows.csv", *words, "nonsense").output


def test_columns_are_found_by_name(file: Path) -> None:
    box = ub.load(f"{file}:table")
    for name in ("rows.csv", "rows.tsv"):
        assert torch.allclose(read_inputs(file.parent / name, box, 2).x, torch.tensor([[33, 1.8], [60, 1.6]]))
    parquet.write_table(pyarrow.table({"height": [1.8], "age": [33]}), file.parent / "rows.parquet")
    assert torch.allclose(read_inputs(file.parent / "rows.parquet", box, 2).x, torch.tensor([[33, 1.8]]))


@pytest.mark.parametrize(
    ("kind", "name", "content", "error", "said"),
    [
        ("table", "a.csv", "age,weight\n3,4\n", DataError, "no column 'height'"),
        ("table", "a.csv", "age,height\n3,tall\n", DataError, "'height' holds 'tall'"),
        ("table", "a.csv", "age,height\n", DataError, "no rows"),
        ("table", "a.csv", "age,height\n3\n", DataError, "fewer than its 2 columns"),
        ("table", "a.png", "", DataError, "takes the rows of a table"),
        ("signal", "a.png", "", DataError, "arrays of the shape"),
        ("signal", "a.npy", "broken", DataError, "no sound array"),
    ],
)
def test_other_files_are_refused(
    kind: str, name: str, content: str, error: type[Exception], said: str, file: Path
) -> None:
    (file.parent / name).write_text(content)
    with pytest.raises(error, match=said):
        read_inputs(file.parent / name, ub.load(f"{file}:{kind}"), 2)


def test_arrays_that_do_not_fit_are_refused(file: Path) -> None:
    box = ub.load(f"{file}:signal")
    np.save(file.parent / "long.npy", np.zeros((1, 33)))
    with pytest.raises(InputError, match="long"):
        read_inputs(file.parent / "long.npy", box, 2)
    np.savez(file.parent / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DataError, match="one array of inputs; it holds 'a', 'b'"):
        read_inputs(file.parent / "two.npz", box, 2)
    np.save(file.parent / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no sound array"):
        read_inputs(file.parent / "objects.npy", box, 2)
    (file.parent / "none").mkdir()
    with pytest.raises(DataError, match="holds no such files"):
        read_inputs(file.parent / "none", box, 2)


@pytest.mark.parametrize(("size", "layer"), [((6, 6), nn.Conv2d(1, 2, 6)), ((9,), nn.Conv1d(1, 2, 9))])
def test_a_batch_of_one_channel_may_leave_out_its_axis(size: Any, layer: nn.Module, tmp_path: Path) -> None:
    box = ub.Box(nn.Sequential(layer, nn.Flatten()), ub.Pixels((1, *size)), outputs="logits")
    x = np.random.default_rng(0).random((5, *size)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert torch.equal(read_array(tmp_path / "x.npy", box).flatten(1), torch.tensor(x).flatten(1))
    np.save(tmp_path / "none.npy", np.float32(3))
    with pytest.raises(UnboxedError):
        read_array(tmp_path / "none.npy", box)
