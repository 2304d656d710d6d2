"""HopSkipJump: which way the boundary lies is told by decisions around a point of it.

Chen, Jordan & Wainwright 2020, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", arXiv:1904.02144.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, Linf, l2_norm, unbounded_ball, broadcast_rows
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import sample_generator
from ..validation import check_float, check_int
from .attempt import Attempt
from .decisions import Decisions
from .levels import saved
from .result import Adversarial

VALUES = 2**22  # of the images around the boundary that are held at a time
DRAWS = {"l2": 50, "linf": 200}  # at the first step: about the best at 1,000 to 3,000 queries on digits
HALVINGS = 12  # of a step, until it fools


@card(
    name="HopSkipJump",
    source="Chen et al. 2020, arXiv:1904.02144, algorithm 2",
    shows="The nearest input found that the model takes for something else, from its decisions alone, no gradient.",
    does_not_show="That none is nearer: with more queries it comes nearer, and where a gradient can be had, that is surer.",
    norms=("l2", "linf"),
    example=lambda method, box, x, y: method(box, x, y, queries=40, draws=10),
    exempt={"one look": "it asks the model `queries` times"},
)
def hop_skip_jump(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    starts: Tensor | None = None,
    queries: int = 5000,
    draws: int | None = None,
    keep_going: bool = False,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images as near as can be (in `norm`, "l2" or "linf") that fool the model, in `queries` looks an example.

    It starts from the nearest fooling one of `starts` (S, ...), which a targeted attack must have, or from images of
    chance, and asks about `draws` points around the boundary at first (by default 50, in L-inf, where signs are wanted,
    200; the paper takes 100), and about sqrt(t) times as many at step t. With `eps`, an example leaves once it is
    within eps (`keep_going=True`: it goes on), and what is farther is no success.
    Raises InputError.
    """
    attempt = Attempt(box, x, y, norm=unbounded_ball(norm, ("l2", "linf")), target=target, objective=objective,
                      batch_size=batch_size)  # fmt: skip
    far = math.inf if eps is None else check_float("eps", eps, above=0)
    asked = Decisions(attempt, queries, seed)
    pool = None if starts is None else box.validate_inputs(starts)
    first = check_int("draws", DRAWS[norm.lower()] if draws is None else draws, minimum=2)
    hop = _Hop(asked, first, 0.0 if keep_going or eps is None else far)
    rows = attempt.begin()
    with attempt:
        hop.run(*asked.start(rows, pool))
    saved(attempt, bits, gradients=False)
    return attempt.result(far)


