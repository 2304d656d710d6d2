"""Chapters, and the example that all sections follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed import cli
from unboxed.errors import InputError
from unboxed.plots.explanation_sheet import render_map
from unboxed.report import SECTIONS, report
from unboxed.report.render import RenderedSection, group_into_chapters


def test_sections_of_one_chapter_stand_together() -> None:
    chapters = [section.chapter for section in SECTIONS]
    runs = [c for i, c in enumerate(chapters) if i == 0 or chapters[i - 1] != c]
    assert len(runs) == len(set(runs))
    rendered = [RenderedSection(s.title, s.slug, "x", "An answer.", chapter=s.chapter) for s in SECTIONS]
    assert [group.chapter for group in group_into_chapters(rendered)] == runs
    assert not {s.slug for s in SECTIONS} & {c.slug for c in runs}


@pytest.fixture
def box() -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    return ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")


def data(box: ub.Box) -> tuple[Tensor, Tensor]:
    x = torch.rand(30, 1, 8, 8)
    return x, (box.predict(x) + (torch.arange(30) % 7 == 0).long()) % 3


@pytest.mark.usefixtures("quick_reports")
def test_the_example_that_was_asked_for_is_followed(box: ub.Box, tmp_path: Path) -> None:
    x, y = data(box)
    sections = ["overview", "gradients", "morphs", "attacks", "map"]
    made = report(box, (x, y), tmp_path, sections=sections, example=11, quiet=True, max_examples=10)
    assert made.failures == {}
    page = " ".join(made.path.read_text(encoding="utf-8").split())
    steps = page[page.index('class="steps"') : page.index("</ol>")]
    assert steps.count("<li>") == len(sections)
    assert "Example 11. The model predicts" in page
    assert "It was asked for." in page
    assert "example 11" in steps


@pytest.fixture
def folder(box: ub.Box, tmp_path: Path) -> Path:
    """Images of three classes; some names are in two of their folders."""
    for k in range(3):
        (tmp_path / "images" / str(k)).mkdir(parents=True)
        for i in range(4):
            pixels = (torch.rand(8, 8) * 255).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / str(k) / f"{'same' if i == 0 else f'{k}-{i}'}.png")
    return tmp_path / "images"


def test_examples_are_called_by_their_files(box: ub.Box, folder: Path, tmp_path: Path) -> None:
    data = ub.data.folder(folder, box)
    for name in ("1-2.png", "1/1-2.png"):
        made = report(box, data, tmp_path / "a", sections=["overview", "map"], example=name, quiet=True)
        page = " ".join(made.path.read_text(encoding="utf-8").split())
        assert "1/1-2.png. The model predicts" in page
        assert "example 6" not in page
    for name in ("same.png", "none.png"):
        with pytest.raises(InputError, match="example must be the name of one file of images"):
            report(box, data, tmp_path / "b", example=name, quiet=True)


def test_sections_and_the_example_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))\n"
    )
    factory = f"{tmp_path / 'own.py'}:make"
    words = ["report", "--model", factory, "--shape", "1,8,8", "--data", folder, "--outputs", "logits"]
    more = ["--sections", "overview,map", "--example", "2/2-1.png", "-o", tmp_path / "out", "--quiet"]
    done = CliRunner().invoke(cli.app, [*map(str, words), *map(str, more)])
    assert done.exit_code == 0, done.output
    assert list(json.loads((tmp_path / "out" / "report.json").read_text())["findings"]) == ["overview", "map"]
    assert "2/2-1.png. The model predicts" in (tmp_path / "out" / "index.html").read_text()
    wrong = ["--sections", "overveiw", "-o", tmp_path / "b"]
    done = CliRunner().invoke(cli.app, [*map(str, words), *map(str, wrong)])
    assert done.exit_code == 2
    assert "overview" in done.output


def test_an_example_that_is_not_there_is_refused(box: ub.Box, tmp_path: Path) -> None:
    for example in (30, -1, 1.5):
        with pytest.raises(InputError, match="example must be"):
            report(box, data(box), tmp_path / "out", example=example, quiet=True)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_names_of_wordnet_and_of_long_files_are_read(box: ub.Box, folder: Path, tmp_path: Path) -> None:
    names = ("n02099601 golden_retriever", "n02012849 crane", "n03126707 crane")
    named = ub.Box(box.model, box.inputs, classes=names, outputs="logits")
    made = report(named, data(box), tmp_path / "a", sections=["overview"], quiet=True)
    page = made.path.read_text(encoding="utf-8")
    assert "golden retriever" in page
    assert "crane (2)" in page
    assert "n02099601" not in page
    (folder / "0" / "0-1.png").rename(folder / "0" / "a_file_with_a_very_long_name.png")
    made = report(box, ub.data.folder(folder, box), tmp_path / "b", sections=["overview"], quiet=True)
    assert "0/\u200ba_\u200bfile_\u200bw…_\u200bname.png" in made.path.read_text(encoding="utf-8")


def test_maps_of_photos_lie_over_them() -> None:
    photo, flat = torch.rand(3, 128, 128), torch.full((3, 128, 128), 1e-9)
    assert render_map(photo, flat, 1.0).shown.std() > 5  # the photo is seen through the map
    small = render_map(photo[:, :28, :28], flat[:, :28, :28], 1.0)
    assert small.shown.std() == 0  # that of a small image is alone
