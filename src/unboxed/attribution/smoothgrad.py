"""SmoothGrad: the mean gradient over noisy copies of the input, the mean of its square, or its variance.

Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", arXiv:1706.03825, section 3. SmoothGrad-Squared:
Hooker et al. 2019, arXiv:1806.10758. VarGrad: Adebayo et al. 2018, arXiv:1810.03307.
"""

from __future__ import annotations

from typing import Annotated

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution, target_or_predicted_classes
from ..engine.gradients.paths import GradientMoment, NoisePath, noise_scale, path_mean_gradient
from ..engine.gradients.quadrature import equal_weights
from ..engine.gradients.score import warn_of_zero_or_nonfinite_gradients
from ..engine.read.edits import resolve_target
from ..engine.results import warn_not_finite
from ..model.nan_checks import raise_for_nonfinite_scores
from ..parameters import BatchSize, InputBatch, NSamples, Seed, Target
from ..settings import Above, Unit, check_settings
from ..validation import valid_seed

SLOPE_BY_KIND: dict[GradientMoment, str] = {
    "mean": "mean slope: change of the score",
    "squared": "mean squared slope of the score",
    "variance": "variance of the slope of the score",
}


@card(
    name="SmoothGrad",
    aliases=("noise_tunnel",),
    source="Smilkov et al. 2017, arXiv:1706.03825, section 3 (Hooker et al. 2019 squared, Adebayo et al. 2018)",
    shows="Where larger or smaller values would change this score, on average over noisy copies of the input.",
    does_not_show="How the model answers on clean inputs alone: noisy copies are unlike what it was trained on.",
    example=lambda method, box, x, y: method(box, x, y, n_samples=4),
    exempt={"one forward": "it takes gradients at many noisy copies"},
    axioms=("dummy",),
    runs=lambda s: s["n_samples"],
    texts=True,
    order=4,
)
def smoothgrad(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    n_samples: NSamples = 50,
    noise: Annotated[
        float, Above(0), Unit("input range"), "Standard deviation of the noise, as a fraction of the input's range."
    ] = 0.15,
    kind: Annotated[GradientMoment, "What is taken of the gradients: their mean, mean square or variance."] = "mean",
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The gradient averaged over noisy copies of the input: less noisy than `gradient`, at `n_samples` times its cost.

    Take kind="squared" for maps that rank where the score is sensitive (Hooker et al. 2019). For contributions that sum
    to a score take `integrated_gradients`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the class predicted
            for x without noise.
        n_samples: Number of random samples. Each is a copy of x with normal noise.
        noise: Standard deviation of the noise, as a fraction of the input's range. The range is max - min of each
            image, and a column's standard deviation for features.
        kind: What is taken of the gradients: their mean, mean square or variance. The mean is signed; the variance is
            that of the samples, not an estimate for a larger population.
        seed: Seed of all random draws: same seed, same result. Noise is keyed by (seed, row, sample).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map, shaped like x. Where a final ReLU clamps the score, gradients before the clamp are taken, and an
        UnboxedWarning says so.

    Raises:
        InputError: for inputs, classes or settings that do not fit.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.smoothgrad(box, x, y, n_samples=8).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Smilkov et al. 2017, arXiv:1706.03825, section 3. "squared": SmoothGrad-Squared, Hooker et al. 2019,
        arXiv:1806.10758. "variance": VarGrad, Adebayo et al. 2018, arXiv:1810.03307.
    """
    check_settings(smoothgrad, locals())
    x = box.validate_inputs(x)
    path = NoisePath(x, noise * noise_scale(box.inputs, x), equal_weights(n_samples), valid_seed(seed))
    objective = resolve_target(box, target, x, batch_size)
    result = path_mean_gradient(box, objective, path, len(x), moment=kind, batch_size=batch_size, relu_bypass="last")
    raise_for_nonfinite_scores(~result.has_finite_scores, "x with noise")
    if kind == "variance":  # which is zero on any linear model
        warn_not_finite(f"the variance of the gradient of {objective.name}", result.map)
    else:
        warn_of_zero_or_nonfinite_gradients(objective, result.map, result.before_clamp)
    target = target_or_predicted_classes(objective, target)
    return make_attribution(
        box, result.map, x=x, method="SmoothGrad", over_embedding="length", target=target,
        slope=SLOPE_BY_KIND[kind], slope_power=1 if kind == "mean" else 2,
    )  # fmt: skip
