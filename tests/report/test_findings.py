"""Findings: each is JSON-able, and is shown without the model that it is about."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from quick_reports import make_reports_quick
from unboxed.report import SECTIONS as ALL_SECTIONS
from unboxed.report import Finding, Section
from unboxed.report.context import TEXTS_NEED, ReportContext
from unboxed.report.folder import ReportFolder
from unboxed.report.pictures import PageImageStore
from unboxed.report.render import render_blocks
from unboxed.report.source import ReportData
from unboxed.report.survey import collect_outputs_and_labels

SECTIONS = [section for section in ALL_SECTIONS if TEXTS_NEED not in section.needs]


class Switch(nn.Module):
    """A model that can be turned off: it raises when it is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.is_on = model, True

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on:
            raise AssertionError("the model was called while a finding was shown")
        y: Tensor = self.model(x)
        return y


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    """Of every section, on a small model with a judge; then the model is turned off."""
    entry = awkward.get_model("plain")
    model = Switch(entry.model)
    box, x = ub.Box(model, entry.inputs), entry.images(40)
    y = (box.predict(x) + (torch.arange(40) % 5 == 0).long()) % len(box.classes)
    source = ReportData((x, y), box)
    context = ReportContext(box, source, collect_outputs_and_labels(box, source, None), judge=box, training=(x, y))
    with pytest.MonkeyPatch.context() as patch:
        make_reports_quick(patch)
        found = {section.slug: section.find(context) for section in SECTIONS}
    model.is_on = False
    return found


def parts(value: Any) -> Iterator[Any]:
    """All that a finding holds, to any depth."""
    yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside: Any = [getattr(value, f.name) for f in dataclasses.fields(value)]
    else:
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for part in inside:
        yield from parts(part)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.slug)
def test_a_finding_is_json_able_and_small(section: Section[Any], findings: dict[str, Finding]) -> None:
    text = json.dumps(findings[section.slug].to_dict())
    assert len(text) < 65_000
    assert " object at 0x" not in text
    assert " at 0x" not in text  # nothing that differs from run to run


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.slug)
def test_a_section_is_answered_in_a_sentence(section: Section[Any], findings: dict[str, Finding]) -> None:
    answer = findings[section.slug].answer
    assert 10 < len(answer) < 200
    assert answer.endswith(".")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.slug)
def test_a_finding_is_shown_without_the_model(
    section: Section[Any], findings: dict[str, Finding], tmp_path: Path
) -> None:
    finding = findings[section.slug]
    assert not [p for p in parts(finding) if isinstance(p, (ub.Box, nn.Module, ReportContext, ReportData))]
    with ReportFolder(tmp_path) as folder:
        assert len(render_blocks([*section.show(finding)], PageImageStore(folder))) > 200
        assert all(figure.picture.size > (0, 0) for figure in finding.cover(0))
