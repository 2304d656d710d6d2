"""One ball for each of several inputs: an eps of the image, another of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...inputs.base import Inputs
from ...inputs.multi import MultiInput
from ...parameters import CURVE_OVER_EPS_ADVICE
from .constraints import NormBall, resolve_ball

PART_SEED_STRIDE = 15_485_863  # from the seed of one part to that of the next

EpsOfParts = Mapping[str, float | None] | Sequence[float | None]
"""An eps for each part, by its name or in their order; a part that is left out, None or 0 is not changed."""


@dataclass(frozen=True)
class PartBalls:
    """Packed inputs (N, D) whose parts are each within a ball of their own; a part without one does not change.

    Seen as one ball of eps 1: the distance is the largest of all parts' distances over their eps, and a step of length
    t moves each part by t times its eps.
    """

    sizes: tuple[int, ...]  # of the parts, D together
    balls: tuple[NormBall | None, ...]
    norm: str
    eps: float = 1.0

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A point of each ball around each row of x; parts of one size, as two images, draw different ones."""
        seeds = count(seed, PART_SEED_STRIDE)
        return self._map_parts(lambda ball, part: ball.sample(part, next(seeds)), lambda part: part, x)

    def steepest_direction(self, grad: Tensor) -> Tensor:
        """The steepest step of length 1: that of each part, times its eps."""
        return self._map_parts(lambda ball, part: ball.eps * ball.steepest_direction(part), torch.zeros_like, grad)

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return self._map_parts(lambda ball, part, c: ball.project(part, c), lambda _, c: c, x, center)

    def distance(self, x: Tensor, center: Tensor) -> Tensor:  # (N,)
        parts = zip(self.balls, *(torch.split(h, list(self.sizes), 1) for h in (x, center)), strict=True)
        shares = [ball.distance(part, c) / ball.eps for ball, part, c in parts if ball is not None]
        return torch.stack(shares).amax(0)

    def _map_parts(self, change: Callable[..., Tensor], leave: Callable[..., Tensor], *packed: Tensor) -> Tensor:
        """`change(ball, *parts)` of the parts that have a ball, `leave(*parts)` of the others, packed again."""
        parts = zip(self.balls, *(torch.split(h, list(self.sizes), 1) for h in packed), strict=True)
        return torch.cat([leave(*values) if ball is None else change(ball, *values) for ball, *values in parts], 1)


def part_balls(inputs: Inputs, eps: EpsOfParts, norm: str) -> PartBalls:
    """The balls of a model of several inputs. Raises InputError for other models, unknown names and wrong lengths."""
    if not isinstance(inputs, MultiInput):
        raise InputError(
            f"an eps for each part is for models of several inputs, and this one takes one; got eps={eps!r}; "
            f"{CURVE_OVER_EPS_ADVICE}"
        )
    names = [name for name, _ in inputs.keys_and_parts()]
    values = [None if value == 0 else value for value in _values_of_parts(names, eps)]
    if all(value is None for value in values):
        raise InputError(f"give an eps for at least one of {', '.join(map(repr, names))}; got {eps!r}")
    balls = tuple(None if value is None else resolve_ball(value, norm, None) for value in values)
    return PartBalls(tuple(inputs.sizes), balls, f"{norm.lower()} / eps")


def _values_of_parts(names: Sequence[str | int], eps: EpsOfParts) -> list[float | None]:
    listed = ", ".join(map(repr, names))
    if isinstance(eps, Mapping):
        if unknown := [name for name in eps if name not in names]:
            raise InputError(f"the inputs are {listed}; got an eps for {', '.join(map(repr, unknown))}")
        by_name: Mapping[Any, float | None] = eps
        return [by_name.get(name) for name in names]
    if len(eps) != len(names):
        raise InputError(f"wanted an eps for each of {len(names)} inputs ({listed}), None where one is not changed; "
                         f"got {len(eps)}")  # fmt: skip
    return list(eps)
