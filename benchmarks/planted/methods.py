"""The methods that are measured: all attribution methods, found by their cards, with few samples."""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import Any

from torch import Tensor

import unboxed as ub
from unboxed.attribution import rollout, smoothgrad
from unboxed.checks.methods import Method

FEWER: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 16},
    "smoothgrad": {"n_samples": 10},
    "expected_gradients": {"n_samples": 16},
    "lime": {"n_samples": 150},
    "kernel_shap": {"n_samples": 150},
    "rise": {"n_samples": 150},
}


def methods(references: Tensor) -> dict[str, Method]:
    """{name: method} of all that explain a score; `references` are training inputs for expected gradients."""
    found: dict[str, Method] = {}
    for card in ub.cards("attribution"):
        if "target" in inspect.signature(card.method).parameters:
            needed = {"references": references} if card.key == "expected_gradients" else {}
            found[card.key] = partial(card.method, **FEWER.get(card.key, {}), **needed)
    found["smoothgrad_squared"] = partial(smoothgrad, n_samples=10, kind="squared")
    found["rollout"] = _rollout
    return found


@wraps(rollout)
def _rollout(box: ub.Box, x: Any, target: Any = None) -> Any:
    """Attention rollout, which explains no class."""
    return rollout(box, x)
