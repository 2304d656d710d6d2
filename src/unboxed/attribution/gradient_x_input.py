"""Gradient times input: the gradient, times how far each pixel is from a baseline.

Shrikumar et al. 2016, "Not Just a Black Box", arXiv:1605.01713; with a baseline as in Ancona et al. 2018, "Towards
better understanding of gradient-based attribution methods", arXiv:1711.06104.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import gradients, warn_gradients
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..model.batching import BatchSize
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective


@card(
    name="Gradient x input",
    source="Shrikumar et al. 2016, arXiv:1605.01713; Ancona et al. 2018, arXiv:1711.06104",
    shows="What each value's distance from the baseline adds to the score, if the model were its tangent plane.",
    does_not_show="What it adds in a model that bends: the shares add up to nothing, and a saturated score has no slope.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("contribution", "dummy", "symmetry"),
)
def gradient_x_input(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Any:
    """d score / d x * (x - baseline), signed, shaped like x, in units of score; the baseline is black by default.

    As with `gradient`, where a final ReLU clamps the score the gradient before the clamp is taken, and an
    UnboxedWarning says so. Draws of a "random" baseline are those of seed 0. Raises InputError.
    """
    x = box.validate_inputs(x)
    baseline_values = baseline_of(box, x, baseline)
    objective = box.objective(target, len(x))
    grads = gradients(box, objective, x, batch_size=batch_size)
    check_finite_scores(grads.score)
    warn_gradients(objective, grads.map, grads.clamped)
    return box.restore_structure(grads.map * (x - baseline_values))
