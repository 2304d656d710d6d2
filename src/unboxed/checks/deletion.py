"""Deletion and insertion: how fast the score falls, or rises, as pixels are deleted, or inserted, in a map's order.

Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", arXiv:1806.07421, its causal
metrics (and the authors' code, `evaluation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..argument_names import naming_arguments
from ..box import Box
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.results import ResultMixin
from ..errors import InputError
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, InputBatch, Seed, Target
from ..settings import AtLeast, Unit, check_settings, takes_texts
from ..spellings import taking_other_spellings
from ..validation import valid_seed
from .methods import Maps, RankBySignedValue
from .perturbing import (
    ScoreSetting,
    fix_score_and_classes,
    n_removable_per_example,
    perturbed_scores,
    pixel_importance,
    rank_descending,
    removable_tokens,
    removal_mask_shape,
)

DEFAULT_N_REMOVAL_STEPS = 50

NPerturbationSteps = Annotated[
    int | None, AtLeast(1), Unit("steps"), "Number of equal steps in which all pixels are changed."
]


@dataclass(frozen=True, repr=False, eq=False)
class PerturbationCurve(ResultMixin):
    """The score as pixels are deleted or inserted, the most important first."""

    fractions: Tensor  # (S + 1,) of the pixels changed, from 0 to 1
    curve: Tensor  # (N, S + 1)

    @property
    def auc(self) -> Tensor:
        """The area under each curve (N,) by the trapezoid rule, over fractions: the mean score along the curve."""
        return torch.trapezoid(self.curve.double(), self.fractions.double(), dim=1).to(self.curve.dtype)


@taking_other_spellings
@takes_texts
@naming_arguments
def deletion(
    box: Box,
    x: InputBatch,
    maps: Maps,
    target: Target = None,
    *,
    score: ScoreSetting = None,
    n_steps: NPerturbationSteps = None,
    baseline: Baseline = None,
    signed: RankBySignedValue = True,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> PerturbationCurve:
    """The score of x as its pixels become those of the baseline, the most important first: a low area is good.

    Does the map rank what the model relies on? Compare with the curve of `random_maps`. Black pixels are unlike natural
    images; `road` replaces pixels so that their shape leaves no trace.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result. A pixel's
            importance is the sum over its channels, which are deleted together.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x.
        score: What is measured of the class: its "probability" or its "logit". None is the probability; with an
            objective as `target` it must be None.
        n_steps: Number of equal steps in which all pixels are changed. None is 50, or one per pixel where there are
            fewer.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known. The authors' code takes "mean" (zero after
            normalization).
        signed: Rank pixels by the map with its sign; False ranks by its magnitude.
        seed: Seed of all random draws: same seed, same result. Equal pixels are deleted in an order drawn per example.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `PerturbationCurve`: `fractions` (S + 1,), `curve` (N, S + 1) and its area `auc` (N,).

    Raises:
        InputError: for maps, inputs or settings that do not fit.
        OutputError: for the probability of a regression model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> maps = ub.attribution.gradient_x_input(box, x, y)
        >>> random = ub.checks.random_maps(box, x)
        >>> [round(ub.checks.deletion(box, x, m, y).auc.mean().item(), 1) for m in (maps, random)]
        [0.1, 0.8]

    Source:
        Petsiuk et al. 2018, arXiv:1806.07421, section 4.1 (the deletion metric). Pixels of equal importance are ordered
        at random instead of by position.
    """
    check_settings(deletion, locals())
    x, seed = box.validate_inputs(x), valid_seed(seed)
    baseline_x = baseline_of(box, x, baseline, seed=seed)
    return _perturbation_curve(box, x, x, baseline_x, maps, target, score, n_steps, signed, seed, batch_size)


@taking_other_spellings
@takes_texts
@naming_arguments
def insertion(
    box: Box,
    x: InputBatch,
    maps: Maps,
    target: Target = None,
    *,
    score: ScoreSetting = None,
    n_steps: NPerturbationSteps = None,
    baseline: Baseline = None,
    signed: RankBySignedValue = True,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> PerturbationCurve:
    """The score as the pixels of x are inserted into the baseline, the most important first: a high area is good.

    The counterpart of `deletion`: is what the map marks enough for the score, and not only necessary?

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result. A pixel's
            importance is the sum over its channels, which are inserted together.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x.
        score: What is measured of the class: its "probability" or its "logit". None is the probability; with an
            objective as `target` it must be None.
        n_steps: Number of equal steps in which all pixels are changed. None is 50, or one per pixel where there are
            fewer.
        baseline: What x is compared with: a kind, a number or a tensor; None is x blurred by a tenth of its shorter
            side for images, for features the mean, or zeros where it is not known.
        signed: Rank pixels by the map with its sign; False ranks by its magnitude.
        seed: Seed of all random draws: same seed, same result. Equal pixels are inserted in an order drawn per example.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `PerturbationCurve`: `fractions` (S + 1,), `curve` (N, S + 1) and its area `auc` (N,).

    Raises:
        InputError: for maps, inputs or settings that do not fit.
        OutputError: for the probability of a regression model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> maps = ub.attribution.gradient_x_input(box, x, y)
        >>> ub.checks.insertion(box, x, maps, y).curve.shape
        torch.Size([4, 51])

    Source:
        Petsiuk et al. 2018, arXiv:1806.07421, section 4.1 (the insertion metric). The authors' code blurs photos of 224
        pixels by 5; blurring by a tenth of a side leaves less to read.
    """
    check_settings(insertion, locals())
    x, seed = box.validate_inputs(x), valid_seed(seed)
    blurred = "blurred" if isinstance(box.inputs, Pixels) else None
    start = baseline_of(box, x, blurred if baseline is None else baseline, seed=seed)
    return _perturbation_curve(box, x, start, x, maps, target, score, n_steps, signed, seed, batch_size)


def _perturbation_curve(
    box: Box, x: Tensor, start: Tensor, end: Tensor, maps: Maps, target: Target, score: ScoreSetting,
    n_steps: int | None, signed: bool, seed: int, batch_size: BatchSize,
) -> PerturbationCurve:  # fmt: skip
    relevance = pixel_importance(box, x, maps, signed=signed)
    rank = rank_descending(relevance, seed, removable_tokens(box, x))  # (N, P)
    n_features = n_removable_per_example(box, x, rank.shape[1])
    fractions = _fractions_changed_after_step(int(n_features.max()), n_steps).to(x.device)  # (S + 1,)
    counts = (n_features[:, None] * fractions).round().long()  # (N, S + 1)
    objective, _ = fix_score_and_classes(box, x, target, score, "probability", batch_size)

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        changed = rank[examples] < counts[examples, steps, None]  # (R, P)
        return [torch.where(changed.view(len(changed), *removal_mask_shape(box)), end[examples], start[examples])]

    (curve,) = perturbed_scores(box, objective, len(x), len(fractions), perturb, batch_size)
    return PerturbationCurve(fractions.to(box.dtype), curve.to(box.dtype))


def _fractions_changed_after_step(n_pixels: int, n_steps: int | None) -> Tensor:
    """The fraction of the pixels that are changed after each step, 0 to 1, (S + 1,). Raises InputError."""
    n_steps = min(DEFAULT_N_REMOVAL_STEPS, n_pixels) if n_steps is None else n_steps
    if n_steps > n_pixels:
        raise InputError(f"n_steps must be at most one per pixel, column or token, {n_pixels}; got {n_steps}")
    return torch.linspace(0, n_pixels, n_steps + 1, dtype=torch.float64).round() / max(1, n_pixels)