@dataclass
class _Hop:
    """The rows still under way; enough is their distance."""

    asked: Decisions
    draws: int
    enough: float

    def __post_init__(self) -> None:
        self.linf = isinstance(self.asked.norm, Linf)
        self.d = self.asked.x[0].numel()
        self.steps = math.ceil((2 if self.linf else 1.5) * math.log2(max(self.d, 2)))  # theta = d^-3/2; L-inf d^-2

    def run(self, z: Tensor, rows: Tensor) -> None:
        """From fooling images z (n, ...) to the boundary, and along it, until the budget is spent."""
        z = self.asked.bisect(z, rows, self.steps)
        t = 1
        while len(rows):
            far = self.asked.norm.distance(z, self.asked.x[rows])
            reserve = self.steps + 4  # for the step and the way back
            go = (self.asked.left(rows) > reserve + 1) & (far > max(self.enough, TINY))
            z, rows, far = z[go], rows[go], far[go]
            if len(rows):
                z = self._hop(z, rows, far, reserve, t)
            t += 1

    def _hop(self, z: Tensor, rows: Tensor, far: Tensor, reserve: int, t: int) -> Tensor:
        """One step of algorithm 2: a direction, a step that still fools, back to the boundary."""
        radius = far / self.d if t > 1 else 0.01 * far
        many = (self.asked.left(rows) - reserve).clamp_max(int(self.draws * math.sqrt(t)))
        v = self.direction(z, rows, radius, many, t)
        moved = self._step(z, rows, v, far / math.sqrt(t))
        return self.asked.bisect(moved, rows, self.steps)

    def direction(self, z: Tensor, rows: Tensor, radius: Tensor, many: Tensor, t: int) -> Tensor:
        """Where more of the neighborhood fools the model, eq. 16, from `many` (n,) decisions within `radius` (n,)."""
        plus, all_, count = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(radius)
        block = max(1, min(VALUES // 8 // self.d, 4096))
        at_once = (
            len(rows) if self.asked.box.batch_dependent else max(1, VALUES // (self.d * min(block, int(many.max()))))
        )
        for b, first in enumerate(range(0, int(many.max()), block)):
            for i in range(0, len(rows), at_once):
                part = slice(i, i + at_once)
                some = (many[part] - first).clamp(0, block)
                u, good = self._around(z[part], rows[part], radius[part], some, t * 4096 + b)
                plus[part] += (u * per_row2(good, u)).sum(1)
                all_[part] += u.sum(1)
                count[part] += good.sum(1)
        v = _difference(plus, all_, count, many)
        return v.sign() if self.linf else v / broadcast_rows(l2_norm(v).clamp_min(TINY), v)

    def _around(self, z: Tensor, rows: Tensor, radius: Tensor, some: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """Directions u (n, B, ...) to valid points around z (zero beyond `some`), and which of those fool."""
        b = max(1, int(some.max()))
        asked = torch.arange(b, device=z.device) < some[:, None]  # (n, B)
        u = torch.stack([self._draw(int(row), key, b, z) for row in rows])
        near = self.asked.box.inputs.clip((z[:, None] + broadcast_rows(radius, u) * u).flatten(0, 1)).view_as(u)
        u = (near - z[:, None]) / broadcast_rows(radius, u) * per_row2(asked, u)  # clipping turned some of them
        return u, self.asked.votes(near, rows, asked)

    def _draw(self, row: int, key: int, count: int, z: Tensor) -> Tensor:
        """Directions (count, ...) of length 1, keyed by the row: uniform, or for L-inf from a cube, as the paper's."""
        generator = sample_generator(self.asked.seed, row, key + 2**20, z.device)
        draw = torch.rand if self.linf else torch.randn
        u = draw(count, *z.shape[1:], generator=generator, device=z.device, dtype=z.dtype)
        u = 2 * u - 1 if self.linf else u
        return u / broadcast_rows(l2_norm(u).clamp_min(TINY), u)

    def _step(self, z: Tensor, rows: Tensor, v: Tensor, size: Tensor) -> Tensor:
        """The longest step along v, halved from `size` (n,), that still fools; z where none does."""
        moved, todo = z.clone(), torch.arange(len(rows), device=z.device)
        for halvings in range(HALVINGS):
            tried = self.asked.box.inputs.clip(z[todo] + broadcast_rows(size[todo] / 2**halvings, v) * v[todo])
            good = self.asked.fooled(tried, rows[todo])
            moved[todo[good]] = tried[good]
            todo = todo[~good]
            if not len(todo):
                break
        return moved


def _difference(plus: Tensor, all_: Tensor, count: Tensor, many: Tensor) -> Tensor:
    """The sum of (phi - mean phi) u, phi being 1 where a direction fools and else -1; of phi u where all are alike."""
    many = many.to(plus.dtype)
    mixed = 2 * (plus - broadcast_rows(count / many, plus) * all_)
    alike = torch.where(broadcast_rows(count > 0, all_), all_, -all_)
    return torch.where(broadcast_rows((count > 0) & (count < many), plus), mixed, alike)


def per_row2(v: Tensor, like: Tensor) -> Tensor:
    """(n, B) -> (n, B, 1, ...), to go with a tensor (n, B, ...)."""
    return v.view(*v.shape, *[1] * (like.ndim - 2))
