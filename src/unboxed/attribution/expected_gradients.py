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
from ..engine.gradients.paths import References, equal, mean, scores
from ..engine.perturb.baselines import difference
from ..engine.read.edited_runs import runs
from ..engine.read.edits import settled
from ..engine.read.examples import batches
from ..engine.results import tell_not_finite
from ..inputs.multi import MultiInput
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import sample_generator
from ..validation import check_seed, check_int

MOST = 1024  # references taken of a data set: its first


@dataclass(frozen=True, eq=False)
class ExpectedGradients:
    map: Any  # (N, ...) shaped like x; for several inputs a dict or tuple
    error: Tensor  # (N,) |sum of the map - difference|
    difference: Tensor  # (N,) score(x) - the mean score of the references drawn for it


@card(
    name="Expected gradients",
    source="Erion et al. 2021, arXiv:1906.10670",
    shows="How this score is made up of the input's changes from what other inputs have there.",
    does_not_show="More than a mean of draws can: shares add up to the difference only as samples become many.",
    example=lambda method, box, x, y: method(box, x, y, references=some(box), n_samples=4),
    exempt={"one look": "it looks at many points on the way from many references"},
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
    objective = settled(box, target, x, batch_size)
    others = _accepted(box, references)
    order, alpha = _draws(len(x), len(others), k, seed)
    path = References(x, others, order[:, torch.arange(k) % len(others)], alpha, equal(k))
    found = mean(box, objective, path, len(x), batch_size=batch_size).map
    high = runs(box, x, objective, logits=False, batch_size=batch_size).score[:, 0]
    drawn = torch.bincount(torch.arange(k) % len(others)) / k  # (min(M, K),) the share of each
    ends = References(x, others, order, torch.zeros_like(alpha), drawn)
    low = scores(box, objective, ends, len(x), batch_size=batch_size) @ drawn.to(x)
    gap = difference(high, low)
    tell_not_finite(f"the gradient of {objective.name} between references and x", found)
    return ExpectedGradients(box.restore_structure(found), (found.flatten(1).sum(1) - gap).abs(), gap)


def some(box: Box) -> Any:
    """A few valid inputs, for want of data."""
    drawn = box.inputs.sample(8, torch.Generator(box.device).manual_seed(0))
    return box.restore_structure(drawn)


def _accepted(box: Box, references: Any) -> Tensor:
    """References (M, ...). Raises InputError or DataError."""
    plain = isinstance(references, Tensor | Mapping) or isinstance(box.inputs, MultiInput)
    return box.validate_inputs(references if plain else next(batches(references, MOST)))


def _draws(n: int, m: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """For each row: the references in an order of its own (N, M), and alphas (N, K), one from each K-th of [0, 1]."""
    orders, alphas = list[Tensor](), list[Tensor]()
    for row in range(n):
        generator = sample_generator(seed, row, 0, torch.device("cpu"))
        orders.append(torch.randperm(m, generator=generator))
        part = torch.randperm(k, generator=generator)
        alphas.append((part + torch.rand(k, generator=generator, dtype=torch.float64)) / k)
    return torch.stack(orders), torch.stack(alphas)
