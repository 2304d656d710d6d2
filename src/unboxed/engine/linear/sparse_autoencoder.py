"""Sparse autoencoders of features (N, D): many directions, of which each row has a few.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093 (top-k, and the auxiliary loss that
revives dead features); Bussmann et al. 2024, "BatchTopK sparse autoencoders", arXiv:2412.06410; Fel et al. 2025,
"Archetypal SAE", arXiv:2502.12892 (directions inside the hull of the data, which makes them stable). Several of them,
and their twins whose directions stay random ("frozen": arXiv:2602.14111), are fitted in one loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ... import rng
from ...errors import InputError
from ...model import state
from ..rows import MAX_ROW_MATRIX_VALUES, evenly_spaced_indices, row_chunks
from .clusters import k_means

SparseActivation = Literal["top_k", "batch_top_k"]

LEARNING_RATE = 5e-3  # of Adam, which decreases linearly to 0 in the last part
LR_DECAY_FRACTION = 0.5  # of the steps
ROWS_PER_STEP = 256
AUXILIARY_WEIGHT = 1 / 32  # of the loss by which dead features learn the rest, as Gao et al. take it
DEAD_AFTER_STEPS = 20  # steps without a row that has it make a feature dead; it then learns by the auxiliary loss
RESTART_EVERY_STEPS = 25  # a dead feature is started again from a row that is rebuilt badly
RESTART_PHASE_FRACTION = 0.9  # of the steps in which that is done
THRESHOLD_AVERAGING_STEPS = 50  # last steps from which the threshold of batch-top-k is taken
CENTROIDS_PER_FEATURE = 4  # centroids of the data that archetypal directions are mixed of
MAX_CLUSTERED_ROWS = 20_000  # evenly spread rows whose centroids are taken


@dataclass(frozen=True)
class AutoencoderConfig:
    """How autoencoders are fitted.

    Attributes:
        n_features: Number of directions F.
        k: Number of directions that a row has; of batch-top-k on average.
        activation: "top_k" or "batch_top_k".
        archetypal: Whether directions are mixtures of the data (convex combinations of centroids).
        n_steps: Number of steps of Adam, of 256 rows each.
    """

    n_features: int
    k: int
    activation: SparseActivation = "top_k"
    archetypal: bool = False
    n_steps: int = 1000

    def check(self, n_rows: int) -> None:
        """Raise InputError for more active features than there are, or a dictionary larger than the data allow."""
        if self.k > self.n_features:
            raise InputError(f"k must be {self.n_features} or less, the number of features; got {self.k}")
        if self.n_features > n_rows:
            raise InputError(
                f"a dictionary of {self.n_features} features is larger than the {n_rows} rows of activations allow: "
                f"each would learn one row by heart; ask for n_features={n_rows} or fewer, or give more examples"
            )


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """A fitted autoencoder. Features are in the units of the activations.

    Attributes:
        directions: (F, D) the decoder's, of length 1.
        encoder: (F, D) how a feature is read.
        offset: (D,) what no feature stands for: it is subtracted first and added last.
        k: Number of features that a row has.
        threshold: Of batch-top-k: the amount from which a feature is active. None of top-k.
    """

    directions: Tensor
    encoder: Tensor
    offset: Tensor
    k: int
    threshold: float | None = None

    def encode(self, h: Tensor) -> Tensor:
        """The amounts (..., F) of each feature in activations (..., D): 0 of all but a few."""
        amounts = ((h - self.offset) @ self.encoder.T).clamp_min(0)
        return _keep_top_k(amounts, self.k) if self.threshold is None else amounts * (amounts >= self.threshold)

    def decode(self, amounts: Tensor) -> Tensor:
        """Activations (..., D) of amounts (..., F)."""
        return amounts @ self.directions + self.offset

    def largest(self, h: Tensor) -> Tensor:
        """The largest amount (N, F) of each feature over the positions of activations (N, P, D)."""
        parts = row_chunks(h.shape[1], len(h) * len(self.directions))
        return reduce(torch.maximum, (self.encode(h[:, part]).amax(1) for part in parts))

    def strength_and_frequency(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared amount (F,) of each feature in rows (A, D), and the share of the rows that have it."""
        squares = active = h.new_zeros(len(self.directions))
        for part in row_chunks(len(h), len(self.directions)):
            amounts = self.encode(h[part])
            squares, active = squares + amounts.square().sum(0), active + (amounts > 0).sum(0)
        return squares / len(h), active / len(h)

    def double(self) -> SparseAutoencoder:
        """The same in float64."""
        parts = {name: getattr(self, name).double() for name in ("directions", "encoder", "offset")}
        return replace(self, **parts)

    def rescaled(self, scale: float, offset: Tensor) -> SparseAutoencoder:
        """That of activations which are `scale` times as large, plus an offset (D,)."""
        threshold = None if self.threshold is None else self.threshold * scale
        return replace(self, offset=self.offset * scale + offset, threshold=threshold)


