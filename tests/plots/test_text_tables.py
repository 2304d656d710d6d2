"""Answers in words show themselves: as tables in a notebook, as text and in files; a report as a link to its page."""

from __future__ import annotations

import json
import sys
import types
import webbrowser
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import unboxed as ub
from unboxed.checks.ranking import MethodRanking
from unboxed.checks.verdict import TestOutcome, Verdict
from unboxed.diagnosis import Diagnosis, MethodCheck
from unboxed.errors import InputError, UnboxedWarning
from unboxed.report import Report


class Cells(HTMLParser):
    """The text of every cell, caption and link."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def diagnosis() -> Diagnosis:
    checks = (
        MethodCheck("pgd", "PGD", "adversarial", True),
        MethodCheck("lrp", "LRP", "attribution", False, "no rule for <Weird>", "or use gradient"),
        MethodCheck("gradient", "Gradient", "attribution", True, notes=("zero for 1 of 3",)),
    )
    return Diagnosis({"model": "Net<T>, 3 layers"}, checks)


def ranking() -> MethodRanking:
    test = TestOutcome("removal", "passes", "gain", 0.25, 0.2, 0.3, 0.0, True, 8, 1, "It does.")
    return MethodRanking(gradient=Verdict("Gradient", "trustworthy", "depends & marks", "It does.", (test,)))


def test_a_diagnosis_in_a_notebook_has_facts_families_refusals_and_notes() -> None:
    cells = Cells(diagnosis()._repr_html_())
    assert {"Net<T>, 3 layers", "1 of 2 work", "2 of 3 methods work", "zero for 1 of 3"} <= {*cells.texts}
    assert "no rule for <Weird>; or use gradient" in cells.texts
    assert {*cells.tags} <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_a_ranking_in_a_notebook_has_verdict_reason_and_gain() -> None:
    assert {"Gradient", ranking()["gradient"].badge, "depends & marks", "0.25"} <= {
        *Cells(ranking()._repr_html_()).texts
    }


def test_a_box_in_a_notebook_lists_its_layers() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    texts = Cells(box._repr_html_()).texts
    assert texts[0] == repr(box).splitlines()[0]
    assert {layer.path for layer in box.layers} <= {*texts}


@pytest.mark.parametrize("answer", [diagnosis(), ranking()], ids=["diagnosis", "ranking"])
def test_files_by_their_ending(answer: Any, tmp_path: Path) -> None:
    assert json.loads(answer.save(tmp_path / "a.json").read_text()) == json.loads(json.dumps(answer.to_dict()))
    assert "radient" in answer.save(tmp_path / "a.txt").read_text()
    page = answer.save(tmp_path / "a.html").read_text()
    assert "<!doctype html>" in page.lower()
    assert "<Weird>" not in page
    with pytest.raises(InputError, match=r"without a picture: .*\.html, \.json or \.txt; got 'a\.png'"):
        answer.save(tmp_path / "a.png")


def test_show_prints_or_displays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis().show()
    lines = capsys.readouterr().out.splitlines()
    assert "adversarial  1 of 1 work  pgd" in lines
    shown = in_a_notebook(monkeypatch)
    diagnosis().show()
    assert len(shown) == 1
    assert not capsys.readouterr().out


def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for a notebook; returns what is displayed in it."""
    shown: list[Any] = []
    shell = types.SimpleNamespace(kernel=object())
    display = types.SimpleNamespace(display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    return shown


def test_a_report_is_a_link_to_its_page_with_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = Report(tmp_path / "index.html", {"maps": "no <layer>"})
    cells = Cells(report._repr_html_())
    assert str(tmp_path / "index.html") in cells.texts
    assert "section maps failed: no <layer>" in cells.texts
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    report.show()
    assert opened == [(tmp_path / "index.html").as_uri()]
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.warns(UnboxedWarning, match="it is saved as"):
        report.show()
    assert len(opened) == 1
    assert in_a_notebook(monkeypatch) == []
    report.show()
    assert len(opened) == 1
