"""Expected gradients: integrated gradients with a whole distribution as the baseline.

Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution priors and expected
gradients", arXiv:1906.10670.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.paths import References, equal_weights, path_mean_gradient, path_scores
from ..engine.perturb.baselines import score_difference
from ..engine.read.edited_runs import run_variants
from ..engine.read.edits import resolve_target
from ..engine.read.examples import input_batches
from ..engine.results import warn_not_finite
from ..inputs.multi import MultiInput
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import sample_generator
from ..validation import check_int, check_seed

MAX_REFERENCES = 1024  # references taken of a data set: its first


@dataclass(frozen=True, eq=False)
class ExpectedGradients:
    map: Any  # (N, ...) shaped like x; for several inputs a dict or tuple
    completeness_error: Tensor  # (N,) |sum of the map - difference|
    score_difference: Tensor  # (N,) score(x) - the mean score of the references drawn for it


@card(
    name="Expected gradients",
    source="Erion et al. 2021, arXiv:1906.10670",
    shows="How this score is made up of the input's changes from what other inputs have there.",
    does_not_show="More than a mean of draws can: shares add up to the difference only as samples become many.",
    example=lambda method, box, x, y: method(box, x, y, references=example_references(box), n_samples=4),
    exempt={"one forward": "it looks at many points on the way from many references"},
    axioms=("dummy",),
)
def expected_gradients(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    references: Any,
    n_samples: int = 100,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> ExpectedGradients:
    """The mean of (x - x') * d score / d x at x' + alpha (x - x'), over references x' and alpha uniform in [0, 1].

    `references` (M, ...) are inputs like x, or a data set, of which the first 1024 are taken: what all of them share
    with x gets nothing. Each example draws `n_samples` of them without putting back, until all are drawn, and one alpha
    from each of as many equal parts of [0, 1]: both keep the mean and lower its variance. The map sums to the
    difference in expectation; `error` is how far it is off. Draws are keyed by (seed, row). Raises InputError.
    """
    x, k = box.validate_inputs(x), check_int("n_samples", n_samples, minimum=1)
    seed = check_seed(seed)
    objective = resolve_target(box, target, x, batch_size)
    reference_inputs = _validate_references(box, references)
    order, alpha = _sample_references(len(x), len(reference_inputs), k, seed)
    path = References(x, reference_inputs, order[:, torch.arange(k) % len(reference_inputs)], alpha, equal_weights(k))
    path_mean = path_mean_gradient(box, objective, path, len(x), batch_size=batch_size).map
    high = run_variants(box, x, objective, logits=False, batch_size=batch_size).score[:, 0]
    reference_weights = torch.bincount(torch.arange(k) % len(reference_inputs)) / k  # (min(M, K),) the share of each
    endpoints = References(x, reference_inputs, order, torch.zeros_like(alpha), reference_weights)
    low = path_scores(box, objective, endpoints, len(x), batch_size=batch_size) @ reference_weights.to(x)
    gap = score_difference(high, low)
    warn_not_finite(f"the gradient of {objective.name} between references and x", path_mean)
    return ExpectedGradients(box.restore_structure(path_mean), (path_mean.flatten(1).sum(1) - gap).abs(), gap)


def example_references(box: Box) -> Any:
    """A few valid inputs, for want of data."""
    samples = box.inputs.sample(8, torch.Generator(box.device).manual_seed(0))
    return box.restore_structure(samples)


def _validate_references(box: Box, references: Any) -> Tensor:
    """References (M, ...). Raises InputError or DataError."""
    is_plain = isinstance(references, Tensor | Mapping) or isinstance(box.inputs, MultiInput)
    return box.validate_inputs(references if is_plain else next(input_batches(references, MAX_REFERENCES)))


def _sample_references(n: int, m: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """For each row: the references in an order of its own (N, M), and alphas (N, K), one from each K-th of [0, 1]."""
    orders, alphas = list[Tensor](), list[Tensor]()
    for row in range(n):
        generator = sample_generator(seed, row, 0, torch.device("cpu"))
        orders.append(torch.randperm(m, generator=generator))
        part = torch.randperm(k, generator=generator)
        alphas.append((part + torch.rand(k, generator=generator, dtype=torch.float64)) / k)
    return torch.stack(orders), torch.stack(alphas)
