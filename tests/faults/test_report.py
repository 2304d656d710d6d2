"""What can go wrong with a report: bad data, bad places, full disks. Nothing half-written is left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unboxed import Box, Pixels
from unboxed.errors import DataError, InputError, OutputError, WriteError
from unboxed.report import Finding, Section, report
from unboxed.report.context import ReportContext

QUICK = ["overview", "reproduce"]


class Counting(nn.Module):
    """Counts how often it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.fc(x.flatten(1))


@pytest.fixture
def box() -> Box:
    torch.manual_seed(0)
    return Box(Counting().eval(), Pixels((1, 8, 8)))


EXAMPLES = (torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1]))


def test_a_place_that_can_not_be_written_is_refused_before_any_work(box: Box, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    runs = box.model.runs
    with pytest.raises(WriteError, match="is a file; a report needs a folder"):
        report(box, EXAMPLES, tmp_path / "file", quiet=True)
    with pytest.raises(WriteError, match="Choose a folder"):
        report(box, EXAMPLES, tmp_path / "file" / "out", quiet=True)
    assert box.model.runs == runs
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("examples", "error", "words"),
    [
        (torch.rand(0, 1, 8, 8), DataError, "empty"),
        ([], DataError, "empty"),
        (torch.rand(2, 1, 8, 9), DataError, r"\(1, 8, 9\)"),
        (torch.rand(2, 1, 8, 8) * 255, DataError, "divide them by 255"),
        (torch.full((2, 1, 8, 8), float("nan")), DataError, "NaN"),
        ((torch.rand(2, 1, 8, 8), torch.tensor([0, 7])), DataError, "label 7; the model has classes 0 to 2"),
        (3, DataError, "got int"),
        (iter([1]), DataError, "is a int"),
    ],
)
def test_bad_data_are_refused_and_leave_nothing(
    box: Box, examples: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        report(box, examples, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_bad_table_is_refused(tmp_path: Path) -> None:
    from unboxed import Features

    table = Box(nn.Linear(2, 2), Features(("a", "b"), low=(0, 0), high=(1, 1)))
    with pytest.raises(InputError, match="column 'a' must be in"):
        report(table, torch.full((3, 2), 7.0), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def earlier(box: Box, tmp_path: Path) -> dict[str, bytes]:
    """A report that is there already."""
    report(box, EXAMPLES, tmp_path, sections=["overview", "activations"], quiet=True)
    return held(tmp_path)


def held(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_the_earlier_report(
    box: Box, earlier: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name == "index.html":
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left"):
        report(box, EXAMPLES, tmp_path, sections=QUICK, quiet=True)
    assert held(tmp_path) == earlier


def test_an_image_that_can_not_be_written_ends_the_report(
    box: Box, earlier: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name == "filters.png":
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left"):
        report(box, EXAMPLES, tmp_path, sections=["activations"], quiet=True)
    assert held(tmp_path) == earlier


def test_whatever_is_raised_leaves_nothing(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["unboxed.report"], "render_page", broken)
    with pytest.raises(ZeroDivisionError):
        report(box, EXAMPLES, tmp_path / "new", sections=QUICK, quiet=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "named", [["../mine.txt"], ["pictures/../mine.txt"], ["/mine.txt"], ["mine.txt"], [3, None], "pictures", {"a": 1}]
)
def test_a_forged_list_of_files_deletes_nothing(named: Any, box: Box, tmp_path: Path) -> None:
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    kept = [tmp_path / "mine.txt", tmp_path / "out" / "mine.txt"]
    for path in kept:
        path.write_text("mine")
    (tmp_path / "out" / "report.json").write_text(json.dumps({"files": named}))
    report(box, EXAMPLES, tmp_path / "out", sections=QUICK, quiet=True)
    assert [path.read_text() for path in kept] == ["mine", "mine"]
    assert (tmp_path / "out" / "index.html").is_file()


def test_an_error_without_words_and_one_with_many(box: Box, tmp_path: Path) -> None:
    def silent(context: ReportContext) -> Finding:
        raise KeyError

    def loud(context: ReportContext) -> Finding:
        raise ValueError("x" * 5000)

    sections = [Section("A", "a", silent, list), Section("B", "b", loud, list)]
    failures = report(box, EXAMPLES, tmp_path, sections=sections, quiet=True).failures
    assert failures["a"] == "KeyError"
    assert len(failures["b"]) < 400


def test_a_model_that_outputs_nan_is_refused(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] / 0 * 0

    box = Box(Broken(), Pixels((1, 8, 8)), outputs="logits")
    with pytest.raises(OutputError, match="outputs NaN for 5 of 5 examples"):
        report(box, EXAMPLES, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_quiet_says_nothing_and_else_only_stderr_speaks(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(box, EXAMPLES, tmp_path, sections=QUICK, quiet=True)
    assert capsys.readouterr() == ("", "")
    report(box, EXAMPLES, tmp_path, sections=QUICK)
    out, err = capsys.readouterr()
    assert out == ""
    assert "How good is it?" in err


def test_files_that_can_not_be_read_are_reported_on_stderr_unless_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unboxed import data
    from unboxed.plots import colors, save

    box = Box(Counting().eval(), Pixels((1, 8, 8)), classes=("a", "b", "c"))
    for name in box.classes:
        save(colors.image_to_rgb(torch.rand(1, 8, 8)), tmp_path / "in" / name / "0.png")
    whole = (tmp_path / "in" / "a" / "0.png").read_bytes()
    (tmp_path / "in" / "a" / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "in" / "b" / "x.txt").write_text("words")
    (tmp_path / "in" / "b" / "y.txt").write_text("words")
    for quiet in (True, False):
        images = data.folder(tmp_path / "in", like=box.inputs, classes=box.classes)
        made = report(box, images, tmp_path / "out", sections=QUICK, quiet=quiet)
        assert "1 image is broken and 2 files are not images (left out); the page lists them." in made.skipped
        told = "1 image is broken and 2 files are not images" in capsys.readouterr().err
        assert told is not quiet
