"""The square attack: random squares, kept where they help. No gradient is asked for.

Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
arXiv:1912.00049, Algorithms 1 to 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, TINY, NormBall, Linf, resolve_ball, l2_norm, broadcast_rows
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import hashed_uniform
from ..validation import check_seed, check_float, check_int
from .attempt import Attempt, in_range
from .levels import saved
from .result import Adversarial

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: the squares' area halves after each
LEAST = 3  # the side of the smallest square of the l2 attack: in a single pixel, hill and hollow cancel out
TILES = 5  # along each side of an image, at the start of the l2 attack


@card(
    name="Square attack",
    source="Andriushchenko et al. 2020, arXiv:1912.00049, Algorithms 1 to 3",
    shows="An image within eps of this one that the model takes for something else, found by asking for outputs alone.",
    does_not_show="That there is none where it fails: it is a random search, and more queries find more.",
    norms=("linf", "l2"),
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, queries=6),
    needs=("pixels",),
    exempt={"one look": "it is a search: `queries` looks"},
)
def square(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: NormBall | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    queries: int = 5000,
    p: float = 0.8,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images within `eps` of x (`norm` "linf" or "l2", or `ball=`) that the model does not take for y.

    At most `queries` images a row are tried, beside the original. `p` is the share of the image that the first squares
    cover. Climbs the margin; towards a `target`, the cross-entropy. Raises InputError.
    """
    require_images(box, "the square attack")
    ball = in_range(box, _ball(eps, norm, ball))
    queries, seed, p = (
        check_int("queries", queries, minimum=1),
        check_seed(seed),
        check_float("p", p, above=0, maximum=1),
    )
    attempt = Attempt(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    rows = attempt.begin()
    with attempt:
        search(attempt, ball, rows, queries=queries, p=p, seed=seed)
    saved(attempt, bits, ball, gradients=False)
    return attempt.result()


def _ball(eps: float | None, norm: str, ball: NormBall | None) -> NormBall:
    ball = resolve_ball(eps, norm, ball)
    if not isinstance(ball, (Linf, L2)):
        raise InputError('the square attack takes norm="linf" or "l2"')
    return ball


def search(attempt: Attempt, ball: NormBall, rows: Tensor, *, queries: int, p: float, seed: int) -> None:
    """The square attack on those of the rows that are not fooled yet."""
    rows = rows[~attempt.success[rows]]
    for block in attempt.blocks(rows) if len(rows) else ():
        squares = _Stripes(attempt, ball.eps) if isinstance(ball, Linf) else _Hills(attempt, ball)
        _Search(attempt, squares, seed).run(block, queries, p)


def side(query: int, queries: int, p: float, height: int, width: int) -> int:
    """The side of the squares at a query: p of the image at first, halved on a schedule stretched to `queries`."""
    share = p / 2 ** sum(query * 10_000 > after * queries for after in HALVED)
    return max(1, min(height, width, round(math.sqrt(share * height * width))))


class Squares(Protocol):
    """How a norm's squares are drawn."""

    def first(self, rows: Tensor, seed: int) -> Tensor: ...
    def next(self, z: Tensor, rows: Tensor, side: int, seed: int, query: int) -> Tensor: ...


@dataclass
class _Search:
    """Random search on one block of rows, batched: all rows try their own square at once."""

    attempt: Attempt
    squares: Squares
    seed: int

    def run(self, rows: Tensor, queries: int, p: float) -> None:
        new = best = self.squares.first(rows, 2 * self.seed)
        h, w = best.shape[-2:]
        score = fooled = best.new_full((len(rows),), -math.inf)
        try:
            for query in range(queries):
                if query:
                    new = self.squares.next(best, rows, side(query, queries, p, h, w), 2 * self.seed + 1, query)
                new_score, new_fooled = self._looked(new, rows)
                better = new_score > score
                best[better] = new[better]
                score, fooled = torch.where(better, new_score, score), torch.where(better, new_fooled, fooled)
                good = new_fooled > 0
                if good.any():
                    self.attempt.keep(new, rows, good)
                    rows, best, score, fooled = (h[~good] for h in (rows, best, score, fooled))
                    if not len(rows):
                        return
        finally:  # Ctrl-C too
            self.attempt.offer(best, rows, fooled)

    def _looked(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Score and fooled: the margin is both, but towards a target the paper climbs the cross-entropy."""
        if self.attempt.goal.become is not None:
            return self.attempt.look(z, rows)
        fooled = self.attempt.fooled(z, rows)
        return fooled, fooled


def _squares(u: Tensor, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The index of a square a row of `like` (n, C, H, W), in all channels, placed by uniform draws (n, 2)."""
    n, k, step = (torch.arange(m, device=u.device) for m in (*like.shape[:2], side))
    top, left = ((u[:, i] * (like.shape[2 + i] - side + 1)).long()[:, None] for i in (0, 1))
    i, j = top + step, left + step  # (n, h)
    return n[:, None, None, None], k[:, None, None], i[:, None, :, None], j[:, None, None, :]


# -- linf: Algorithm 2 -------------------------------------------------------------------------------------------------


class _Stripes:
    """Every pixel at one of the two ends of its range: at first in vertical stripes, then square by square."""

    def __init__(self, attempt: Attempt, eps: float) -> None:
        self.x, self.eps, self.clip = attempt.x, eps, attempt.box.inputs.clip
        self._of: Tensor | None = None

    def _ends(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the most that pixels may be, kept for as long as the same rows ask."""
        if self._of is None or len(self._of) != len(rows):
            x = self.x[rows]
            self._of, self._low, self._high = rows, self.clip(x - self.eps), self.clip(x + self.eps)
        return self._low, self._high

    def first(self, rows: Tensor, seed: int) -> Tensor:
        (low, high), (_, c, _, w) = self._ends(rows), self.x.shape
        up = hashed_uniform(seed, rows, 0, c * w).view(-1, c, 1, w) < 0.5
        return torch.where(up, high, low)

    def next(self, z: Tensor, rows: Tensor, side: int, seed: int, query: int) -> Tensor:
        u = hashed_uniform(seed, rows, query, 3 + z.shape[1])
        here = _squares(u[:, :2], side, z)
        low, high = (end[here] for end in self._ends(rows))  # (n, C, h, h)
        up = u[:, 3:] < 0.5  # (n, C) which end each channel goes to
        same = (torch.where(up[..., None, None], high, low) == z[here]).flatten(1).all(1)
        up = up ^ (_some(u[:, 2], up.shape[1]) & same[:, None])  # to look at the same image again would be a loss
        new = z.clone()
        new[here] = torch.where(up[..., None, None], high, low)
        return new


def _some(u: Tensor, c: int) -> Tensor:
    """Of uniform draws (n,), sets of channels (n, C) that are not empty, all alike likely."""
    code = 1 + (u.double() * (2**c - 1)).long()  # at most 2^24 sets are told apart
    some: Tensor = (code[:, None] >> torch.arange(c, device=u.device) & 1).bool()
    return some


# -- l2: Algorithm 3 ---------------------------------------------------------------------------------------------------


class _Hills:
    """A hill beside a hollow in a square, paid for by what another square gives up."""

    def __init__(self, attempt: Attempt, ball: NormBall) -> None:
        self.x, self.ball, self.clip = attempt.x, ball, attempt.box.inputs.clip
        self._bumps: dict[int, Tensor] = {}

    def _bump(self, side: int, turned: Tensor) -> Tensor:
        """The pattern (n, 1, side, side) of norm one, lying where `turned`."""
        if side not in self._bumps:
            self._bumps[side] = bump(side).to(self.x)
        up = self._bumps[side]
        return torch.where(turned.view(-1, 1, 1, 1), up.T, up)

    def _at(self, nu: Tensor, x: Tensor) -> Tensor:
        return self.clip(self.ball.project(x + nu, x))

    def first(self, rows: Tensor, seed: int) -> Tensor:
        """A grid of such patterns, each channel of each with its own sign."""
        x, c, size = self.x[rows], self.x.shape[1], self.x.shape[2:]
        side = max(1, min(size) // TILES)
        tall, wide = (s // side for s in size)
        u = hashed_uniform(seed, rows, 0, (c + 1) * tall * wide).view(-1, c + 1, tall, wide)
        nu = torch.zeros_like(x)
        top, left = ((s - n * side) // 2 for s, n in zip(size, (tall, wide), strict=True))
        for i in range(tall):
            for j in range(wide):
                sign = torch.where(u[:, :c, i, j, None, None] < 0.5, 1.0, -1.0)
                tile = nu[..., top + i * side :, left + j * side :][..., :side, :side]
                tile.copy_(sign * self._bump(side, u[:, c, i, j] < 0.5))
        return self._at(nu * broadcast_rows(self.ball.eps / l2_norm(nu).clamp_min(TINY), nu), x)

    def next(self, z: Tensor, rows: Tensor, side: int, seed: int, query: int) -> Tensor:
        x, c, side = self.x[rows], z.shape[1], max(side, min(LEAST, *z.shape[2:]))
        nu, u = z - x, hashed_uniform(seed, rows, query, 5 + c)
        here, there = (_squares(u[:, k : k + 2], side, z) for k in (0, 2))
        unused = (self.ball.eps**2 - l2_norm(nu) ** 2).clamp_min(0) / c  # (n,) a channel's share
        old, gone = nu[here], _norm(nu[there]) ** 2  # (n, C, h, h), (n, C)
        sign = torch.where(u[:, 5:] < 0.5, 1.0, -1.0).to(z)[..., None, None]
        new = sign * self._bump(side, u[:, 4] < 0.5) + _unit(old)
        nu[there] = 0
        available = (gone + _norm(nu[here]) ** 2 + unused[:, None]).sqrt()  # of both squares, counted once
        nu[here] = _unit(new) * available[..., None, None]
        return self._at(nu, x)


def _norm(h: Tensor) -> Tensor:
    """(n, C) of (n, C, h, h)."""
    norm: Tensor = torch.linalg.vector_norm(h, dim=(2, 3))
    return norm


def _unit(h: Tensor) -> Tensor:
    return h / _norm(h).clamp_min(TINY)[..., None, None]


def bump(side: int) -> Tensor:
    """eta (side, side) of norm one: a hill in the upper half, a hollow in the lower (arXiv:1912.00049, section 3.4)."""
    upper = side // 2
    eta = torch.cat([hill(side, upper).T, -hill(side, side - upper).T])
    return eta / float(eta.norm())


def hill(tall: int, wide: int) -> Tensor:
    """eta^(h1, h2) for h1 >= h2: the sum over k = 0..M(r, s) of 1 / (n + 1 - k)^2, the higher the farther inside."""
    n = tall // 2
    r, s = ((torch.arange(1, m + 1) - m // 2 - 1).abs() for m in (tall, wide))
    inner = n - torch.maximum(r[:, None], s[None, :])  # M(r, s)
    sums: Tensor = 1 / torch.arange(n + 1, 0, -1, dtype=torch.float64) ** 2
    return sums.cumsum(0)[inner]
