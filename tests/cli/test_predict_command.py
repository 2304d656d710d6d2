"""`unboxed predict`: what a model answers, to photos, rows, texts and signals, beside the model's own forward pass."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cli import app
from unboxed.cli.predict import open_examples, predict, run_predict
from unboxed.data.texts import open_texts
from unboxed.engine.read.class_labels import box_with_names_of_data
from unboxed.errors import UnboxedWarning

SOURCE = """
import torch, unboxed as ub
from torch import nn
from torch.utils.data import TensorDataset

def _made(*layers):
    model, generator = nn.Sequential(*layers).eval(), torch.Generator().manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    return model

def photo():
    return _made(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), ub.Pixels((3, 8, 8))

def seg():
    return _made(nn.Conv2d(3, 4, 3, padding=1)), ub.Pixels((3, 8, 8))

def rows():
    return _made(nn.Linear(2, 3)), ub.Features(["age", "bmi"])

def price():
    return _made(nn.Linear(2, 1)), ub.Features(["age", "bmi"])

def signal():
    return _made(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 2)), ub.Pixels((1, 32))

class Two(nn.Linear):
    def forward(self, x):
        return {"near": super().forward(x), "far-off": -super().forward(x), "of both": x}

def two():
    return Two(2, 3), ub.Features(["age", "bmi"])

def tags():
    return _made(nn.Flatten(), nn.Linear(192, 3)), ub.Pixels((3, 8, 8))

def price_of_photo():
    return _made(nn.Flatten(), nn.Linear(192, 1)), ub.Pixels((3, 8, 8))

