"""docs/methods.md is what the cards say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import unboxed as ub
from unboxed.cli.methods import card_notes, docstring_section

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_made_from_the_cards() -> None:
    spec = importlib.util.spec_from_file_location("build_methods", DOCS / "build_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    message = "docs/methods.md is older than the cards: run python docs/build_methods.py"
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == module.page(), message


NO_PICTURE = {c.key: "the digits model has no attention" for c in ub.cards() if "attention" in c.needs}


def test_every_method_has_a_small_figure() -> None:
    methods = {c.key for c in ub.cards() if str(c.method.__module__).startswith("unboxed.")}
    sizes = {p.stem: p.stat().st_size for p in (DOCS / "pictures" / "methods").glob("*.png")}
    message = "run python docs/build_methods.py --figures NAME"
    assert {*sizes} == methods - {*NO_PICTURE}, message
    assert {name: size for name, size in sizes.items() if size > 40_000} == {}, message


def test_notes_say_what_is_refused_and_exempt() -> None:
    notes = card_notes(ub.attribution.grad_cam.card)  # type: ignore[attr-defined]
    assert "LayerError where the layer has no positions" in notes["Refuses"]
    assert "image" in notes["Needs"]
    notes = card_notes(ub.activations.tsne.card)  # type: ignore[attr-defined]
    assert notes["Contracts that do not apply"].startswith("splitting (")
    assert docstring_section(ub.attribution.grad_cam.card, "Example").startswith(">>> import unboxed")  # type: ignore[attr-defined]
    assert docstring_section(ub.attribution.grad_cam.card, "Nothing") == ""  # type: ignore[attr-defined]
