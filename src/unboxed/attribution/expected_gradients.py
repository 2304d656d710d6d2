"""Expected gradients: integrated gradients with a distribution as the baseline.

Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution priors and expected
gradients", arXiv:1906.10670.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution, target_or_predicted_classes
from ..engine.gradients.paths import ReferencePath, path_mean_gradient, path_scores
from ..engine.gradients.quadrature import equal_weights
from ..engine.perturb.baselines import score_difference
from ..engine.read.edited_runs import run_variants
from ..engine.read.edits import resolve_target
from ..engine.results import warn_not_finite
from ..inputs.examples import input_batches, open_data
from ..inputs.multi import MultiInput
from ..parameters import BatchSize, InputBatch, NSamples, Seed, Target
from ..rng import sample_generator
from ..settings import AlsoNamed, ValueRole, check_settings
from ..validation import valid_seed

MAX_REFERENCE_EXAMPLES = 1024  # taken of a data set: its first examples


@card(
    name="Expected gradients",
    aliases=("gradient_shap",),
    source="Erion et al. 2021, arXiv:1906.10670",
    shows="How this score is made up of the input's differences from other inputs.",
    does_not_show="More than a mean of samples can: contributions sum to the difference only as samples become many.",
    example=lambda method, box, x, y: method(box, x, y, references=random_card_references(box), n_samples=4),
    exempt={"one forward": "it takes gradients at many points between many references and x"},
    axioms=("dummy",),
    runs=lambda s: s["n_samples"],
)
def expected_gradients(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    references: Annotated[
        Any,
        ValueRole("data"),
        AlsoNamed("baselines"),
        "Inputs that x is compared with: a tensor (M, ...), or a data set, of which 1024 are taken.",
    ],
    n_samples: NSamples = 100,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """Integrated gradients with a data set as the baseline: what x shares with all references gets nothing.

    Take it where no single baseline is neutral. `integrated_gradients` with one baseline is exact to a tolerance; here
    contributions are a mean of random samples.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        references: Inputs that x is compared with: a tensor (M, ...), or a data set, of which 1024 are taken.
        n_samples: Number of random samples. Each is a reference (each example draws without replacement until all have
            been drawn) and a point between it and x (one from each of as many equal parts of [0, 1]); both keep the
            mean and lower its variance.
        seed: Seed of all random draws: same seed, same result. Draws are keyed by (seed, row).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The mean over references x' and alpha uniform in [0, 1] of (x - x') * d score / d x at x' + alpha (x - x');
        signed, shaped like x, in units of the score. Besides: `score_difference` (N,), score(x) less the mean score of
        the references drawn for it, which the map sums to in expectation; `completeness_error` (N,), how far it is off.

    Raises:
        InputError or DataError: for references that do not fit the model.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> references, _ = ub.data.digits("train").first(20)
        >>> a = ub.attribution.expected_gradients(box, x, y, references=references, n_samples=20)
        >>> tuple(a.shape), list(a.extras)
        ((2, 1, 28, 28), ['completeness_error', 'score_difference'])

    Source:
        Erion et al. 2021, arXiv:1906.10670, equation 3. Deviation: references and alphas are stratified, as above.
    """
    check_settings(expected_gradients, locals())
    x, k, seed = box.validate_inputs(x), n_samples, valid_seed(seed)
    objective = resolve_target(box, target, x, batch_size)
    reference_inputs = _validate_references(box, references)
    order, alpha = _draw_reference_orders_and_alphas(len(x), len(reference_inputs), k, seed)
    path = ReferencePath(
        x, reference_inputs, order[:, torch.arange(k) % len(reference_inputs)], alpha, equal_weights(k)
    )
    path_mean = path_mean_gradient(box, objective, path, len(x), batch_size=batch_size).map
    high = run_variants(box, x, objective, logits=False, batch_size=batch_size).score[:, 0]
    # (min(M, K),) the fraction of samples that each reference gets
    reference_weights = torch.bincount(torch.arange(k) % len(reference_inputs)) / k
    endpoints = ReferencePath(x, reference_inputs, order, torch.zeros_like(alpha), reference_weights)
    low = path_scores(box, objective, endpoints, len(x), batch_size=batch_size) @ reference_weights.to(x)
    gap = score_difference(high, low)
    warn_not_finite(f"the gradient of {objective.name} between references and x", path_mean)
    return make_attribution(
        box,
        path_mean,
        x=x,
        method="Expected gradients",
        target=target_or_predicted_classes(objective, target),
        score=high,
        completeness_error=(path_mean.flatten(1).sum(1) - gap).abs(),
        score_difference=gap,
    )


def random_card_references(box: Box) -> Any:
    """A few random valid inputs, where there is no data."""
    samples = box.inputs.random_inputs(8, torch.Generator(box.device).manual_seed(0))
    return box.restore_structure(samples)


def _validate_references(box: Box, references: Any) -> Tensor:
    """References (M, ...). Raises InputError or DataError."""
    is_plain = isinstance(references, Tensor | Mapping) or isinstance(box.inputs, MultiInput)
    return box.validate_inputs(references if is_plain else _read_first_references(box, references))


def _read_first_references(box: Box, references: Any) -> Tensor:
    return next(input_batches(open_data(references, box.inputs), MAX_REFERENCE_EXAMPLES))


def _draw_reference_orders_and_alphas(
    n_examples: int, n_references: int, n_samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """For each row: the references in a random order (N, M), and alphas (N, K), one from each of K parts of [0, 1]."""
    orders, alphas = list[Tensor](), list[Tensor]()
    for row in range(n_examples):
        generator = sample_generator(seed, row, 0, torch.device("cpu"))
        orders.append(torch.randperm(n_references, generator=generator))
        part = torch.randperm(n_samples, generator=generator)
        alphas.append((part + torch.rand(n_samples, generator=generator, dtype=torch.float64)) / n_samples)
    return torch.stack(orders), torch.stack(alphas)
