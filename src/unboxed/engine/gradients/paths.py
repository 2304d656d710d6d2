"""Paths: the points at which a gradient method takes gradients, their weights, and their weighted mean.

A gradient method is a path of points x a backward rule: `path_mean_gradient(box, objective, path, n,
rule=relu_rules.GUIDED_BACKPROP_RULE)` is guided integrated gradients on a `LinePath`, guided SmoothGrad on a
`NoisePath`; `wrt=` a layer gives the mean gradient there. Points are made, and their gradients summed, one bounded
batch at a time:
memory does not grow with the number of points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import torch
from torch import Tensor

from ... import rng
from ...box import Box
from ...inputs.base import Inputs
from ...inputs.features import Features
from ...inputs.multi import MultiInput
from ...inputs.tokens import Tokens
from ...model.batching import BatchSize, map_example_variants_in_batches, run_all_example_variants
from ...model.relu_rules import ReluRule
from ...objectives import Objective
from ..column_units import scale_of_values
from ..cpu_cache import path_points_per_batch
from ..rows import broadcast_rows
from .score import ReluBypass, gradients_of_batch

GradientMoment = Literal["mean", "squared", "variance"]
MIN_POINTS_PER_LINE = 8  # of an example in a batch, for which its points are made by themselves


class GradientPath(Protocol):
    """K points for each example."""

    @property
    def weights(self) -> Tensor: ...  # (K,), on the CPU

    def __call__(self, example_ids: Tensor, point_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """The k-th points (R,) of the examples n (R,), indices on the CPU: (R, ...), and a factor of their gradients,
        if any."""


# -- paths -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LinePath:
    """The straight line from a start to x, at t (K,) of its length (Sundararajan et al. 2017, section 3)."""

    x: Tensor  # (N, ...)
    start: Tensor  # (N, ...)
    t: Tensor  # (K,), in [0, 1]
    weights: Tensor  # (K,)

    def __call__(self, example_ids: Tensor, point_ids: Tensor) -> tuple[Tensor, None]:
        examples, counts = torch.unique_consecutive(example_ids, return_counts=True)
        t = self.t[point_ids].to(self.x)
        if len(examples) * MIN_POINTS_PER_LINE > len(example_ids):
            example_ids = example_ids.to(self.x.device)
            return interpolate(self.start[example_ids], self.x[example_ids], t), None
        points = self.x.new_empty(len(t), *self.x.shape[1:])  # without a copy of both ends for each point
        fractions_and_points = (torch.split(h, counts.tolist()) for h in (t, points))
        for i, fractions, out in zip(examples.tolist(), *fractions_and_points, strict=True):
            torch.mul(broadcast_rows(fractions, out), self.x[i] - self.start[i], out=out).add_(self.start[i])
        return points, None


def interpolate(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points (R, ...) at fractions t (R,) between start and end (R, ...)."""
    return start + broadcast_rows(t, end) * (end - start)


@dataclass(frozen=True, eq=False)
class NoisePath:
    """x and normal noise of standard deviation `sigma`, keyed by (seed, row, sample)."""

    x: Tensor  # (N, ...)
    sigma: Tensor  # broadcast to x
    weights: Tensor  # (K,)
    seed: int = 0

    def __call__(self, example_ids: Tensor, point_ids: Tensor) -> tuple[Tensor, None]:
        noise = seeded_normal_noise(self.x, example_ids, point_ids, self.seed)
        example_ids = example_ids.to(self.x.device)
        return self.x[example_ids] + self.sigma.expand_as(self.x)[example_ids] * noise, None


@dataclass(frozen=True, eq=False)
class ReferencePath:
    """Points between references and x, each gradient times its own x - reference (Erion et al. 2021, equation 4)."""

    x: Tensor  # (N, ...)
    references: Tensor  # (M, ...)
    reference_index: Tensor  # (N, K) which reference
    alpha: Tensor  # (N, K) in [0, 1]: how far from it
    weights: Tensor  # (K,)

    def __call__(self, example_ids: Tensor, point_ids: Tensor) -> tuple[Tensor, Tensor]:
        start = self.references[self.reference_index[example_ids, point_ids].to(self.x.device)]
        end = self.x[example_ids.to(self.x.device)]
        return interpolate(start, end, self.alpha[example_ids, point_ids].to(self.x)), end - start