tagged = TensorDataset(torch.rand(5, 3, 8, 8), torch.tensor([[0, 1, 1]] * 5))
maps = TensorDataset(torch.rand(5, 3, 8, 8), torch.randint(0, 4, (5, 8, 8)))
"""
IMAGES = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
ROWS = torch.tensor([[3.0, 1.5], [0.4, 2.0], [-1.0, 1.0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    for i, image in enumerate(IMAGES):
        file = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"scan{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"no image")
    return tmp_path


def invoke(folder: Path, model: str, *words: object) -> Any:
    return CliRunner().invoke(app, ["predict", "--model", f"{folder / 'mine.py'}:{model}", *map(str, words)])


def written(folder: Path, model: str, *words: object) -> dict[str, Any]:
    done = invoke(folder, model, *words, "-o", folder / "out.json")
    assert done.exit_code == 0, done.output
    return json.loads((folder / "out.json").read_text())  # type: ignore[no-any-return]


def module(folder: Path, name: str) -> nn.Module:
    scope: dict[str, Any] = {}
    exec((folder / "mine.py").read_text(), scope)
    return scope[name]()[0].requires_grad_(False)  # type: ignore[no-any-return]


def test_photos_have_their_file_label_and_classes(folder: Path) -> None:
    done = invoke(folder, "photo", "--data", folder / "photos", "--classes", "dog,cat", "-o", folder / "out.csv")
    assert done.exit_code == 0, done.output
    with (folder / "out.csv").open() as file:
        records = {Path(r["file"]).name: r for r in csv.DictReader(file)}
    assert {*records} == {f"scan{i}.png" for i in range(4)}
    x = torch.tensor(IMAGES).movedim(3, 1).float() / 255
    probs = module(folder, "photo")(x).softmax(1)
    n_right = 0
    for i, row in enumerate(probs):
        record = records[f"scan{i}.png"]
        assert float(record["probability"]) == pytest.approx(float(row.max()), abs=1e-5)
        assert float(record["probability_2"]) == pytest.approx(float(row.min()), abs=1e-5)
        assert record["prediction"] == ("dog", "cat")[int(row.argmax())]
        assert record["label"] == ("cat", "dog")[i % 2]
        n_right += record["prediction"] == record["label"]
    assert f"accuracy {n_right / 4:.1%}" in done.output
    assert "broken.png" in done.output
    assert written(folder, "photo", "--data", folder / "photos" / "cat")["scores"] == {}


def test_rows_with_and_without_labels(folder: Path) -> None:
    table = folder / "rows.csv"
    table.write_text("bmi,age,label\n" + "".join(f"{bmi},{age},{k}\n" for k, (age, bmi) in enumerate(ROWS.tolist())))
    labeled = written(folder, "rows", "--data", table, "--top", 1)
    expected = module(folder, "rows")(ROWS).argmax(1)
    assert [r["prediction"] for r in labeled["predictions"]] == [str(k) for k in expected.tolist()]
    assert labeled["scores"]["accuracy"]["count"] == int((expected == torch.arange(3)).sum())
    assert "prediction_2" not in labeled["predictions"][0]
    table.write_text("bmi,age\n1.5,3\n")
    assert "label" not in written(folder, "rows", "--data", table)["predictions"][0]
    table.write_text("bmi,age,soil,kind\n1.5,3,clay,1\n")
    box = ub.load(f"{folder / 'mine.py'}:rows")
    with pytest.warns(UnboxedWarning, match="predicted without labels: .*which of the columns 'soil', 'kind'"):
        found = run_predict(box, open_examples(str(table), box))
    assert found.scores == {}
    assert found.records[0]["prediction"] == box.classes[int(box.predict(torch.tensor([[3.0, 1.5]])))]


def test_numbers_have_the_name_and_unit_of_their_column(folder: Path) -> None:
    table, prices = folder / "rows.csv", (10.0, 12.5, -3.0)
    rows = zip(ROWS.tolist(), prices, strict=True)
    table.write_text("age,bmi,price (USD)\n" + "".join(f"{age},{bmi},{p}\n" for (age, bmi), p in rows))
    found = written(folder, "price", "--data", table, "--outputs", "regression")
    outputs = module(folder, "price")(ROWS)[:, 0]
    assert [r["price (USD)"] for r in found["predictions"]] == pytest.approx(outputs.tolist(), abs=1e-5)
    assert [r["label"] for r in found["predictions"]] == pytest.approx(prices)
    error = (outputs - torch.tensor(prices)).abs().mean()
    assert found["scores"]["MAE"]["value"] == pytest.approx(float(error), rel=1e-4)


def test_images_without_labels_are_no_numbers(folder: Path) -> None:
    """Each has the label -1, which of a regression would be a true value."""
    words = "--data", folder / "photos" / "cat", "--outputs", "regression"
    found = written(folder, "price_of_photo", *words)
    assert found["scores"] == {}
    assert "label" not in found["predictions"][0]
    model = "--model", f"{folder / 'mine.py'}:price_of_photo"
    done = CliRunner().invoke(app, ["attack", *map(str, (*model, *words, "--eps", ".1", "-o", folder / "attacked"))])
    assert done.exit_code == 2
    assert "these examples have no labels" in done.output


def test_signals_of_an_array(folder: Path) -> None:
    x = np.random.default_rng(0).random((3, 1, 32), dtype=np.float32)
    np.save(folder / "x.npy", x)
    found = written(folder, "signal", "--data", folder / "x.npy", "--n", 2)
    expected = module(folder, "signal")(torch.tensor(x[:2])).softmax(1).amax(1)
    assert [r["probability"] for r in found["predictions"]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_several_labels_have_a_probability_each(folder: Path) -> None:
    words = "--data", f"{folder / 'mine.py'}:tagged", "--outputs", "multilabel", "--classes", "red,round,old"
    found = written(folder, "tags", *words)
    assert all({"red", "round", "old"} <= {*r} and 0 <= r["old"] <= 1 for r in found["predictions"])
    assert {*found["scores"]} == {"label accuracy", "exact match"}


def test_label_maps_are_files_with_the_class_of_each_pixel(folder: Path) -> None:
    found = written(folder, "seg", "--data", folder / "photos" / "dog")
    logits = module(folder, "seg")(torch.tensor(IMAGES[1::2]).movedim(3, 1).float() / 255)
    for record, classes in zip(found["predictions"], logits.argmax(1), strict=True):
        with Image.open(record["map"]) as image:
            assert np.array_equal(np.array(image), classes.numpy())
        shares = classes.flatten().bincount(minlength=4) / 64
        assert record["share"] == pytest.approx(float(shares.max()))
    assert found["scores"] == {}
    labeled = written(folder, "seg", "--data", f"{folder / 'mine.py'}:maps")
    assert {*labeled["scores"]} == {"pixel accuracy", "mean IoU"}


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    box, data = ub.load("zoo:digits-cnn"), ub.data.digits("test")
    whole = predict(box, data, 23, 2)
    monkeypatch.setattr("unboxed.cli.predict.data_examples_per_batch", lambda box: 5)
    parts = predict(box, data, 23, 2)
    assert len(parts.records) == parts.n_labeled == 23
    assert [{**r, "probability": 0, "probability_2": 0} for r in parts.records] == [
        {**r, "probability": 0, "probability_2": 0} for r in whole.records
    ]
    assert parts.scores["accuracy"] == whole.scores["accuracy"]
    x, y = data.first(23)
    assert parts.scores["accuracy"].count == int(
        (box.model((x - box.inputs.mean) / box.inputs.std).argmax(1) == y).sum()
    )


def test_what_can_not_be_predicted_is_said(folder: Path) -> None:
    for words, text in (
        ((), "what is to be predicted?"),
        (("--text", "a good film"), "takes"),
        (("--data", folder / "photos", "-o", folder / "out"), "predictions are written as .csv or .json"),
    ):
        done = invoke(folder, "photo", *words)
        assert done.exit_code == 2
        assert text in " ".join(done.output.split())


def test_an_accuracy_below_chance_points_to_the_order_of_the_classes(folder: Path) -> None:
    rows = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    predicted = module(folder, "rows")(rows).argmax(1)
    for shift in (0, 1):  # the classes' own order, and another
        lines = [f"{a},{b},{int(k + shift) % 3}" for (a, b), k in zip(rows.tolist(), predicted.tolist(), strict=True)]
        (folder / "rows.csv").write_text("\n".join(["age,bmi,label", *lines]))
        words = "--model", f"{folder / 'mine.py'}:rows", "--data", str(folder / "rows.csv")
        done = invoke(folder, "rows", *words[2:])
        attacked = CliRunner().invoke(app, ["attack", *words, "--eps", "0.01", "-q", "-o", str(folder / "a")])
        for output in (done.output, attacked.output):
            assert ("is below the 33.3% of guessing" in " ".join(output.split())) == bool(shift)
            assert ("Give the names in the order of the outputs: --classes" in " ".join(output.split())) == bool(shift)


@pytest.mark.parametrize(("model", "labels"), [("rows", (None, "1", "2")), ("price", (None, 1.0, 2.5))])
def test_what_has_no_label_is_predicted_and_keeps_its_place(folder: Path, model: str, labels: Any) -> None:
    """Left out, it took the numbers of all that follow it."""
    table = folder / "some.csv"
    cells = ["" if k is None else k for k in labels]
    table.write_text(
        "age,bmi,label\n" + "".join(f"{a},{b},{k}\n" for (a, b), k in zip(ROWS.tolist(), cells, strict=True))
    )
    box = ub.load(f"{folder / 'mine.py'}:{model}", outputs="regression" if model == "price" else None)
    data = open_examples(str(table), box)
    found = predict(box_with_names_of_data(box, data), data, None, 1)
    assert [record["example"] for record in found.records] == [0, 1, 2]
    assert [record.get("label") for record in found.records] == list(labels)
    assert found.n_labeled == 2
    if model == "rows":
        assert [r["prediction"] for r in found.records] == [box.classes[k] for k in box.predict(ROWS).tolist()]
    else:  # the column of the true values is called "label"
        assert [r["output"] for r in found.records] == pytest.approx(box(ROWS)[:, 0].tolist())


def test_a_text_without_a_label_is_predicted_and_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,label\na,pos\nb,\nc,neg\n")
    with pytest.warns(UnboxedWarning, match="label"):
        assert len(ub.data.texts(path)) == 2
    kept = open_texts(path, keep_unlabeled=True)
    assert (kept.texts, kept.labels, kept.classes) == (["a", "b", "c"], [1, -1, 0], ("neg", "pos"))


def test_one_of_several_outputs_is_named(folder: Path) -> None:
    np.save(folder / "rows.npy", ROWS.numpy())
    words = "--data", folder / "rows.npy", "--classes", "a,b,c"
    done = invoke(folder, "two", *words)
    assert done.exit_code == 2
    assert "--output 'near' is (3, 3), --output 'far-off' is (3, 3), --output 'of both' is (3, 2)" in done.stderr
    near, far = (written(folder, "two", *words, "--output", key) for key in ("near", "far-off"))
    assert near != far
    done = invoke(folder, "rows", *words, "--output", "near")
    assert "there is no 'near' in the model's output, a tensor (3, 3)" in done.stderr


def test_the_device_is_that_of_the_option(folder: Path) -> None:
    words = "--data", folder / "photos", "--classes", "cat,dog"
    assert written(folder, "photo", *words, "--device", "cpu") == written(folder, "photo", *words)
    done = invoke(folder, "photo", *words, "--device", "nowhere")
    assert done.exit_code == 2
    assert "error: the model can't run on device='nowhere'" in done.stderr
    assert ub.load("zoo:digits-cnn", device="cpu").device.type == "cpu"


@pytest.mark.parametrize(
    "words",
    [
        ("report", "--data", "digits"),
        ("doctor", "--data", "digits"),
        ("explain", "photos/cat/scan0.png"),
        ("dissect", "--data", "digits"),
        ("attack", "--data", "digits", "--eps", "0.1"),
        ("influence", "--train", "digits", "--query", "digits"),
        ("concepts", "--data", "digits"),
        ("run", "gradient", "--data", "digits"),
    ],
)
def test_all_commands_that_open_a_model_take_its_device(folder: Path, words: tuple[str, ...]) -> None:
    words = tuple(word.replace("photos", str(folder / "photos")) for word in words)
    done = CliRunner().invoke(app, [*words, "--model", "zoo:digits-cnn", "--device", "nowhere"])
    assert "can't run on device='nowhere'" in done.stderr, done.output
