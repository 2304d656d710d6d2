"""The report's folder: the page while it is made, what is kept after SIGTERM, what a killed run leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.report import Finding, Section, report
from unboxed.report.blocks import Paragraph
from unboxed.report.context import ReportContext
from unboxed.report.folder import STAGING_FOLDER_PREFIX, ReportFolder


@pytest.fixture
def box() -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), ub.Pixels((1, 8, 8)), outputs="logits")


X = torch.rand(5, 1, 8, 8)


def section(slug: str, find: Any) -> Section[Finding]:
    return Section(slug.capitalize(), slug, find, lambda finding: [Paragraph("made")])


def test_the_page_is_read_while_it_is_made(box: ub.Box, tmp_path: Path) -> None:
    seen: list[str] = []

    def find(context: ReportContext) -> Finding:
        seen.append((tmp_path / "index.html").read_text(encoding="utf-8"))
        return Finding(answer="It is made.")

    found = report(box, X, tmp_path, sections=["overview", section("later", find), "reproduce"], quiet=True)
    assert "1 of 3 sections are done" in seen[0]
    assert "Predicts" in seen[0]
    assert 'http-equiv="refresh"' in seen[0]
    whole = found.path.read_text(encoding="utf-8")
    assert "sections are done" not in whole
    assert 'http-equiv="refresh"' not in whole


def test_an_earlier_report_stays_until_the_new_one_is_whole(box: ub.Box, tmp_path: Path) -> None:
    earlier = report(box, X, tmp_path, sections=["overview"], quiet=True).path.read_bytes()
    seen: list[bytes] = []

    def find(context: ReportContext) -> Finding:
        seen.append((tmp_path / "index.html").read_bytes())
        return Finding(answer="It is made.")

    report(box, X, tmp_path, sections=["overview", section("later", find)], quiet=True)
    assert seen == [earlier]
    assert (tmp_path / "index.html").read_bytes() != earlier


def test_sigterm_keeps_what_is_made(box: ub.Box, tmp_path: Path) -> None:
    def find(context: ReportContext) -> Finding:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not taken")

    before = signal.getsignal(signal.SIGTERM)
    found = report(box, X, tmp_path, sections=["overview", section("ended", find), "reproduce"], quiet=True)
    assert set(found.failures) == {"ended", "reproduce"}
    assert "interrupted" in found.failures["ended"]
    assert "Predicts" in found.path.read_text(encoding="utf-8")
    assert (tmp_path / "report.json").is_file()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_image_of_the_earlier_page_is_not_touched_before_the_new_page_is_there(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        with ReportFolder(tmp_path) as folder:
            name = folder.stage("pictures/map.png", content)
            folder.stage("index.html", name.encode())
            folder.stage("report.json", f'{{"files": ["{name}"]}}'.encode())
            if content == b"new":
                assert name != "pictures/map.png"
                assert (tmp_path / "pictures/map.png").read_bytes() == b"old"
            folder.publish()
    assert (tmp_path / (tmp_path / "index.html").read_text()).read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == [Path(name).name]


def test_what_a_killed_run_staged_is_swept_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = (
        tmp_path / f"{STAGING_FOLDER_PREFIX}{int(ended.stdout)}-a",
        tmp_path / f"{STAGING_FOLDER_PREFIX}{os.getpid()}-b",
    )
    for stage in (dead, alive):
        stage.mkdir()
        (stage / "index.html").write_text("half")
    with ReportFolder(tmp_path):
        assert not dead.exists()
        assert alive.exists()
    os.utime(alive / "index.html", (0, 0))
    os.utime(alive, (0, 0))
    with ReportFolder(tmp_path):
        assert not alive.exists()
