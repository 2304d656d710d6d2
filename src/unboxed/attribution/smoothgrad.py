"""SmoothGrad: the mean gradient over noisy copies of the input, the mean of its square, or its variance.

Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", arXiv:1706.03825, section 3. SmoothGrad-Squared:
Hooker et al. 2019, arXiv:1806.10758. VarGrad: Adebayo et al. 2018, arXiv:1810.03307.
"""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.paths import Moment, Noise, equal_weights, noise_unit, path_mean_gradient
from ..engine.gradients.score import warn_gradients
from ..engine.read.edits import resolve_target
from ..engine.results import warn_not_finite
from ..errors import InputError
from ..model.batching import BatchSize
from ..model.nan_checks import raise_for_nonfinite
from ..objectives import Objective
from ..validation import check_float, check_int, check_seed


@card(
    name="SmoothGrad",
    source="Smilkov et al. 2017, arXiv:1706.03825, section 3 (Hooker et al. 2019 squared, Adebayo et al. 2018)",
    shows="Where larger or smaller values would change this score, in the input and in noisy ones like it alike.",
    does_not_show="How the model answers on clean inputs alone: most noisy copies are inputs that it never saw.",
    example=lambda method, box, x, y: method(box, x, y, n_samples=4),
    exempt={"one forward": "it looks at many noisy copies"},
    axioms=("dummy",),
)
def smoothgrad(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    n_samples: int = 50,
    noise: float = 0.15,
    kind: Moment = "mean",
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Any:
    """The gradient over `n_samples` copies of x with normal noise: its "mean" (signed), mean square ("squared"), or
    "variance" (over the samples, not an estimate beyond them); shaped like x.

    `noise` is its standard deviation in parts of max - min of each image (of a column's std for features). The score is
    that of x: None is the class predicted for x without noise. Noise is keyed by (seed, row, sample). Where a final
    ReLU clamps the score, gradients before the clamp are taken, and an UnboxedWarning says so. Raises InputError.
    """
    if kind not in get_args(Moment):
        raise InputError(f"kind is {', '.join(map(repr, get_args(Moment)))}; got {kind!r}")
    x, n_points = box.validate_inputs(x), check_int("n_samples", n_samples, minimum=1)
    sigma = check_float("noise", noise, above=0) * noise_unit(box.inputs, x)
    path = Noise(x, sigma, equal_weights(n_points), check_seed(seed))
    objective = resolve_target(box, target, x, batch_size)
    result = path_mean_gradient(box, objective, path, len(x), moment=kind, batch_size=batch_size, relu_bypass="last")
    raise_for_nonfinite(~result.has_finite_scores, "x with noise")
    if kind == "variance":  # which is zero on any linear model
        warn_not_finite(f"the variance of the gradient of {objective.name}", result.map)
    else:
        warn_gradients(objective, result.map, result.before_clamp)
    return box.restore_structure(result.map)
