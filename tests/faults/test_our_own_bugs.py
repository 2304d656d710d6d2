"""A bug of ours surfaces: what a model may raise is caught, what we get wrong is shown or logged, never swallowed."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
import torch

import awkward
import unboxed as ub
from unboxed.engine import randomized
from unboxed.engine.perturb import windows
from unboxed.engine.read import edited_runs
from unboxed.report import attribution as section
from unboxed.report import context as contexts
from unboxed.report import report
from unboxed.report.checks import verdicts_and_unaffordable_methods
from unboxed.report.source import ReportData
from unboxed.report.survey import collect_outputs_and_labels

ROOT = Path(ub.__file__).parent


def bug(*args: object, **kwargs: object) -> None:
    raise ZeroDivisionError("planted")


def opened() -> tuple[ub.Box, torch.Tensor]:
    entry = awkward.get_model("plain")
    return ub.Box(entry.model, entry.inputs), entry.images(6)


def test_a_bug_in_a_section_is_shown_in_the_report_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The copy without training was tried in a broad `except`, whose note blamed the model."""
    box, x = opened()
    monkeypatch.setattr(contexts.ReportContext, "untrained", property(bug))
    with caplog.at_level(logging.WARNING, "unboxed"):
        written = report(box, x, tmp_path, sections=[section.SECTION], quiet=True)
    assert "planted" in str(written.failures)
    assert "planted" in written.path.read_text()
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


def test_a_bug_in_a_method_takes_its_verdict_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The section on whether explanations can be believed was lost, with the verdicts on all other methods."""
    box, x = opened()
    source = ReportData(x, box)
    context = contexts.ReportContext(box, source, collect_outputs_and_labels(box, source, None), judge=box)
    monkeypatch.setattr(contexts.ReportContext, "candidates", {"gradient": ub.attribution.gradient, "lrp": bug})
    with caplog.at_level(logging.WARNING, "unboxed"):
        verdicts, _ = verdicts_and_unaffordable_methods(context)
    assert verdicts["gradient"].tests
    assert verdicts["lrp"].grade == "not applicable"
    assert "planted; this is a bug" in verdicts["lrp"].sentence
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


def test_a_bug_in_incremental_inference_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole runs answer in its place, as they do for models that it does not fit; it would go unnoticed."""
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs)
    monkeypatch.setattr(windows, "MIN_INCREMENTAL_IMAGE_PIXELS", 1)
    monkeypatch.setattr(windows, "MIN_INCREMENTAL_WINDOWS", 1)
    monkeypatch.setattr(windows.WindowedTensor, "from_windows", bug)
    with caplog.at_level(logging.INFO, "unboxed"):
        ub.attribution.occlusion(box, entry.images(1), 1, window=1, stride=1)
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


def test_a_bug_in_the_search_for_unused_modules_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box, _ = opened()
    monkeypatch.setattr(randomized, "_parameter_gradients_on_noise", bug)
    with caplog.at_level(logging.INFO, "unboxed"):
        assert randomized._unused_module_paths(box, []) == set()
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


def silent(source: ast.AST) -> list[int]:
    """The lines of handlers for any exception that neither raise, nor log, nor name what they caught."""
    found = []
    for node in ast.walk(source):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        inside = [n for statement in node.body for n in ast.walk(statement)]
        logs = any(isinstance(n, ast.Call) and ast.unparse(n.func).startswith("LOG.") for n in inside)
        if broad and node.name is None and not logs and not any(isinstance(n, ast.Raise) for n in inside):
            found.append(node.lineno)
    return found


def test_no_broad_handler_is_silent() -> None:
    texts = {str(f.relative_to(ROOT)): f.read_text("utf-8") for f in ROOT.rglob("*.py")}
    found = {f: silent(ast.parse(text)) for f, text in texts.items() if "except" in text}
    found.pop("testing/models/structures.py")  # a model that swallows exceptions, on purpose
    assert not {f for f, lines in found.items() if lines}
    assert silent(ast.parse("try: f()\nexcept Exception:\n    pass")) == [2]
    assert silent(ast.parse("try: f()\nexcept:\n    pass")) == [2]
    assert edited_runs.LOG.name == "unboxed"
