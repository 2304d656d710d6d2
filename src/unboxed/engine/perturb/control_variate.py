"""Variance reduction for LIME: a control variate learned from the masks that were run.

LIME estimates theta, the weighted least squares coefficients of the score y on masks z, from K random masks. Most of
their variance comes from what no linear function of z explains in y: interactions between segments.

Derivation. Let g be any function of masks, and let P be the weighted linear regression over all masks, with the same
weights. By definition P(g - P g) = 0: g - P g adds nothing to the coefficients. So for any c

    P(y - c (g - P g)) = P y,

and the regression of y - c (g - P g) on the sampled masks estimates the same theta as that of y, with less variance
where g - P g is correlated with the residual of y: g - P g is a control variate, and c its coefficient, here the least
squares one, clipped to [0, 1].

- g is kernel ridge regression on the masks that were run (`surrogate`). It costs no run of the model, so P g can be
  computed from thousands of reference masks that are scored by g alone.
- So that the estimate is not biased by fitting y to itself, the value of g at a sampled mask is learned without that
  mask and its complementary pair (leave-pair-out, in closed form).
- Segments that masking does not change get one common weight; `control_slope` carries P g's own weight of them.

Two more reductions are elsewhere: masks are drawn as orthogonal arrays (`masks`), and segments that masking does not
change are summed over (`local_model.KernelWeightMoments`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...rng import derive_seed
from .local_model import KernelWeightMoments, LocalLinearModel, RegressionKind, fit_weighted_regression
from .masks import SampledMasks, bernoulli_masks
from .surrogate import MIN_TRAINING_MASKS, N_KERNEL_SELECTION_MASKS, KernelRidgeSurrogate

MAX_SURROGATE_ONLY_MASKS = 4096  # masks that are scored by the surrogate alone


def make_surrogate_and_reference_masks(
    sampled: SampledMasks, seed: int
) -> tuple[KernelRidgeSurrogate, SampledMasks] | None:
    """A surrogate of the score, and masks to be scored by it alone; None where all masks are run, or too few."""
    if bool((sampled.cluster < 0).all()) or len(sampled.mask_index) < MIN_TRAINING_MASKS:
        return None
    n_masks = min(MAX_SURROGATE_ONLY_MASKS, 16 * len(sampled.mask_index))
    n_segments = sampled.masks.shape[1]
    masks = bernoulli_masks(n_segments, n_masks, derive_seed("surrogate", seed), deduplicate=False)
    return KernelRidgeSurrogate(sampled.float_masks[1:]), masks


def fit_local_model_with_control_variate(
    design: RegressionDesign,
    y: Tensor,
    *,
    regression: RegressionKind,
    alpha: float,
    max_features: int | None = None,
    use_log_odds: bool = False,
) -> LocalLinearModel:
    """The weighted regression of y (K,) on the masks: on all segments, or the `max_features` of the largest weights.

    Ribeiro et al. 2016, section 3.4. `use_log_odds`: y are probabilities, and the surrogate learns their log-odds.
    """
    adjusted, control_slope = design.subtract_control_variate(y, use_log_odds)
    z, kernel_weights, cluster = design.sampled.float_masks, design.kernel_weights, design.sampled.cluster
    local = fit_weighted_regression(z, y, adjusted, control_slope, kernel_weights, cluster, regression, alpha)
    if max_features is None or max_features >= z.shape[1]:
        return local
    top = local.weights.abs().topk(max_features).indices.sort().values
    refit = fit_weighted_regression(
        z[:, top], y, adjusted, 0.0, replace(kernel_weights, n_unchanged=0), cluster, regression, alpha
    )
    zeros = torch.zeros_like(local.weights)
    weights, error = zeros.index_copy(0, top, refit.weights), zeros.index_copy(0, top, refit.standard_error)
    return LocalLinearModel(weights, error, 0.0, refit.intercept, refit.r2)


@dataclass(frozen=True)
class RegressionDesign:
    """The masks of a row with their weights and, for the control variate, many more masks that are not run."""

    sampled: SampledMasks
    kernel_weights: KernelWeightMoments
    surrogate: KernelRidgeSurrogate | None  # None where all masks are run, or too few
    references: tuple[SampledMasks, KernelWeightMoments] | None  # masks that are scored by the surrogate alone

    @classmethod
    def from_masks(
        cls,
        sampled: SampledMasks,
        n_features: int,
        kernel_width: float,
        surrogate_and_masks: tuple[KernelRidgeSurrogate, SampledMasks] | None,
    ) -> RegressionDesign:
        kernel_weights = KernelWeightMoments.from_masks(sampled, n_features, kernel_width)
        if surrogate_and_masks is None:
            return cls(sampled, kernel_weights, None, None)
        surrogate, reference_masks = surrogate_and_masks
        share = sampled.weight[1:].sum() / reference_masks.weight[1:].sum()  # the input itself counts as much in both
        weight = torch.cat([reference_masks.weight[:1], reference_masks.weight[1:] * share])
        reference_masks = replace(reference_masks, weight=weight)
        reference_weights = KernelWeightMoments.from_masks(reference_masks, n_features, kernel_width)
        return cls(sampled, kernel_weights, surrogate, (reference_masks, reference_weights))

    def subtract_control_variate(self, y: Tensor, use_log_odds: bool) -> tuple[Tensor, float]:
        """y less its control variate, (K,), and the slope of that in the number of unchanged segments kept."""
        if self.surrogate is None or self.references is None or float(y.std()) < 1e-12:
            return y, 0.0
        z, m0, selection = self.sampled.float_masks, self.kernel_weights.moment0, slice(1, 1 + N_KERNEL_SELECTION_MASKS)
        selection_residual = _LinearResidual(z[selection], m0[selection])
        y_residual = selection_residual(y[selection])
        predicted, g = self.surrogate.fit(
            y[1:],
            lambda h: selection_residual.residual_sum_of_squares(y_residual, selection_residual(h)),
            use_log_odds=use_log_odds,
        )
        linear = _fit_local_model_to_surrogate(g, *self.references)
        unchanged_part = linear.unchanged_weight * self.kernel_weights.moment1 / m0
        control = torch.cat([g(z[:1]), predicted]) - linear.intercept - z @ linear.weights - unchanged_part
        residual = _LinearResidual(z, m0)
        coefficient = residual.control_coefficient(residual(y), residual(control))
        return y - coefficient * control, coefficient * linear.unchanged_weight


def _fit_local_model_to_surrogate(
    g: Callable[[Tensor], Tensor], masks: SampledMasks, weights: KernelWeightMoments
) -> LocalLinearModel:
    """P g: the regression of the surrogate on reference masks."""
    values, unsampled = g(masks.float_masks), masks.cluster.new_full((1,), -1)
    return fit_weighted_regression(masks.float_masks, values, values, 0.0, weights, unsampled, "ols", 0.0)


class _LinearResidual:
    """The residual of a weighted linear regression on masks z (K, A), of values (K,), times the root of the weights."""

    def __init__(self, z: Tensor, weight: Tensor) -> None:
        self.root = weight.sqrt()
        self.q: Tensor = torch.linalg.qr(self.root[:, None] * torch.cat([torch.ones_like(z[:, :1]), z], 1)).Q

    def __call__(self, h: Tensor) -> Tensor:
        h = self.root * h
        return h - self.q @ (self.q.T @ h)

    def control_coefficient(self, y: Tensor, control: Tensor) -> float:
        """The coefficient of a control variate, in [0, 1], that leaves the smallest residual."""
        size = float(control @ control)
        return min(1.0, max(0.0, float(y @ control) / size)) if size > 1e-300 else 0.0

    def residual_sum_of_squares(self, y: Tensor, control: Tensor) -> float:
        """The sum of squares that is left."""
        return float(((y - self.control_coefficient(y, control) * control) ** 2).sum())
