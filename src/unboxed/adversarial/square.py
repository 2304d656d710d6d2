"""The square attack: random squares, kept where they help. No gradient is needed.

Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
arXiv:1912.00049, Algorithms 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import MIN_DENOMINATOR, Ball, Linf, NormBall, l2_norm
from ..engine.read.sizes import require_images
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    Eps,
    InputBatch,
    Labels,
    LinfOrL2Norm,
    MaxQueries,
    RoundingBits,
    Seed,
)
from ..rng import hashed_uniform
from ..settings import Above, AtMost, check_settings
from ..validation import valid_seed
from .attack_ball import resolve_attack_ball
from .attack_state import AttackState
from .quantization import quantize_images
from .result import Adversarial

AREA_HALVING_QUERIES = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # of 10,000 queries: the squares' area halves after each
MIN_L2_SQUARE_SIDE = 3  # of the smallest square of the L2 attack: in a single pixel, hill and hollow cancel
INITIAL_L2_TILES_PER_SIDE = 5  # along each side of an image, at the start of the l2 attack


@card(
    name="Square attack",
    source="Andriushchenko et al. 2020, arXiv:1912.00049, Algorithms 1 to 3",
    shows="An image within eps of this one that the model misclassifies, found from outputs alone.",
    does_not_show="That there is none where it fails: it is a random search, and more queries find more.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, queries=6),
    runs=lambda s: 1 + s["queries"],
    order=12,
    gradient_free=True,
    default_attack={"queries": 500},
    needs=("pixels",),
    exempt={"one forward": "it is a search of `queries` forward passes"},
)
def square(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: LinfOrL2Norm = "linf",
    ball: Ball = None,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    queries: MaxQueries = 5000,
    p: Annotated[float, Above(0), AtMost(1), "Fraction of the image that the first squares cover."] = 0.8,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Adversarial images within `eps` of x by random squares, without gradients.

    For models that give scores but no useful gradient, and as a check on `pgd`: where it finds more, gradients are
    masked. It needs the model's scores; where there are only decisions, use `hop_skip_jump`. For images only.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`.
        eps: Largest distance from x. In pixel range, 8/255 is eight gray levels; of a table, in standard deviations of
            its columns (see `Features`). Give this or `ball`.
        norm: Norm in which the distance from x is measured.
        ball: Norm ball to stay in, in place of eps and norm.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        queries: Largest number of forward passes per example. The one of the original is not counted.
        p: Fraction of the image that the first squares cover. It is halved on the schedule of the paper, stretched to
            `queries`.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Adversarial`: `images` like x, and `success`, `distance`, `queries` and `initially_misclassified`, each
        (N,). Where the attack fails, `images` has its best try.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.square(box, x, y, eps=0.3, queries=50).distance.max() <= 0.3 * (1 + 1e-6)
        tensor(True)

    Source:
        Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3. The margin is maximized; towards a target, the
        cross-entropy. Two deviations: a square that would leave the image as it is gets other colors, and the smallest
        squares in L2 are 3 pixels wide.
    """
    check_settings(square, locals())
    require_images(box, "the square attack")
    ball = resolve_attack_ball(box, eps, norm, ball, takes_l1=False, takes_own=False)
    seed = valid_seed(seed)
    state = AttackState(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    with state:
        rows = state.find_rows_to_attack()
        run_square_attack(state, ball, rows, queries=queries, p=p, seed=seed)
    quantize_images(state, bits, ball, use_gradients=False)
    return state.to_result()


def run_square_attack(state: AttackState, ball: NormBall, rows: Tensor, *, queries: int, p: float, seed: int) -> None:
    """The square attack on those of the rows that are not successes yet."""
    rows = rows[~state.success[rows]]
    for batch_rows in state.split_rows_into_batches(rows) if len(rows) else ():
        search = RandomSearch.for_ball(state, ball, seed)
        search.run(search.initial_progress(batch_rows), queries, p)


def square_side(query: int, queries: int, p: float, height: int, width: int) -> int:
    """The side of the squares at a query: p of the image at first, halved on a schedule stretched to `queries`."""
    area_fraction = p / 2 ** sum(query * 10_000 > halving_query * queries for halving_query in AREA_HALVING_QUERIES)
    return max(1, min(height, width, round(math.sqrt(area_fraction * height * width))))


class SquareSampler(Protocol):
    """The random squares of a norm."""

    def initial_images(self, rows: Tensor, seed: int) -> Tensor: ...
    def propose(self, images: Tensor, rows: Tensor, side: int, seed: int, query: int) -> Tensor: ...


@dataclass(eq=False)
class SearchProgress:
    """A random search of some rows after `next_query` queries: all that the queries after it depend on."""

    rows: Tensor  # (n,) those that are not successes yet
    images: Tensor  # (n, ...) the best so far
    score: Tensor  # (n,)
    success_score: Tensor  # (n,)
    next_query: int = 0


@dataclass
class RandomSearch:
    """Random search on one batch of rows: each row tries its own square."""

    state: AttackState
    sampler: SquareSampler
    seed: int

    @classmethod
    def for_ball(cls, state: AttackState, ball: NormBall, seed: int) -> RandomSearch:
        return cls(state, _LinfSquares(state, ball.eps) if isinstance(ball, Linf) else _L2Squares(state, ball), seed)

    def initial_progress(self, rows: Tensor) -> SearchProgress:
        """The progress before the first query."""
        images = self.sampler.initial_images(rows, 2 * self.seed)
        score = images.new_full((len(rows),), -math.inf)
        return SearchProgress(rows, images, score, score)

    def run(
        self,
        progress: SearchProgress,
        queries: int,
        p: float,
        save: Callable[[], None] | None = None,
        save_every: int = 1,
    ) -> None:
        """Go on until `queries` or all rows are successes; `save` is called between two queries, now and then."""
        try:
            while progress.next_query < queries and len(progress.rows):
                self._try_candidate_squares(progress, queries, p)
                if save is not None and progress.next_query % save_every == 0:
                    save()
        finally:  # Ctrl-C too
            self.state.update_best_failure(progress.images, progress.rows, progress.success_score)

    def _try_candidate_squares(self, progress: SearchProgress, queries: int, p: float) -> None:
        """One candidate per row: kept where it is better; rows for which it is a success leave."""
        rows, candidates, query = progress.rows, progress.images, progress.next_query
        if query:
            side = square_side(query, queries, p, *candidates.shape[-2:])
            candidates = self.sampler.propose(progress.images, rows, side, 2 * self.seed + 1, query)
        new_score, new_success_score = self._evaluate(candidates, rows)
        is_better = new_score > progress.score
        progress.images[is_better] = candidates[is_better]
        progress.score = torch.where(is_better, new_score, progress.score)
        progress.success_score = torch.where(is_better, new_success_score, progress.success_score)
        is_adversarial = new_success_score > 0
        if is_adversarial.any():
            self.state.update_nearest(candidates, rows, is_adversarial)
            progress.rows, progress.images, progress.score, progress.success_score = (
                h[~is_adversarial] for h in (rows, progress.images, progress.score, progress.success_score)
            )
        progress.next_query = query + 1

    def _evaluate(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Score and success score: the margin is both, but towards a target the paper maximizes the cross-entropy."""
        if self.state.goal.target_labels is not None:
            return self.state.evaluate(images, rows)
        success_score = self.state.success_score(images, rows)
        return success_score, success_score


def _square_index(uniform: Tensor, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The index of one square per row of `like` (n, C, H, W), in all channels, placed by uniform draws (n, 2)."""
    n, channels, offsets = (torch.arange(m, device=uniform.device) for m in (*like.shape[:2], side))
    top, left = ((uniform[:, i] * (like.shape[2 + i] - side + 1)).long()[:, None] for i in (0, 1))
    i, j = top + offsets, left + offsets  # (n, h)
    return n[:, None, None, None], channels[:, None, None], i[:, None, :, None], j[:, None, None, :]


# -- linf: Algorithm 2 -------------------------------------------------------------------------------------------------


class _LinfSquares:
    """Every pixel at one of the two ends of its range: at first in vertical stripes, then square by square."""

    def __init__(self, state: AttackState, eps: float) -> None:
        self.x, self.eps, self.clip = state.x, eps, state.box.inputs.clip
        self._cached_rows: Tensor | None = None

    def _pixel_bounds_in_ball(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the pixels, cached for as long as the rows are the same."""
        if self._cached_rows is None or len(self._cached_rows) != len(rows):
            x = self.x[rows]
            self._cached_rows, self._low, self._high = rows, self.clip(x - self.eps), self.clip(x + self.eps)
        return self._low, self._high

    def initial_images(self, rows: Tensor, seed: int) -> Tensor:
        (lower, upper), (_, c, _, w) = self._pixel_bounds_in_ball(rows), self.x.shape
        use_upper = hashed_uniform(seed, rows, 0, c * w).view(-1, c, 1, w) < 0.5
        return torch.where(use_upper, upper, lower)

    def propose(self, images: Tensor, rows: Tensor, side: int, seed: int, query: int) -> Tensor:
        uniform = hashed_uniform(seed, rows, query, 3 + images.shape[1])
        square_index = _square_index(uniform[:, :2], side, images)
        lower, upper = (bound[square_index] for bound in self._pixel_bounds_in_ball(rows))  # (n, C, h, h)
        use_upper = uniform[:, 3:] < 0.5  # (n, C) which end each channel goes to
        is_unchanged = (torch.where(use_upper[..., None, None], upper, lower) == images[square_index]).flatten(1).all(1)
        use_upper = use_upper ^ (
            _channel_masks_from_uniform(uniform[:, 2], use_upper.shape[1]) & is_unchanged[:, None]
        )  # the same image again would be a wasted query
        candidates = images.clone()
        candidates[square_index] = torch.where(use_upper[..., None, None], upper, lower)
        return candidates


def _channel_masks_from_uniform(uniform: Tensor, n_channels: int) -> Tensor:
    """From uniform draws (n,), non-empty sets of channels (n, C), all equally likely."""
    subset_code = 1 + (uniform.double() * (2**n_channels - 1)).long()  # at most 2^24 different sets
    subset: Tensor = (subset_code[:, None] >> torch.arange(n_channels, device=uniform.device) & 1).bool()
    return subset


# -- l2: Algorithm 3 ---------------------------------------------------------------------------------------------------


class _L2Squares:
    """A hill and a hollow in a square, with the norm freed by setting another square to zero."""

    def __init__(self, state: AttackState, ball: NormBall) -> None:
        self.x, self.ball, self.clip = state.x, ball, state.box.inputs.clip
        self._patterns: dict[int, Tensor] = {}

    def _unit_norm_pattern(self, side: int, is_transposed: Tensor) -> Tensor:
        """The pattern (n, 1, side, side) of norm one, lying where `turned`."""
        if side not in self._patterns:
            self._patterns[side] = l2_hill_and_hollow_pattern(side).to(self.x)
        upright = self._patterns[side]
        return torch.where(is_transposed.view(-1, 1, 1, 1), upright.T, upright)

    def _project(self, perturbation: Tensor, x: Tensor) -> Tensor:
        return self.clip(self.ball.project(x + perturbation, x))

    def initial_images(self, rows: Tensor, seed: int) -> Tensor:
        """A grid of such patterns, each channel of each with its own sign."""
        x, n_channels, size = self.x[rows], self.x.shape[1], self.x.shape[2:]
        side = max(1, min(size) // INITIAL_L2_TILES_PER_SIDE)
        n_tile_rows, n_tile_columns = (s // side for s in size)
        uniform = hashed_uniform(seed, rows, 0, (n_channels + 1) * n_tile_rows * n_tile_columns).view(
            -1, n_channels + 1, n_tile_rows, n_tile_columns
        )
        perturbation = torch.zeros_like(x)
        top, left = ((s - n * side) // 2 for s, n in zip(size, (n_tile_rows, n_tile_columns), strict=True))
        for i in range(n_tile_rows):
            for j in range(n_tile_columns):
                sign = torch.where(uniform[:, :n_channels, i, j, None, None] < 0.5, 1.0, -1.0)
                tile = perturbation[..., top + i * side :, left + j * side :][..., :side, :side]
                tile.copy_(sign * self._unit_norm_pattern(side, uniform[:, n_channels, i, j] < 0.5))
        return self._project(
            perturbation
            * broadcast_rows(self.ball.eps / l2_norm(perturbation).clamp_min(MIN_DENOMINATOR), perturbation),
            x,
        )

    def propose(self, images: Tensor, rows: Tensor, side: int, seed: int, query: int) -> Tensor:
        x, n_channels, side = self.x[rows], images.shape[1], max(side, min(MIN_L2_SQUARE_SIDE, *images.shape[2:]))
        perturbation, uniform = images - x, hashed_uniform(seed, rows, query, 5 + n_channels)
        square_index, zeroed_index = (_square_index(uniform[:, k : k + 2], side, images) for k in (0, 2))
        unused_budget = (self.ball.eps**2 - l2_norm(perturbation) ** 2).clamp_min(
            0
        ) / n_channels  # (n,) the fraction of a channel
        old_window, freed_budget = (
            perturbation[square_index],
            _window_norm(perturbation[zeroed_index]) ** 2,
        )  # (n, C, h, h), (n, C)
        sign = torch.where(uniform[:, 5:] < 0.5, 1.0, -1.0).to(images)[..., None, None]
        new_window = sign * self._unit_norm_pattern(side, uniform[:, 4] < 0.5) + _normalize_window(old_window)
        perturbation[zeroed_index] = 0
        available_norm = (
            freed_budget + _window_norm(perturbation[square_index]) ** 2 + unused_budget[:, None]
        ).sqrt()  # of both squares, counted once
        perturbation[square_index] = _normalize_window(new_window) * available_norm[..., None, None]
        return self._project(perturbation, x)


def _window_norm(window: Tensor) -> Tensor:
    """(n, C) of (n, C, h, h)."""
    norm: Tensor = torch.linalg.vector_norm(window, dim=(2, 3))
    return norm


def _normalize_window(window: Tensor) -> Tensor:
    return window / _window_norm(window).clamp_min(MIN_DENOMINATOR)[..., None, None]


def l2_hill_and_hollow_pattern(side: int) -> Tensor:
    """eta (side, side) of norm one: a hill in the upper half, a hollow in the lower (arXiv:1912.00049, section 3.4)."""
    upper_height = side // 2
    pattern = torch.cat(
        [l2_hill_half_pattern(side, upper_height).T, -l2_hill_half_pattern(side, side - upper_height).T]
    )
    return pattern / float(pattern.norm())


def l2_hill_half_pattern(height: int, width: int) -> Tensor:
    """eta^(h1, h2) for h1 >= h2: the sum over k = 0..M(r, s) of 1 / (n + 1 - k)^2, rising inward."""
    n = height // 2
    r, s = ((torch.arange(1, m + 1) - m // 2 - 1).abs() for m in (height, width))
    ring = n - torch.maximum(r[:, None], s[None, :])  # M(r, s)
    ring_values: Tensor = 1 / torch.arange(n + 1, 0, -1, dtype=torch.float64) ** 2
    return ring_values.cumsum(0)[ring]
