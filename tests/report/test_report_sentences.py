"""Sentences of the report that a reader cannot misread: concepts in quotes, points of what, which ring means what."""

from __future__ import annotations

from pathlib import Path

from unboxed.report import concepts, map

TEMPLATES = Path(map.__file__).parent / "templates"


def test_concepts_are_named_as_concepts() -> None:
    assert concepts._concepts_text(["bright"]) == 'the concept "bright"'
    assert concepts._concepts_text(["bright", "fine texture"]) == 'the concepts "bright", "fine texture"'


def test_points_are_of_accuracy() -> None:
    assert "48.3 points of accuracy better" in map._label_separation_check({"input": 0.5, "fc": 0.983}).text
    assert "10.0 points of accuracy worse" in map._label_separation_check({"input": 0.5, "fc": 0.4}).text


def test_neighbors_that_are_misclassified_bear_the_mark() -> None:
    assert 'if (wrong[j]) made.className = "bad"' in (TEMPLATES / "map.js").read_text()
    assert ".map-near button.bad::after" in (TEMPLATES / "page.css").read_text()
