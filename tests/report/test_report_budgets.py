"""A large model gets fewer images and steps, and the page says so; the same model the same plan, whatever the clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unboxed.report import channels, class_image_budget
from unboxed.report.blocks import Caution
from unboxed.report.change import MAX_MORPH_ITERATIONS, MIN_MORPH_STEP_BUDGET, MorphPlan, _affordable_plans_and_steps


def context(flops: float) -> Any:
    """All that a budget asks for: FLOPs of a forward pass."""
    return SimpleNamespace(forward_flops=lambda n: n * flops)


@pytest.mark.parametrize("flops", [1e6, 1e8, 1e9, 1e12])
def test_class_images_stay_within_the_budget(flops: float) -> None:
    plan = class_image_budget.affordable_class_image_plan(context(flops))
    spent = 3 * flops * plan.n_image_steps
    assert spent <= class_image_budget.MAX_CLASS_IMAGE_FLOPS or plan == class_image_budget.PLANS[-1]
    assert plan.is_full == (flops == 1e6)
    notes = class_image_budget.reduced_plan_cautions(plan)
    assert [("unboxed run class_image" in n.text) for n in notes if isinstance(n, Caution)] == [True] * (
        not plan.is_full
    )


def test_plans_are_from_the_fullest_to_the_least() -> None:
    counts = [plan.n_image_steps for plan in class_image_budget.PLANS]
    assert counts == sorted(counts, reverse=True)
    steps = [(late + early) * n for late, early, n in channels.CHANNEL_PLANS]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("flops", [1e6, 1e9, 1e12])
def test_channels_and_morphs_stay_within_their_budgets(flops: float) -> None:
    late, early, steps = channels._affordable_channel_plan(context(flops))
    assert 3 * flops * (late + early) * steps <= channels.MAX_CHANNEL_FLOPS or steps == channels.CHANNEL_PLANS[-1][-1]
    plans = [MorphPlan(i, 0, "") for i in range(3)]
    kept, n = _affordable_plans_and_steps(context(flops), plans)
    assert kept == plans[: len(kept)]
    assert (len(kept), n) == (3, MAX_MORPH_ITERATIONS) if flops == 1e6 else n < MAX_MORPH_ITERATIONS
    assert n >= MIN_MORPH_STEP_BUDGET