def fit_autoencoders(
    h: Tensor, plan: AutoencoderConfig, seeds: Sequence[int], *, n_frozen: int = 0
) -> tuple[list[SparseAutoencoder], list[SparseAutoencoder]]:
    """An autoencoder of features (N, D) for each seed, and twins of the first `n_frozen` with frozen directions.

    A twin sees the same rows in the same order as its autoencoder, and starts from the same random directions. Raises
    InputError for a plan that the data do not allow.
    """
    plan.check(len(h))
    with state.setting_grad_mode(True):  # the caller may be in no_grad or inference_mode
        h = h.detach().clone()
        offset = h.mean(0)
        scale = float((h - offset).square().mean().sqrt()) or 1.0
        x = (h - offset) / scale  # so that one learning rate fits all layers
        n_models = 2 if n_frozen else 1  # per seed
        own, twins = list[SparseAutoencoder](), list[SparseAutoencoder]()
        for part in row_chunks(len(seeds), n_models * _largest_tensor_values_per_model(x, plan)):
            some = seeds[part]
            found = _fit(x, plan, some, min(len(some), max(0, n_frozen - part.start)))
            own, twins = own + found[: len(some)], twins + found[len(some) :]
    return [a.rescaled(scale, offset) for a in own], [a.rescaled(scale, offset) for a in twins]


def _largest_tensor_values_per_model(x: Tensor, plan: AutoencoderConfig) -> int:
    """Of the largest tensor of a fit: directions, amounts of a step's rows, or shares of points."""
    n_points = _n_centroids(len(x), plan) if plan.archetypal else 0
    return plan.n_features * max(x.shape[1], min(len(x), ROWS_PER_STEP), n_points)


