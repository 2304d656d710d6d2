"""A guess about the order of classes stands beside the accuracy that depends on it, whatever brought the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cli import app
from unboxed.loading import dataset_with_model_classes

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
GUESS = "matched to the 3 classes in the order of their names: 0 is ant, 1 is bee, 2 is cat"
NAMES = ("ant", "bee", "cat")


def open_box(classes: tuple[str, ...] | None = None) -> ub.Box:
    """A model whose class k has the brightest quarter k."""
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(3, 4) * 50)
    return ub.Box(model, ub.Pixels((1, 8, 8)), classes=classes, outputs="logits")


def write_folders(folder: Path, shift: int) -> Path:
    """Images whose class of the model is that of their folder, plus `shift`."""
    for k, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        pixels = torch.zeros(8, 8, dtype=torch.uint8)
        row, column = divmod((k + shift) % 3, 2)
        pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
        for i in range(8):
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


def opened_like_the_command(folder: Path, box: ub.Box) -> Any:
    return dataset_with_model_classes(str(folder), box)


def opened_in_python(folder: Path, box: ub.Box) -> Any:
    return ub.data.folder(folder, box.inputs)


def table_like_the_command(folder: Path, box: ub.Box) -> Any:
    rows = [f"{p.relative_to(folder)},{p.parent.name}" for p in sorted(folder.glob("*/*.png"))]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return dataset_with_model_classes(str(folder / "labels.csv"), box)


@pytest.mark.parametrize("opened", [opened_like_the_command, opened_in_python, table_like_the_command])
@pytest.mark.parametrize("classes", [None, NAMES])
def test_the_page_and_its_numbers(opened: Any, classes: tuple[str, ...] | None, tmp_path: Path) -> None:
    box = open_box(classes)
    data = opened(write_folders(tmp_path / "photos", shift=0), box)
    path = ub.report(box, data, tmp_path / "out", sections=["overview"], quiet=True).path
    assert (GUESS in path.read_text(encoding="utf-8")) == (classes is None)
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["findings"]["overview"]["class_order"]
    assert [GUESS in note for note in notes] == [True] * (classes is None)


def test_an_accuracy_below_guessing_is_said_on_the_page(tmp_path: Path) -> None:
    data = opened_in_python(write_folders(tmp_path / "photos", shift=1), open_box(NAMES))
    path = ub.report(open_box(NAMES), data, tmp_path / "out", sections=["overview"], quiet=True).path
    assert "An accuracy of 0.0% is below the 33.3% of guessing" in path.read_text(encoding="utf-8")


MODEL = """
import torch
from torch import nn
model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3, bias=False))
"""


@pytest.mark.parametrize("command", ["predict", "attack"])
@pytest.mark.parametrize("classes", [(), ("--classes", "ant,bee,cat")])
def test_predictions_and_attacks_save_it(command: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    data, out = str(write_folders(tmp_path / "photos", shift=0)), tmp_path / "out"
    words = ["--eps", "0.1", "--attack", "fgsm"] if command == "attack" else []
    file = out / "attack.json" if command == "attack" else tmp_path / "out.json"
    to = str(out if command == "attack" else file)
    model = ["--model", f"{tmp_path}/mine.py:model", "--shape", "1,8,8", "--data", data, *classes]
    done = CliRunner().invoke(app, [command, *model, *words, "-o", to, "-q"])
    assert done.exit_code == 0, done.output
    said = GUESS in " ".join(done.stdout.split())
    notes = json.loads(file.read_text())["class_order"]
    assert said == any(GUESS in note for note in notes) == (not classes)
