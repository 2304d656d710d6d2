"""The section that ranks the methods: which are run, and what is said once for all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.checks.ranking import candidates, estimated_verdict_flops
from unboxed.report import checks, report
from unboxed.report.blocks import Caution, RankedMethods
from unboxed.report.context import MAX_FLOPS_PER_REPORT_MAP, N_VERDICT_EXAMPLES


def written(box: ub.Box, data: Any, out: Path) -> str:
    made = report(box, data, out, sections=["ranking"], quiet=True)
    assert made.failures == {}
    return " ".join(made.path.read_text(encoding="utf-8").split())


def untrained(n_inputs: int) -> nn.Module:
    """Three classes, all as likely as with other random weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_the_budget_is_enough_for_all_methods_on_a_small_model() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    methods = candidates(box, MAX_FLOPS_PER_REPORT_MAP)
    assert len(methods) >= 15
    assert "grad_cam_plus_plus" in methods
    assert (
        sum(estimated_verdict_flops(box, m, N_VERDICT_EXAMPLES) for m in methods.values())
        <= checks.MAX_TOTAL_VERDICT_FLOPS
    )


def test_methods_beyond_the_budget_are_named_without_calling_the_model_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_TOTAL_VERDICT_FLOPS", 0.0)
    box = ub.Box(untrained(4), ub.Features(("a", "b", "c", "d")), outputs="logits")
    page = written(box, torch.randn(8, 4), tmp_path)
    assert "Not run, to keep the report short: " in page
    assert "is large" not in page


def test_that_a_model_has_learned_nothing_is_said_once(tmp_path: Path) -> None:
    box = ub.Box(untrained(4), ub.Features(("a", "b", "c", "d")), outputs="logits")
    page = written(box, 0.01 * torch.randn(8, 4), tmp_path)
    assert page.count("nothing to explain") == 1
    listed = page.partition("So these methods fail: ")[2].partition("<")[0]
    assert {"Gradient", "Gradient x input"} <= set(re.split(", | and ", listed.rstrip(".")))
    assert "is it more than edges" not in page  # it is a table


def test_other_reasons_are_said_per_method() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, _ = ub.data.digits("test").first(8)
    verdicts = {"gradient": ub.checks.verdict(box, x, ub.attribution.gradient)}
    finding = checks.RankingFinding(
        examples=8, methods=verdicts, not_run=[], ranked=["gradient"], shown=[], has_images=True, maps={}
    )
    blocks = checks.show(finding)
    assert [type(b) for b in blocks[1:]] == [RankedMethods]
    assert not any(isinstance(b, Caution) for b in blocks)
    assert "is it more than edges" in blocks[0].text  # type: ignore[union-attr]