# -- points and weights on [0, 1] ------------------------------------------------------------------------------------


# -- draws -----------------------------------------------------------------------------------------------------------

NOISE_SAMPLES_PER_SEED = 8  # samples per seed: seeding a generator costs as much as sampling a small image


def seeded_normal_noise(like: Tensor, example_ids: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
    """Standard normal values (R, ...): sample k (R,) of row n (R,), the same in any batch."""
    blocks, pairs = list[Tensor](), zip(example_ids.tolist(), sample_ids.tolist(), strict=True)
    for (row, block), group in groupby(pairs, key=lambda pair: (pair[0], pair[1] // NOISE_SAMPLES_PER_SEED)):
        samples = [sample % NOISE_SAMPLES_PER_SEED for _, sample in group]
        generator = rng.sample_generator(seed, row, block, like.device)
        values = torch.randn(
            NOISE_SAMPLES_PER_SEED, *like.shape[1:], generator=generator, device=like.device, dtype=like.dtype
        )
        blocks.append(values[samples[0] : samples[-1] + 1])
    return torch.cat(blocks)


def noise_scale(inputs: Inputs, x: Tensor) -> Tensor:
    """The unit of noise, broadcast to x (N, ...): max - min of each image, a column's std or range as in attacks."""
    if isinstance(inputs, MultiInput):
        parts = inputs.parts.values() if isinstance(inputs.parts, Mapping) else inputs.parts
        units = [noise_scale(part, v).expand_as(v).flatten(1) for part, v in zip(parts, inputs.split(x), strict=True)]
        return torch.cat(units, 1)
    if isinstance(inputs, Features):
        return scale_of_values(inputs, x)
    if isinstance(inputs, Tokens):
        return inputs.noise_scale(x)
    flat = x.flatten(1)
    return broadcast_rows(flat.amax(1) - flat.amin(1), x)


# -- the mean over a path --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PathMeanGradient:
    map: Tensor  # (N, ...) shaped like the input, or like the layer
    before_clamp: Tensor  # (N,) bool: some gradient was taken before a final ReLU that clamps the score at zero
    has_finite_scores: Tensor  # (N,) bool: the score is a finite number at all of its points


def path_mean_gradient(
    box: Box,
    objective: Objective,
    path: GradientPath,
    n_examples: int,
    *,
    moment: GradientMoment = "mean",
    rule: ReluRule | None = None,
    wrt: str = "input",
    batch_size: BatchSize = "auto",
    relu_bypass: ReluBypass = "no",
) -> PathMeanGradient:
    """The weighted mean, over the path's points, of d score / d input (or / d activation at `wrt`) for n examples.

    `moment` "squared" is the mean of its square, "variance" that of its squared distance from the mean, both weighted.
    `objective` is one that does not change from point to point (`edits.settled`).
    """
    accumulator = _GradientAccumulator(
        box, box.check_objective(objective, n_examples), path, n_examples, moment, rule, wrt, relu_bypass
    )
    together, plan = box.batch_dependent or objective.batch_dependent, _path_batch_size_and_max_rows(box, batch_size)
    map_example_variants_in_batches(accumulator.add_batch, n_examples, len(path.weights), plan, together)
    return PathMeanGradient(
        torch.stack([accumulator.sums[i].value for i in range(n_examples)]).to(box.dtype),
        accumulator.before_clamp,
        accumulator.has_finite_scores,
    )


class _GradientAccumulator:
    def __init__(
        self,
        box: Box,
        objective: Objective,
        path: GradientPath,
        n_examples: int,
        moment: GradientMoment,
        rule: ReluRule | None,
        wrt: str,
        relu_bypass: ReluBypass,
    ) -> None:
        self.box, self.objective, self.path, self.moment = box, objective, path, moment
        self.rule, self.wrt, self.relu_bypass = rule, wrt, relu_bypass
        # so that sums do not depend on the batches
        self.sum_dtype = torch.float32 if box.device.type == "mps" else torch.float64
        self.weights = path.weights.to(box.device, self.sum_dtype)
        self.sums: dict[int, _RunningMoment] = {}
        self.before_clamp = torch.zeros(n_examples, dtype=torch.bool, device=box.device)
        self.has_finite_scores = ~self.before_clamp

    def add_batch(self, example_index: Tensor, point_index: Tensor) -> None:
        """Add the gradients at pairs of example (R,) and point (R,) to the examples' sums."""
        with torch.inference_mode(False):
            points, factors = self.path(example_index, point_index)
        objective = self.objective.rows(example_index.to(self.box.device))
        result = gradients_of_batch(self.box, objective, points, self.rule, self.wrt, self.relu_bypass)
        grads = result.map if factors is None else result.map * factors
        example_ids, counts = (h.tolist() for h in torch.unique_consecutive(example_index, return_counts=True))
        weights = torch.split(self.weights[point_index.to(self.box.device)], counts)
        groups = zip(example_ids, weights, torch.split(grads.to(self.sum_dtype), counts), strict=True)
        sums = [(self.sums.get(i) or _RunningMoment.zeros(self.moment, g)).add(w, g) for i, w, g in groups]
        self.sums.update(zip(example_ids, sums, strict=True))  # last: a batch that ran out of memory runs again
        example_index = example_index.to(self.box.device)
        self.before_clamp[example_index[result.before_clamp]] = True
        self.has_finite_scores[example_index[~result.score.isfinite()]] = False


@dataclass(frozen=True)
class _RunningMoment:
    """One example's sums so far; a variance is taken around the first gradient, which loses no digits."""

    moment: GradientMoment
    offset: Tensor | float
    total: Tensor
    squares: Tensor | None

    @classmethod
    def zeros(cls, moment: GradientMoment, gradients: Tensor) -> _RunningMoment:
        zero = torch.zeros_like(gradients[0])
        return cls(
            moment, gradients[0].clone() if moment == "variance" else 0.0, zero, None if moment == "mean" else zero
        )

    def add(self, weights: Tensor, gradients: Tensor) -> _RunningMoment:
        """With gradients g (R, ...) of weights w (R,)."""
        gradients = gradients - self.offset if self.moment == "variance" else gradients
        squares = None if self.squares is None else self.squares + torch.tensordot(weights, gradients**2, 1)
        return _RunningMoment(self.moment, self.offset, self.total + torch.tensordot(weights, gradients, 1), squares)

    @property
    def value(self) -> Tensor:
        if self.squares is None:
            return self.total
        return self.squares if self.moment == "squared" else (self.squares - self.total**2).clamp(min=0)


def path_scores(
    box: Box, objective: Objective, path: GradientPath, n_examples: int, *, batch_size: BatchSize = "auto"
) -> Tensor:
    """The score at each of the path's points, (N, K); no gradients."""

    def run_batch(example: Tensor, point: Tensor) -> list[Tensor]:
        with torch.inference_mode(False):
            points, _ = path(example, point)
        with box.isolated(grad=False):
            batch_objective = objective.rows(example.to(box.device))
            return [batch_objective(box.forward(points, batch_objective.layers)).to(box.dtype)]

    together, plan = box.batch_dependent or objective.batch_dependent, _path_batch_size_and_max_rows(box, batch_size)
    (scores,) = run_all_example_variants(run_batch, n_examples, len(path.weights), plan, together)
    return scores


def _path_batch_size_and_max_rows(box: Box, batch_size: BatchSize) -> tuple[BatchSize, int]:
    """The plan for batches of pairs of example and point."""
    return box.batch_size_and_max_rows(1, batch_size)[0], path_points_per_batch(box)
