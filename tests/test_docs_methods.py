"""docs/methods.md is what the cards say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_made_from_the_cards() -> None:
    spec = importlib.util.spec_from_file_location("build_methods", DOCS / "build_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    message = "docs/methods.md is older than the cards: run python docs/build_methods.py"
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == module.page(), message
