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
from ..engine.gradients.paths import RULES, midpoints
from ..engine.gradients.quadrature import Problem, first_look, fixed, integrate
from ..engine.perturb.baselines import Baseline, difference
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.read.edited_runs import runs
from ..engine.read.edits import settled
from ..engine.results import tell_not_finite
from ..errors import InputError, warn
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int

COUPLED_STEPS = 50
"""By default, where examples can't be looked at one without the other."""


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    map: Any  # (N, ...) shaped like x; for several inputs a dict or tuple
    error: Tensor  # (N,) |sum of the map - difference|
    steps: Tensor  # (N,) gradients taken
    converged: Tensor  # (N,) bool: the error is within the tolerance
    difference: Tensor  # (N,) score(x) - score(baseline)


@card(
    name="Integrated gradients",
    source="Sundararajan et al. 2017, arXiv:1703.01365, section 3",
    shows="How this score is made up of the input's changes from a baseline; the shares add up to the difference.",
    does_not_show="What would have been said of another baseline: values that equal it get nothing, whatever they mean.",
    example=lambda method, box, x, y: method(box, x, y),
    exempt={"one look": "it looks at many points on the way to x"},
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
    points = _points(n_steps, rule)
    start = baseline_of(box, x, baseline)
    objective = settled(box, target, x, batch_size)
    low, high = (runs(box, h, objective, logits=False, batch_size=batch_size).score[:, 0] for h in (start, x))
    gap = difference(high, low)
    bound = torch.maximum(tol * gap.abs(), _rounding(box) * (high.abs() + low.abs()))
    problem = Problem(box, objective, x, start, low, high, bound, batch_size, first_look(tol))
    if points is None and (box.batch_dependent or objective.batch_dependent):
        points = midpoints(COUPLED_STEPS)
    found = integrate(problem, max_steps) if points is None else fixed(problem, *points)
    tell_not_finite(f"the gradient of {objective.name} between the baseline and x", found.gradient)
    converged = found.error <= bound
    missed = ~converged & found.error.isfinite()
    if n_steps is None and bool(missed.any()):
        _tell(missed, found.error, gap)
    return IntegratedGradients(
        box.restore_structure(found.gradient * problem.delta), found.error, found.steps, converged, gap
    )


def _points(n_steps: int | None, rule: str | None) -> tuple[Tensor, Tensor] | None:
    """Times and weights of a fixed number of steps. Raises InputError."""
    if n_steps is None:
        if rule is not None:
            raise InputError("a rule is for a fixed number of steps: give n_steps, or leave the rule out")
        return None
    rule = "midpoint" if rule is None else rule
    if not isinstance(rule, str) or rule not in RULES:
        raise InputError(f"rule is {' or '.join(map(repr, RULES))}; got {rule!r}")
    return RULES[rule](check_int("n_steps", n_steps, minimum=1))


def _rounding(box: Box) -> float:
    """How far scores may be off by rounding alone, relative to their size."""
    return 4 * torch.finfo(box.model_dtype if box.autocast is None else box.autocast).eps


def _tell(rows: Tensor, error: Tensor, gap: Tensor) -> None:
    worst = int(torch.where(rows, error, -1).argmax())
    warn(
        f"integrated gradients did not reach the tolerance for {int(rows.sum())} of {len(rows)} inputs: the shares are "
        f"off by up to {float(error[worst]):.2g}, of a difference of {float(gap[worst]):.2g}; raise tol, or max_steps"
    )
