"""Gradient times input: the gradient, times how far each value is from a baseline.

Shrikumar et al. 2016, "Not Just a Black Box", arXiv:1605.01713; with a baseline as in Ancona et al. 2018, "Towards
better understanding of gradient-based attribution methods", arXiv:1711.06104.
"""

from __future__ import annotations

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.gradients.score import gradients, warn_of_zero_or_nonfinite_gradients
from ..engine.perturb.baselines import Baseline, unit_of_contributions
from ..engine.perturb.baselines import baseline as baseline_of
from ..model.nan_checks import check_finite_scores
from ..parameters import BatchSize, InputBatch, Target
from ..settings import check_settings


@card(
    name="Gradient x input",
    aliases=("input_x_gradient", "gradient_times_input", "input_times_gradient"),
    source="Shrikumar et al. 2016, arXiv:1605.01713; Ancona et al. 2018, arXiv:1711.06104",
    shows="What each value's difference from the baseline would add to the score if the model were linear.",
    does_not_show="What it adds in a nonlinear model: the shares need not sum to the score's difference, and where the "
    "score is saturated they are zero.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("contribution", "dummy", "symmetry"),
    texts=True,
    order=11,
    first_choice=True,
)
def gradient_x_input(
    box: Box, x: InputBatch, target: Target = None, *, baseline: Baseline = None, batch_size: BatchSize = "auto"
) -> Attribution:
    """The gradient times the difference between x and a baseline: contributions, if the model were linear.

    As cheap as `gradient`, and exact for a linear model. For a nonlinear one take `integrated_gradients` or
    `deep_lift`, whose contributions sum to the difference of the scores.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known. "random" draws with seed 0.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        d score / d x * (x - baseline), signed, shaped like x, in units of the score. Where a final ReLU clamps the
        score, the gradient before the clamp is taken, and an UnboxedWarning says so.

    Raises:
        InputError: for inputs, classes or a baseline that do not fit the model.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.gradient_x_input(box, x, y)
        >>> bool((a[x == 0] == 0).all())  # a black pixel equals the baseline
        True

    Source:
        Shrikumar et al. 2016, arXiv:1605.01713; with a baseline, Ancona et al. 2018, arXiv:1711.06104, table 1.
    """
    check_settings(gradient_x_input, locals())
    x = box.validate_inputs(x)
    baseline_values = baseline_of(box, x, baseline)
    objective = box.objective(target, len(x))
    grads = gradients(box, objective, x, batch_size=batch_size)
    check_finite_scores(grads.score)
    warn_of_zero_or_nonfinite_gradients(objective, grads.map, grads.clamped)
    return make_attribution(
        box,
        grads.map * (x - baseline_values),
        x=x,
        method="Gradient x input",
        unit=unit_of_contributions(box.inputs, baseline),
        target=grads.predicted if target is None else target,
        score=grads.score,
    )
