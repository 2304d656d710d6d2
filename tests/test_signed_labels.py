"""Labels -1 and 1 of two classes are refused at every door: -1 means no label, and half of the examples would go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import unboxed as ub
from unboxed import cli
from unboxed.engine.read.examples import labeled_batches, labeled_examples
from unboxed.errors import DataError, InputError, UnboxedError, UnboxedWarning
from unboxed.report.source import ReportData
from unboxed.report.survey import collect_outputs_and_labels

X = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
SIGNED = torch.tensor([-1, 1, 1, -1, 1, -1])
USE_0_AND_1 = "use 0 and 1 for the two classes"


def table_box(n_outputs: int = 1, **settings: Any) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Linear(3, n_outputs), ub.Features(["a", "b", "c"]), **settings)


BOXES: dict[str, Callable[[], ub.Box]] = {
    "one logit": lambda: table_box(outputs="binary"),
    "two logits": lambda: table_box(2, outputs="logits"),
}

DOORS: dict[str, Callable[[ub.Box, Tensor], Any]] = {
    "calibration": lambda box, y: ub.robustness.calibration(box, (X, y)),
    "a list of pairs": lambda box, y: labeled_examples(box, list(zip(X, y.tolist(), strict=True))),
    "a loader": lambda box, y: ub.robustness.calibration(box, DataLoader(TensorDataset(X, y), batch_size=2)),
    "evaluate": lambda box, y: ub.robustness.evaluate(box, (X, y), eps=0.1),
    "attacks": lambda box, y: ub.adversarial.fgsm(box, X, y, eps=0.1),
    "batches": lambda box, y: list(labeled_batches(box, list(zip(X, y.tolist(), strict=True)), 4)),
    "influence": lambda box, y: ub.influence.gradient_dot(box, X, None, (X, y)),
    "report": lambda box, y: collect_outputs_and_labels(
        box, ReportData(list(zip(X, y.tolist(), strict=True)), box), None
    ),
}


@pytest.mark.parametrize("outputs", BOXES)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", [torch.long, torch.float])
def test_two_classes(door: str, outputs: str, dtype: torch.dtype) -> None:
    with pytest.raises(UnboxedError, match=USE_0_AND_1):
        DOORS[door](BOXES[outputs](), SIGNED.to(dtype))


def write_rows(path: Path, labels: list[Any]) -> Path:
    rows = [f"{','.join(map(str, x))},{k}" for x, k in zip(X.tolist(), labels, strict=True)]
    path.write_text("\n".join(["a,b,c,label", *rows]) + "\n")
    return path


@pytest.mark.parametrize("minus_and_plus", [("-1", "1"), ("-1.0", "1.0"), ("-1", "+1")])
def test_a_file_of_rows(tmp_path: Path, minus_and_plus: tuple[str, str]) -> None:
    box = table_box(outputs="binary")
    path = write_rows(tmp_path / "rows.csv", [minus_and_plus[int(k > 0)] for k in SIGNED])
    for like in (box, box.inputs):
        with pytest.raises(DataError, match=USE_0_AND_1):
            ub.data.table(path, like)


MODEL = """
import unboxed as ub
from torch import nn

def make():
    return nn.Linear(3, 1), ub.Features(["a", "b", "c"])
"""


@pytest.mark.parametrize("command", ["attack", "report"])
def test_the_command_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    path = write_rows(tmp_path / "rows.csv", SIGNED.tolist())
    options = ["--eps", "0.1"] * (command == "attack") + [
        "--model",
        f"{tmp_path}/model.py:make",
        "--data",
        str(path),
        "--outputs",
        "binary",
    ]
    result = CliRunner().invoke(cli.app, [command, *options])
    assert result.exit_code == 2
    assert USE_0_AND_1 in " ".join(result.output.replace("│", " ").split())


def test_files_of_images_and_of_texts(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("file,label\na.png,-1\nb.png,1\n")
    (tmp_path / "texts.csv").write_text("text,label\ngood,1\nbad,-1\n")
    with pytest.raises(DataError, match=USE_0_AND_1):
        ub.data.table(tmp_path / "images.csv", ub.Pixels((1, 8, 8)))
    with pytest.raises(DataError, match=USE_0_AND_1):
        ub.data.texts(tmp_path / "texts.csv")


def test_of_other_models_and_labels_minus_one_is_no_label() -> None:
    box, y = table_box(outputs="binary"), torch.tensor([0, 1, -1, 1, 0, -1])
    with pytest.warns(UnboxedWarning, match="2 of 6 examples have no label"):
        assert labeled_examples(box, (X, y))[1].tolist() == [0, 1, 1, 0]
    with pytest.warns(UnboxedWarning, match="3 of 6 examples have no label"):
        assert labeled_examples(table_box(4, outputs="logits"), (X, SIGNED))[1].tolist() == [1, 1, 1]
    with pytest.warns(UnboxedWarning, match="5 of 6 examples have no label"):  # labels of one class alone
        assert labeled_examples(box, (X, [None, 1, *[None] * 4]))[1].tolist() == [1]


MULTILABEL_DOORS: dict[str, Callable[[ub.Box, Tensor], Any]] = {
    "calibration": lambda box, y: ub.robustness.calibration(box, (X, y)),
    "attacks": lambda box, y: ub.adversarial.fgsm(box, X, y, eps=0.1),
    "influence": lambda box, y: ub.influence.gradient_dot(box, X, None, (X, y)),
    "report": lambda box, y: collect_outputs_and_labels(box, ReportData(list(zip(X, y, strict=True)), box), None),
}


@pytest.mark.parametrize("door", MULTILABEL_DOORS)
def test_several_labels(door: str) -> None:
    y = torch.stack([SIGNED, -SIGNED], 1)
    with pytest.raises((InputError, DataError), match=r"a yes or no for each label is 1 or 0: pass \(y \+ 1\) / 2"):
        MULTILABEL_DOORS[door](table_box(2, outputs="multilabel"), y)
    MULTILABEL_DOORS[door](table_box(2, outputs="multilabel"), (y + 1) // 2)