def _n_centroids(n_rows: int, plan: AutoencoderConfig) -> int:
    """How many points archetypal directions are mixed of."""
    return min(CENTROIDS_PER_FEATURE * plan.n_features, n_rows, max(1, MAX_ROW_MATRIX_VALUES // plan.n_features))


def _fit(x: Tensor, plan: AutoencoderConfig, seeds: Sequence[int], n_frozen: int) -> list[SparseAutoencoder]:
    """The autoencoders of centered rows (N, D), and then the twins."""
    stack = _AutoencoderStack.start(x, plan, list(seeds), n_frozen)
    generators = [rng.keyed_generator(rng.CPU, "autoencoder rows", seed) for seed in seeds]
    orders = [_ShuffledRowBatches(len(x), generator) for generator in generators]
    optimizer = torch.optim.Adam(stack.parameters, LEARNING_RATE)
    decay_steps = max(1, round(LR_DECAY_FRACTION * plan.n_steps))
    for step in range(plan.n_steps):
        rows = torch.stack([order.next() for order in orders])  # (S, B)
        rows = torch.cat([rows, rows[:n_frozen]]).to(x.device)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (plan.n_steps - step) / decay_steps)
        optimizer.zero_grad()
        torch.autograd.backward(stack.loss(x[rows], step))
        optimizer.step()
        stack.learned.project()
        if step % RESTART_EVERY_STEPS == RESTART_EVERY_STEPS - 1 and step < RESTART_PHASE_FRACTION * plan.n_steps:
            stack.restart_dead(x[rows], generators)
    return stack.autoencoders()


class _ShuffledRowBatches:
    """Batches of rows, each row once per epoch."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator = n, min(n, ROWS_PER_STEP), generator
        self.remaining = torch.empty(0, dtype=torch.long)

    def next(self) -> Tensor:
        while len(self.remaining) < self.size:
            self.remaining = torch.cat([self.remaining, torch.randperm(self.n, generator=self.generator)])
        rows, self.remaining = self.remaining[: self.size], self.remaining[self.size :]
        return rows


@dataclass(eq=False)
class _AutoencoderStack:
    """M autoencoders with one parameter tensor each kind: the learned ones first, then those with frozen directions."""

    plan: AutoencoderConfig
    encoder: Tensor  # (M, F, D)
    offset: Tensor  # (M, D)
    learned: _LearnedDirections
    frozen: Tensor  # (Z, F, D)
    idle_steps: Tensor  # (M, F) steps since a row had the feature
    thresholds: list[Tensor] = field(default_factory=list)  # (M,) of the last steps

    @classmethod
    def start(cls, x: Tensor, plan: AutoencoderConfig, seeds: list[int], n_frozen: int) -> _AutoencoderStack:
        n_features, d = plan.n_features, x.shape[1]
        first = torch.stack([_random_directions(n_features, d, seed) for seed in seeds]).to(x)  # (S, F, D)
        learned = _LearnedDirections.start(x, plan, first, seeds)
        with torch.no_grad():
            start = torch.cat([learned(), first[:n_frozen]])
        m = len(start)
        return cls(
            plan, start.clone().requires_grad_(), x.new_zeros(m, d).requires_grad_(), learned, first[:n_frozen],
            torch.zeros(m, n_features, dtype=torch.long, device=x.device),
        )  # fmt: skip

    @property
    def parameters(self) -> list[Tensor]:
        return [self.encoder, self.offset, self.learned.weights]

    def loss(self, x: Tensor, step: int) -> Tensor:
        """The sum over autoencoders of the squared errors of rows (M, B, D), with the dead features' share."""
        directions = torch.cat([self.learned(), self.frozen])
        centered = x - self.offset[:, None]
        all_amounts = (centered @ self.encoder.mT).clamp_min(0)  # (M, B, F)
        amounts = self._apply_sparse_activation(all_amounts, step)
        rest = centered - amounts @ directions
        loss = rest.square().mean((1, 2)).sum()
        is_dead = self._update_dead_mask(amounts.detach())
        return loss + AUXILIARY_WEIGHT * self._auxiliary_losses(all_amounts, is_dead, directions, rest.detach()).sum()

    def _apply_sparse_activation(self, amounts: Tensor, step: int) -> Tensor:
        if self.plan.activation == "top_k":
            return _keep_top_k(amounts, self.plan.k)
        m, b, f = amounts.shape
        kept = _keep_top_k(amounts.view(m, b * f), min(self.plan.k * b, b * f)).view(m, b, f)
        if step >= self.plan.n_steps - THRESHOLD_AVERAGING_STEPS:
            smallest = torch.where(kept > 0, kept, torch.inf).amin((1, 2)).detach()
            self.thresholds.append(torch.where(smallest.isfinite(), smallest, 0.0))
        return kept

    def _update_dead_mask(self, amounts: Tensor) -> Tensor:
        """(M, F) bool: no row of the last steps has the feature."""
        is_active = (amounts > 0).any(1)
        self.idle_steps = torch.where(is_active, 0, self.idle_steps + 1)
        return self.idle_steps >= DEAD_AFTER_STEPS

    def _auxiliary_losses(self, amounts: Tensor, is_dead: Tensor, directions: Tensor, rest: Tensor) -> Tensor:
        """(M,) how badly dead features rebuild what the others leave: of each row the D / 2 largest."""
        if not bool(is_dead.any()):
            return rest.new_zeros(len(rest))
        rebuilt = _keep_top_k(amounts * is_dead[:, None], max(self.plan.k, rest.shape[2] // 2)) @ directions
        error = (rest - rebuilt).square().mean((1, 2))
        share: Tensor = error / rest.square().mean((1, 2)).clamp_min(torch.finfo(rest.dtype).tiny)
        return torch.where(is_dead.any(1), share, 0.0)

    @torch.no_grad()
    def restart_dead(self, x: Tensor, generators: Sequence[torch.Generator]) -> None:
        """Start the dead features again at what the weakest feature of badly rebuilt rows (M, B, D) stood for.

        Rows are drawn in proportion to their squared error, as Bricken et al. 2023 do. In the row's place stands the
        row without its k - 1 strongest features, so that the new feature competes with the weakest one.
        """
        directions = torch.cat([self.learned(), self.frozen])
        for i, generator in enumerate(generators):
            dead = (self.idle_steps[i] >= DEAD_AFTER_STEPS).nonzero().flatten()
            if not len(dead):
                continue
            centered = x[i] - self.offset[i]
            amounts = (centered @ self.encoder[i].T).clamp_min(0)
            error = (centered - _keep_top_k(amounts, self.plan.k) @ directions[i]).square().sum(1)
            if not float(error.sum()) > 0:
                continue
            drawn = torch.multinomial(error.square().cpu(), len(dead), replacement=True, generator=generator)
            rest = centered - _keep_top_k(amounts, self.plan.k - 1) @ directions[i]
            self.encoder[i, dead] = self.learned.restart(i, dead, rest[drawn.to(x.device)])
            self.idle_steps[i, dead] = 0

    def autoencoders(self) -> list[SparseAutoencoder]:
        with torch.no_grad():
            directions = torch.cat([self.learned(), self.frozen])
        thresholds = torch.stack(self.thresholds).mean(0).tolist() if self.thresholds else [None] * len(directions)
        encoder, offset = self.encoder.detach(), self.offset.detach()
        return [SparseAutoencoder(directions[i], encoder[i], offset[i], self.plan.k, thresholds[i])
                for i in range(len(directions))]  # fmt: skip


@dataclass(eq=False)
class _LearnedDirections:
    """Learned directions (S, F, D) of length 1: free, or mixtures of points of the data."""

    weights: Tensor  # (S, F, D) the directions themselves; of mixtures (S, F, P), the shares of the points
    points: Tensor | None = None  # (P, D)

    @classmethod
    def start(cls, x: Tensor, plan: AutoencoderConfig, first: Tensor, seeds: list[int]) -> _LearnedDirections:
        if not plan.archetypal:
            return cls(first.clone().requires_grad_())
        n_points = _n_centroids(min(len(x), MAX_CLUSTERED_ROWS), plan)
        n_rows = max(n_points, min(MAX_CLUSTERED_ROWS, MAX_ROW_MATRIX_VALUES // n_points))
        rows = x[torch.tensor(evenly_spaced_indices(len(x), n_rows), device=x.device)]
        points = k_means(rows, n_points).centers  # the same for all seeds
        shares = x.new_zeros(len(seeds), plan.n_features, len(points))
        for i, seed in enumerate(seeds):  # each feature starts at a point, of its own where there are enough
            generator = rng.keyed_generator(rng.CPU, "archetypes", seed)
            order = torch.randperm(len(points), generator=generator).repeat(-(-plan.n_features // len(points)))
            shares[i, torch.arange(plan.n_features), order[: plan.n_features]] = 1
        return cls(shares.requires_grad_(), points)

    def __call__(self) -> Tensor:
        return nn.functional.normalize(self.weights if self.points is None else self.weights @ self.points, dim=-1)

    def restart(self, i: int, features: Tensor, start: Tensor) -> Tensor:
        """Set some features of the i-th to these directions (R, D), or the nearest points; the directions (R, D)."""
        if self.points is None:
            self.weights[i, features] = nn.functional.normalize(start, dim=1)
        else:
            nearest = (start @ nn.functional.normalize(self.points, dim=1).T).argmax(1)
            self.weights[i, features] = nn.functional.one_hot(nearest, len(self.points)).to(start)
        return self()[i, features]

    @torch.no_grad()
    def project(self) -> None:
        """Shares that are not negative and sum to 1."""
        if self.points is not None:
            shares = self.weights.clamp_min_(0)
            shares /= shares.sum(-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


def _random_directions(n: int, d: int, seed: int) -> Tensor:
    generator = rng.keyed_generator(rng.CPU, "directions", seed)
    return nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def _keep_top_k(amounts: Tensor, k: int) -> Tensor:
    """The k largest of each row (..., F), the others set to 0."""
    if k >= amounts.shape[-1] or not k:
        return amounts * bool(k)
    top = amounts.topk(k, dim=-1)
    return torch.zeros_like(amounts).scatter(-1, top.indices, top.values)


def matched_cosines(a: Tensor, b: Tensor, *, signed: bool = True) -> Tensor:
    """The cosine of each direction of a (F, D) with its partner of b (G, D), F or G of them, by the best assignment.

    Hungarian method. Unless they are `signed`, a direction and its negative are one.
    """
    cosines = nn.functional.normalize(a.double(), dim=1) @ nn.functional.normalize(b.double(), dim=1).T
    cosines = cosines if signed else cosines.abs()
    i, j = linear_sum_assignment(-cosines.cpu().numpy())
    return cosines[torch.as_tensor(i), torch.as_tensor(j)]
