"""The section that ranks the methods: which are run, and what is said once for all of them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.checks.verdict import Grade, Verdict
from unboxed.report import checks, report
from unboxed.report.blocks import Caution, RankedMethods
from unboxed.report.context import N_VERDICT_EXAMPLES, ReportContext


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
    context = ReportContext(box, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    context.__dict__["verdict_inputs"] = box.noise(N_VERDICT_EXAMPLES)
    assert not context.is_large
    assert len(context.candidates) >= 15
    assert "grad_cam_plus_plus" in context.candidates
    assert sum(map(context.verdict_flops, context.candidates)) <= checks.MAX_TOTAL_VERDICT_FLOPS


class Costs:
    """What the choice of methods asks of a context: each verdict costs 1, and those on methods of `refused` nothing."""

    def __init__(self, methods: list[str], refused: str = "") -> None:
        self.candidates = dict.fromkeys(methods)
        self.refused, self.verdict_flops_spent, self.judged = refused, 0.0, list[str]()

    def verdict_flops(self, name: str) -> float:
        return 1.0

    def verdict(self, name: str) -> Verdict:
        grade: Grade = "not applicable" if name == self.refused else "pass"
        self.verdict_flops_spent += grade == "pass"
        self.judged.append(name)
        return Verdict(name, grade, "", "")


def test_well_known_methods_are_judged_first_and_within_a_budget_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_TOTAL_VERDICT_FLOPS", 2.0)
    monkeypatch.setattr(checks, "MAX_WELL_KNOWN_VERDICT_FLOPS", 3.0)
    names = ["integrated_gradients", "attn_lrp", "gradient", "grad_cam", "lrp", "guided_backprop"]
    costs = Costs(names)
    _, not_run = checks.verdicts_and_unaffordable_methods(costs)  # type: ignore[arg-type]
    assert costs.judged == ["gradient", "grad_cam", "lrp"]
    assert not_run == ["guided_backprop", "integrated_gradients", "attn_lrp"]
    few = Costs(["attn_lrp", "integrated_gradients", "deep_lift", "occlusion"], refused="attn_lrp")
    _, not_run = checks.verdicts_and_unaffordable_methods(few)  # type: ignore[arg-type]
    assert few.judged == ["attn_lrp", "integrated_gradients", "deep_lift"]
    assert not_run == ["occlusion"]


def test_a_verdict_that_a_method_refuses_costs_nothing() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    context = ReportContext(box, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    context.__dict__["verdict_inputs"] = box.noise(N_VERDICT_EXAMPLES)
    assert context.verdict("legrad").grade == "not applicable"
    assert context.verdict_flops_spent == 0
    first = context.verdict_flops("gradient")
    context.verdict("gradient")
    assert context.verdict_flops_spent == first > 0
    assert context.verdict_flops("gradient") == 0  # known by now


def test_what_is_not_run_has_the_command_that_judges_it() -> None:
    finding = checks.RankingFinding(
        examples=8, methods={}, not_run=["lime", "rise"], ranked=[], shown=[], has_images=True, maps={}
    )
    (caution,) = [b for b in checks.show(finding) if isinstance(b, Caution)]
    assert "LIME, RISE. unboxed explain --methods lime,rise " in caution.text


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
