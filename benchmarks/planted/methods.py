"""The methods that are measured: all attribution methods, found by their cards, with few samples."""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import Any

from torch import Tensor

import unboxed as ub
from unboxed.attribution import grad_cam, layer_cam, lime, lrp, rise, rollout, smoothgrad
from unboxed.checks.methods import AttributionMethodFn
from unboxed.engine.perturb.segments import feature_groups

FEWER: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 16},
    "smoothgrad": {"n_samples": 10},
    "expected_gradients": {"n_samples": 16},
    "lime": {"n_samples": 150},
    "kernel_shap": {"n_samples": 150},
    "rise": {"n_samples": 150},
}


@wraps(rollout)
def _rollout(box: ub.Box, x: Any, target: Any = None) -> Any:
    """Attention rollout, which explains no class."""
    return rollout(box, x)


def _first_layer(method: AttributionMethodFn) -> AttributionMethodFn:
    """A class activation map of the first layer instead of the last."""

    @wraps(method)
    def of_first_layer(box: ub.Box, x: Any, target: Any = None) -> Any:
        return method(box, x, target, layer=next(row.path for row in box.layers if row.n_parameters))

    return of_first_layer


@wraps(lime)
def _lime_few(box: ub.Box, x: Any, target: Any = None) -> Any:
    """LIME with 20 samples, for which images are cut into at most 5 segments."""
    groups = feature_groups(box, box.validate_inputs(x), default="quickshift", max_features=5)
    return lime(box, x, target, segments=groups.ids[:, 0], n_samples=20)


# Other settings of the same methods; of some it is known that they say little of the class (early layers; z-plus: Sixt
# et al. 2020, arXiv:1912.09818) or that their maps are mostly noise (few samples).
VARIANTS: dict[str, AttributionMethodFn] = {
    "rollout": _rollout,
    "smoothgrad_squared": partial(smoothgrad, n_samples=10, kind="squared"),
    "grad_cam_first": _first_layer(grad_cam),
    "layer_cam_first": _first_layer(layer_cam),
    "lrp_epsilon": partial(lrp, rule="epsilon"),
    "lrp_z_plus": partial(lrp, rule="z-plus"),
    "lrp_alpha_beta": partial(lrp, rule="alpha-beta"),
    "lime_few": _lime_few,
    "rise_few": partial(rise, n_samples=20),
}


def methods(references: Tensor) -> dict[str, AttributionMethodFn]:
    """{name: method} of all that explain a score; `references` are training inputs for expected gradients."""
    found: dict[str, AttributionMethodFn] = {}
    for card in ub.cards("attribution"):
        if "target" in inspect.signature(card.method).parameters:
            needed = {"references": references} if card.key == "expected_gradients" else {}
            found[card.key] = partial(card.method, **FEWER.get(card.key, {}), **needed)
    return found | VARIANTS
