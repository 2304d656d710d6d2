"""Integrated gradients: the mean gradient between a baseline and x, times the difference between them.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365, section 3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution, target_or_predicted_classes
from ..engine.gradients.adaptive_quadrature import (
    IntegrationProblem,
    integrate_adaptively,
    integrate_at_fixed_points,
    n_initial_points_for_tolerance,
)
from ..engine.gradients.quadrature import QUADRATURE_RULES, QuadratureRule, midpoints
from ..engine.perturb.baselines import Baseline, score_difference, unit_of_contributions
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.read.edited_runs import run_variants
from ..engine.read.edits import resolve_target
from ..engine.results import warn_not_finite
from ..errors import InputError, warn
from ..parameters import BatchSize, InputBatch, Target
from ..settings import Above, AtLeast, Unit, check_settings

DEFAULT_N_STEPS_IF_BATCH_DEPENDENT = 50  # by default, where the examples of a batch depend on one another
TYPICAL_FORWARDS_PER_INPUT = 100  # on the card: about how many gradients an input takes where `n_steps` is None


@card(
    name="Integrated gradients",
    aliases=("ig",),
    source="Sundararajan et al. 2017, arXiv:1703.01365, section 3",
    shows="How this score is made up of the input's changes from a baseline; the contributions sum to the difference.",
    does_not_show="What another baseline would show: values that equal the baseline get nothing, whatever they mean.",
    example=lambda method, box, x, y: method(box, x, y, tol=0.01),
    exempt={"one forward": "it takes gradients at many points between the baseline and x"},
    axioms=("contribution", "completeness", "dummy", "symmetry"),
    runs=lambda s: s["n_steps"] or TYPICAL_FORWARDS_PER_INPUT,
    texts=True,
    order=3,
)
def integrated_gradients(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    baseline: Baseline = None,
    tol: Annotated[float, Above(0), "Largest completeness error, as a fraction of the score's difference."] = 0.001,
    n_steps: Annotated[
        int | None, AtLeast(1), Unit("gradients"), "A fixed number of steps; None takes as many as `tol` needs."
    ] = None,
    rule: Annotated[QuadratureRule | None, "Quadrature rule of a fixed number of steps; None is midpoint."] = None,
    max_steps: Annotated[int, AtLeast(1), Unit("gradients"), "Largest number of steps that `tol` may take."] = 1000,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """Contributions of the input's differences from a baseline: the mean gradient between them, times the difference.

    The standard choice for contributions that sum to the score's difference, for any differentiable model. It takes
    tens of gradients per input; `deep_lift` takes two, `gradient_x_input` one. Results depend on the baseline: try
    more than one, or `expected_gradients` over a data set.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known. "random" draws with seed 0.
        tol: Largest completeness error, as a fraction of the score's difference. Each example takes as many steps as it
            needs until |sum of its map - difference| <= tol * |difference|, or is within the rounding error of the
            scores (4 units in the last place of both, in the model's precision) where that is larger. A loose `tol`
            also starts from fewer steps: 1 / (4 tol), between 4 and 16.
        n_steps: A fixed number of steps; None takes as many as `tol` needs. A model whose examples depend on one
            another takes 50 by default.
        rule: Quadrature rule of a fixed number of steps; None is midpoint.
        max_steps: Largest number of steps that `tol` may take.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        (x - baseline) times the mean gradient on the straight line between them, signed, shaped like x, in units of the
        score. Besides: `score_difference` (N,), score(x) - score(baseline); `completeness_error` (N,), how far the sum
        of the map is from it; `n_steps` (N,), gradients taken; `converged` (N,) bool, whether the error is within the
        tolerance.

        A small error does not make each value exact: errors of single values cancel in the sum. A map's distance from
        its limit falls as 1 / steps (about .4 / steps of the map's absolute sum on the MNIST CNN): at tol=.05 maps are
        .08 off on that model and .16 on a ResNet-20, at .01 .026 and .05. For exact maps ask for many `n_steps`.
        Memory does not grow with steps: at most 64 gradients per example are held at a time.

    Raises:
        InputError: for a baseline that does not fit, or a `rule` without `n_steps`.
        NaNError: where a score is NaN or infinite.
        UnboxedWarning (a warning): where the tolerance was not reached.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.integrated_gradients(box, x, y)
        >>> a.converged.tolist(), list(a.extras)
        ([True, True], ['completeness_error', 'n_steps', 'converged', 'score_difference'])

    Source:
        Sundararajan et al. 2017, arXiv:1703.01365, section 3, equation 1; the number of steps is adapted per example by
        halving intervals (`engine.gradients.adaptive_quadrature`), which the paper leaves open.
    """
    check_settings(integrated_gradients, locals())
    x = box.validate_inputs(x)
    points = _quadrature_points_and_weights(n_steps, rule)
    start = baseline_of(box, x, baseline)
    objective = resolve_target(box, target, x, batch_size)
    low, high = (run_variants(box, h, objective, logits=False, batch_size=batch_size).score[:, 0] for h in (start, x))
    score_gap = score_difference(high, low)
    max_error = torch.maximum(tol * score_gap.abs(), _relative_rounding_error(box) * (high.abs() + low.abs()))
    problem = IntegrationProblem(
        box, objective, x, start, low, high, max_error, batch_size, n_initial_points_for_tolerance(tol)
    )
    if points is None and (box.batch_dependent or objective.batch_dependent):
        points = midpoints(DEFAULT_N_STEPS_IF_BATCH_DEPENDENT)
    integral = (
        integrate_adaptively(problem, max_steps) if points is None else integrate_at_fixed_points(problem, *points)
    )
    warn_not_finite(f"the gradient of {objective.name} between the baseline and x", integral.mean_gradient)
    converged = integral.completeness_error <= max_error
    not_converged = ~converged & integral.completeness_error.isfinite()
    if n_steps is None and bool(not_converged.any()):
        _warn_not_converged(not_converged, integral.completeness_error, score_gap)
    return make_attribution(
        box,
        integral.mean_gradient * problem.delta,
        x=x,
        method="Integrated gradients",
        unit=unit_of_contributions(box.inputs, baseline),
        target=target_or_predicted_classes(objective, target),
        score=high,
        completeness_error=integral.completeness_error,
        n_steps=integral.n_points,
        converged=converged,
        score_difference=score_gap,
    )


def _quadrature_points_and_weights(n_steps: int | None, rule: QuadratureRule | None) -> tuple[Tensor, Tensor] | None:
    """Points and weights of a fixed number of steps. Raises InputError."""
    if n_steps is None:
        if rule is not None:
            raise InputError("a rule is for a fixed number of steps: give n_steps, or leave the rule out")
        return None
    return QUADRATURE_RULES[rule or "midpoint"](n_steps)


def _relative_rounding_error(box: Box) -> float:
    """How far scores may be off by rounding alone, relative to their size."""
    return 4 * torch.finfo(box.model_dtype if box.autocast is None else box.autocast).eps


def _warn_not_converged(rows: Tensor, error: Tensor, gap: Tensor) -> None:
    worst = int(torch.where(rows, error, -1).argmax())
    warn(
        f"integrated gradients did not reach the tolerance for {int(rows.sum())} of {len(rows)} inputs: the sum of a "
        f"map is off by up to {float(error[worst]):.2g}, of a difference of {float(gap[worst]):.2g}; raise tol, or "
        "max_steps"
    )
