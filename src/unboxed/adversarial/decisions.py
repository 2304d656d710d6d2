"""What attacks by decisions share: a budget of looks, where to start, and the way back to the decision boundary."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.optimize.constraints import Linf, per_row
from ..errors import InputError, warn
from ..inputs.pixels import Pixels
from ..rng import hashed, of_sample
from ..validation import check_seed, whole
from .attempt import Attempt

TRIES = 100  # images of chance that may be tried as a start
CELLS = 7  # on the longer side of coarse noise


class Decisions:
    """The model as one who sees only whether it is fooled; each row is asked no more than `queries` times."""

    def __init__(self, attempt: Attempt, queries: int, seed: int) -> None:
        self.attempt, self.queries, self.seed = attempt, whole("queries", queries, least=1), check_seed(seed)
        self.box, self.x, self.norm = attempt.box, attempt.x, attempt.norm

    def left(self, rows: Tensor) -> Tensor:
        """(n,) how often each row may still be asked."""
        return self.queries - self.attempt.queries[rows]

    def fooled(self, z: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool. Rows of whom none may be asked any more give False: `z` is then not looked at."""
        able = self.left(rows) > 0
        found = torch.zeros_like(able)
        if able.any():
            found[able] = self.attempt.fooled(z[able], rows[able]) > 0
        return found

    def votes(self, z: Tensor, rows: Tensor, asked: Tensor) -> Tensor:
        """(n, B) bool, of several images z (n, B, ...) a row: those `asked` (n, B) for, which the budget must allow."""
        found = torch.zeros_like(asked)
        if not self.box.coupled:
            found[asked] = self.attempt.fooled(z[asked], rows[:, None].expand_as(asked)[asked]) > 0
            return found
        for b in range(z.shape[1]):  # rows that change one another: one image of each row at a time
            own = asked[:, b]
            if own.any():
                found[own, b] = self.attempt.fooled(z[own, b], rows[own]) > 0
        return found

    # -- where to start ----------------------------------------------------------------------------------------------

    def start(self, rows: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fooling images (m, ...) of those rows (m,) for which one was found, at any distance."""
        if starts is None and self.attempt.goal.become is not None:
            raise InputError("a targeted attack by decisions has to start somewhere: give images of the target class, "
                             "starts=, any number of them")  # fmt: skip
        z = self.x[rows]
        found = torch.zeros_like(rows, dtype=torch.bool)
        order = None if starts is None else self._nearest_first(rows, starts)
        for k in range(TRIES if order is None or starts is None else len(starts)):
            todo = (~found & (self.left(rows) > 0)).nonzero()[:, 0]
            if not len(todo):
                break
            tried = self._chance(rows[todo], k) if order is None or starts is None else starts[order[todo, k]]
            good = self.fooled(tried, rows[todo])
            z[todo[good]], found[todo[good]] = tried[good], True
            self.attempt.keep(tried, rows[todo], good)
        self._tell(int((~found).sum()), starts is not None)
        return z[found], rows[found]

    def _nearest_first(self, rows: Tensor, starts: Tensor) -> Tensor:
        """(n, S) the starts in the order of their distance from each row."""
        far = [self.norm.distance(starts, self.x[i].expand_as(starts)) for i in rows]
        return torch.stack(far).argsort(dim=1, stable=True) if far else rows.new_zeros(0, len(starts))

    def _chance(self, rows: Tensor, k: int) -> Tensor:
        """The k-th try of each row (n, ...): valid inputs drawn at random; of images, of four kinds."""
        made = [self._one(int(row), k) for row in rows]
        return self.box.inputs.clip(torch.stack(made).to(self.x.dtype))

    def _one(self, row: int, k: int) -> Tensor:
        inputs = self.box.inputs
        noise = inputs.sample(1, of_sample(self.seed, row, k, self.x.device))[0]
        if not isinstance(inputs, Pixels) or k % 4 == 0:
            return noise
        if k % 4 == 1:
            return _coarse(noise)
        return 1 - self.x[row] if k == 2 else (_coarse(noise) > 0.5 if k % 4 == 3 else noise > 0.5)

    def _tell(self, missing: int, given: bool) -> None:
        if missing:
            hint = "none of `starts`" if given else "no image of chance"
            more = "" if given else ": give images of other classes, starts="
            warn(f"{hint} fools the model for {missing} examples, which were not attacked{more}")

    # -- to the boundary ---------------------------------------------------------------------------------------------

    def between(self, z: Tensor, rows: Tensor, share: Tensor) -> Tensor:
        """On the way from the original (share 0) to z (share 1): a straight one; in L-inf, clipped nearer and nearer.

        `share` (n,) is of the distance in the norm.
        """
        x = self.x[rows]
        if isinstance(self.norm, Linf):
            r = per_row(share * self.norm.distance(z, x), z)
            return torch.minimum(torch.maximum(z, x - r), x + r)
        return self.box.inputs.clip(x + per_row(share, z) * (z - x))

    def bisect(self, z: Tensor, rows: Tensor, steps: int) -> Tensor:
        """The nearest fooling image on the way to z, which fools, to a share of 2 ** -steps; kept where it is best."""
        low, high = torch.zeros(len(rows), dtype=z.dtype, device=z.device), z.new_ones(len(rows))
        for _ in range(steps):
            middle = (low + high) / 2
            can = self.left(rows) > 0
            if not can.any():
                break
            good = self.fooled(self.between(z, rows, middle), rows)
            high, low = torch.where(good, middle, high), torch.where(can & ~good, middle, low)
        near = torch.where(per_row(high < 1, z), self.between(z, rows, high), z)
        self.attempt.keep(near, rows, torch.ones_like(rows, dtype=torch.bool))
        return near


def _coarse(noise: Tensor) -> Tensor:
    """Noise (C, H, W) of few large cells."""
    side = max(noise.shape[-2:])
    cells = [-(-s * min(CELLS, side) // side) for s in noise.shape[-2:]]
    few = noise[:, : cells[0], : cells[1]]
    return F.interpolate(few[None], tuple(noise.shape[-2:]), mode="nearest")[0]


def gaussian(seed: int, rows: Tensor, step: int, count: int) -> Tensor:
    """Standard normal float32 values (n, count), keyed as `hashed` values are, of which it takes two for each two."""
    half = (count + 1) // 2
    u, v = hashed(seed, rows, step, 2 * half).view(-1, 2, half).unbind(1)
    r = (-2 * torch.log1p(-u)).sqrt()  # Box & Muller 1958
    return torch.cat([r * (2 * math.pi * v).cos(), r * (2 * math.pi * v).sin()], 1)[:, :count]
