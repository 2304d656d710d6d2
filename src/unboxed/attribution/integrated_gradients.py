"""Integrated gradients: the gradient's mean on the way from a baseline, times how far x is from it.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.paths import QUADRATURE_RULES, midpoints
from ..engine.gradients.quadrature import IntegrationProblem, initial_points, integrate, integrate_fixed
from ..engine.perturb.baselines import Baseline, score_difference
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.read.edited_runs import run_variants
from ..engine.read.edits import resolve_target
from ..engine.results import warn_not_finite
from ..errors import InputError, warn
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int

BATCH_DEPENDENT_STEPS = 50
"""By default, where examples can't be looked at one without the other."""


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    map: Any  # (N, ...) shaped like x; for several inputs a dict or tuple
    completeness_error: Tensor  # (N,) |sum of the map - difference|
    n_steps: Tensor  # (N,) gradients taken
    converged: Tensor  # (N,) bool: the error is within the tolerance
    score_difference: Tensor  # (N,) score(x) - score(baseline)


@card(
    name="Integrated gradients",
    source="Sundararajan et al. 2017, arXiv:1703.01365, section 3",
    shows="How this score is made up of the input's changes from a baseline; the shares add up to the difference.",
    does_not_show="What would have been said of another baseline: values that equal it get nothing, whatever they mean.",
    example=lambda method, box, x, y: method(box, x, y),
    exempt={"one forward": "it looks at many points on the way to x"},
    axioms=("contribution", "completeness", "dummy", "symmetry"),
)
def integrated_gradients(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    baseline: Baseline = None,
    tol: float = 0.001,
    n_steps: int | None = None,
    rule: str | None = None,
    max_steps: int = 1000,
    batch_size: BatchSize = "auto",
) -> IntegratedGradients:
    """(x - x0) times the mean gradient on the straight line from the baseline x0; signed, in units of score.

    Each example takes as many steps as it needs until |sum of its map - difference| <= `tol` * |difference|, where the
    difference is score(x) - score(x0), or to the scores' own rounding error (4 units of both scores' last place in the
    model's precision) where that is larger; an UnboxedWarning says where that was not reached. Or `n_steps` by
    "midpoint" (the default) or "gauss-legendre" `rule`; a model whose examples depend on one another takes 50 of these.

    A small error does not vouch for each pixel: errors of pixels cancel in the sum. A map's own distance from the limit
    falls as 1 / steps (about .4 / steps of the map's absolute sum on the MNIST CNN), so for exact maps ask for steps. A
    loose `tol` starts from fewer steps, 1 / (4 tol) of them, from 4 to 16. So at .05 maps are .08 off on that model and
    .16 on a ResNet-20, at .01 they are .026 and .05 off.
    Memory does not grow with steps: 64 gradients of an example are kept at a time. Draws of a "random" baseline are
    those of seed 0. Raises InputError.
    """
    x = box.validate_inputs(x)
    tol, max_steps = check_float("tol", tol, above=0), check_int("max_steps", max_steps, minimum=1)
    points = _fixed_points(n_steps, rule)
    start = baseline_of(box, x, baseline)
    objective = resolve_target(box, target, x, batch_size)
    low, high = (run_variants(box, h, objective, logits=False, batch_size=batch_size).score[:, 0] for h in (start, x))
    score_gap = score_difference(high, low)
    max_error = torch.maximum(tol * score_gap.abs(), _relative_rounding_error(box) * (high.abs() + low.abs()))
    problem = IntegrationProblem(box, objective, x, start, low, high, max_error, batch_size, initial_points(tol))
    if points is None and (box.batch_dependent or objective.batch_dependent):
        points = midpoints(BATCH_DEPENDENT_STEPS)
    integral = integrate(problem, max_steps) if points is None else integrate_fixed(problem, *points)
    warn_not_finite(f"the gradient of {objective.name} between the baseline and x", integral.mean_gradient)
    converged = integral.completeness_error <= max_error
    not_converged = ~converged & integral.completeness_error.isfinite()
    if n_steps is None and bool(not_converged.any()):
        _warn_not_converged(not_converged, integral.completeness_error, score_gap)
    return IntegratedGradients(
        box.restore_structure(integral.mean_gradient * problem.delta),
        integral.completeness_error,
        integral.n_points,
        converged,
        score_gap,
    )


def _fixed_points(n_steps: int | None, rule: str | None) -> tuple[Tensor, Tensor] | None:
    """Times and weights of a fixed number of steps. Raises InputError."""
    if n_steps is None:
        if rule is not None:
            raise InputError("a rule is for a fixed number of steps: give n_steps, or leave the rule out")
        return None
    rule = "midpoint" if rule is None else rule
    if not isinstance(rule, str) or rule not in QUADRATURE_RULES:
        raise InputError(f"rule is {' or '.join(map(repr, QUADRATURE_RULES))}; got {rule!r}")
    return QUADRATURE_RULES[rule](check_int("n_steps", n_steps, minimum=1))


def _relative_rounding_error(box: Box) -> float:
    """How far scores may be off by rounding alone, relative to their size."""
    return 4 * torch.finfo(box.model_dtype if box.autocast is None else box.autocast).eps


def _warn_not_converged(rows: Tensor, error: Tensor, gap: Tensor) -> None:
    worst = int(torch.where(rows, error, -1).argmax())
    warn(
        f"integrated gradients did not reach the tolerance for {int(rows.sum())} of {len(rows)} inputs: the shares are "
        f"off by up to {float(error[worst]):.2g}, of a difference of {float(gap[worst]):.2g}; raise tol, or max_steps"
    )
