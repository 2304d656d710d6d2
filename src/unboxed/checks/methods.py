"""What the checks ask of a method: `method(box, x, target)` returns a map, or a result with one as its `map`.

Settings are given with `functools.partial(method, n_samples=20)`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from torch import Tensor

from ..box import Box
from ..engine.attribution_result import Attribution
from ..engine.results import attribution_map
from ..errors import InputError, UnboxedWarning
from ..inputs.multi import MultiInput
from ..inputs.tokens import Tokens
from ..objectives import Objective, mean_over_positions
from ..parameters import Target

AttributionMethodFn = Callable[[Box, Any, Any], Any]

TestedMethod = Annotated[AttributionMethodFn, "The method to test: a function (box, x, target) that returns a map."]
OptionalPrecomputedMap = Annotated[Tensor | None, "The method's map of x, where it is known already; None computes it."]
Maps = Annotated[Any, "Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result."]
RankBySignedValue = Annotated[bool, "Rank pixels by the map with its sign; False ranks by its magnitude."]


def with_baseline(methods: Mapping[str, AttributionMethodFn], baseline: Any) -> dict[str, AttributionMethodFn]:
    """The methods, those that take a baseline with this one."""

    def bound(method: Callable[..., Any]) -> AttributionMethodFn:
        takes_baseline = "baseline" in inspect.signature(method).parameters
        return partial(method, baseline=baseline) if takes_baseline else method

    return {name: bound(method) for name, method in methods.items()}


def resolve_target(box: Box, x: Tensor, target: Target) -> Any:
    """The target, fixed for every model and every input that follow: None is the class (N,) predicted for x."""
    if target is None:
        return mean_over_positions(box(x)).argmax(1)
    if isinstance(target, Objective):
        return box.check_objective(target, len(x))
    return box.class_labels(target, len(x))


def compute_map(
    box: Box, method: AttributionMethodFn, x: Tensor, target: Any, *, show_warnings: bool = False
) -> Tensor:
    """The map of `compute_attribution` as checks compare it: slopes of a table per scale of each column."""
    return attribution_map(
        compute_attribution(box, method, x, target, show_warnings=show_warnings), per_column_scale=True
    )


def compute_attribution(
    box: Box, method: AttributionMethodFn, x: Tensor, target: Any, *, show_warnings: bool = False
) -> Attribution:
    """The map (N, ...) of a method for validated inputs; of several inputs the maps are concatenated, (N, D).

    It knows its unit, as far as the method says it.

    The method's warnings (of gradients that are zero) say nothing new about a model that was randomized on purpose, so
    they are suppressed unless `show_warnings`. Raises InputError where there is no map of N rows.
    """
    with warnings.catch_warnings():
        if not show_warnings:
            warnings.simplefilter("ignore", UnboxedWarning)
        output = method(box, copy_in_user_structure(box, x), target)
    result = attribution_map(output) if isinstance(output, Attribution) else getattr(output, "map", output)
    if isinstance(box.inputs, MultiInput) and isinstance(result, (dict, tuple)):
        result = box.inputs.pack(result)
    map_ = box.inputs.pack(attribution_map(result))
    if isinstance(box.inputs, Tokens) and map_.shape != x.shape[:2]:
        raise InputError(f"the method gives a map {tuple(map_.shape)} of texts {tuple(x.shape[:2])}: wanted one number "
                         "for each token")  # fmt: skip
    if map_.ndim < 2 or len(map_) != len(x):
        raise InputError(f"the method gives a map {tuple(map_.shape)} for {len(x)} inputs; wanted one for each")
    known = output if isinstance(output, Attribution) else Attribution(map_)
    return Attribution(map_.detach(), method=known.method, unit=known.unit, slope=known.slope)


def copy_in_user_structure(box: Box, x: Tensor) -> Any:
    """A copy of the inputs, as a user passes them: a user's method may write over it."""
    return box.restore_structure(x.clone())
