"""Reports whose sections do little: for tests of what a page says of a model, not of how well it is explained."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest

SETTINGS: dict[str, dict[str, Any]] = {
    "context": {"N_VERDICT_EXAMPLES": 2, "MAX_FLOPS_PER_REPORT_MAP": 1e6, "MAX_DRAWS_PER_TEST": 2},
    "channels": {"N_RANDOM_TRANSFORMS": 4, "CHANNEL_PLANS": ((16, 8, 12),)},
    "inversion": {"MAX_STEPS_PER_LAYER": 10, "N_SUFFICIENT_STEPS_PER_LAYER": 10, "MIN_STEPS_PER_LAYER": 5},
    "dream": {"MAX_STEPS_PER_OCTAVE": 4, "MAX_TEXTURE_STEPS": 10, "MIN_TEXTURE_STEPS": 5},
    "parts": {"MAX_EXAMPLES": 60, "DICTIONARY_FIT_STEPS": 20, "FEATURE_VISUALIZATION_STEPS": 8, "N_RANDOM": 2},
    "detectors": {"N_TWINS_PER_KIND": 4},
    "influence_checks": {"N_RETRAININGS": 6},
}
"""{module of the report: {constant: a smaller value}}."""


def few_candidates(candidates: Any, box: Any, max_flops: float) -> dict[str, Any]:
    """The methods that a first look takes, and every fifth of the others: each is judged wherever it is a candidate."""
    from unboxed.checks.ranking import attribution_cards

    found = candidates(box, max_flops)
    first = [name for name in found if attribution_cards()[name].first_choice]
    kept = {*first, *[name for name in found if name not in first][::5]}
    return {name: method for name, method in found.items() if name in kept}


def make_verdicts_quick(patch: pytest.MonkeyPatch) -> None:
    """Fewer methods, examples and draws, until the patch is undone."""
    context = importlib.import_module("unboxed.report.context")
    patch.setattr(context, "candidates", partial(few_candidates, context.candidates))
    for name, value in SETTINGS["context"].items():
        patch.setattr(context, name, value)


def make_reports_quick(patch: pytest.MonkeyPatch) -> None:
    """Fewer examples, samples and steps in all sections, too."""
    make_verdicts_quick(patch)
    budget = importlib.import_module("unboxed.report.class_image_budget")
    patch.setattr(budget, "PLANS", (budget.ClassImagePlan(10, 3, 0.1, 0.1),))  # all images, a tenth of the steps
    for module, constants in SETTINGS.items():
        for name, value in constants.items():
            patch.setattr(importlib.import_module(f"unboxed.report.{module}"), name, value)
