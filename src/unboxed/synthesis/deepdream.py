"""DeepDream: what a layer sees in an image, made stronger in the image itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import pull
from ..engine.optimize.constraints import TINY, per_row
from ..engine.read import sizes
from ..engine.read.sizes import ANY_SIZE, Size
from ..errors import InputError, LayerError
from ..model.batching import BatchSize, in_batches
from ..objectives import Objective, energy, logit
from ..rng import step_generator
from ..validation import check_seed, check_float, check_int
from .drawn import Drawn

OCTAVES = 4
LEAST = 16  # pixels of an octave's shorter side
PHOTO, INK = 0.006, 0.04  # a step's length on photos, and on ink on paper
CPU = torch.device("cpu")


@card(
    name="DeepDream",
    source="Mordvintsev, Olah & Tyka 2015, 'Inceptionism'; octaves, jitter and steps of its published notebook",
    shows="Which patterns a layer sees in this image: each is made stronger where it was seen.",
    does_not_show="What the model's answer rests on: a pattern is amplified however little it matters to the answer.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, layer=logit(y), steps=3),
    exempt={**ANY_SIZE, "draws of rows": "its shifts are shared by all rows"},
)
def deepdream(
    box: Box,
    x: Tensor,
    layer: str | Objective | None = None,
    *,
    octaves: int | None = None,
    scale: float = 1.4,
    steps: int = 10,
    step: float | None = None,
    jitter: int | None = None,
    tile: int | Size | None = None,
    every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Drawn:
    """Repeat x <- clip(x + step * g / mean |g|), first on a small copy of x, each `scale` times larger, then on x.

    Images (N, C, H, W) may have any size that the model takes as far as `layer` (a name, whose energy is climbed, an
    objective, or None: a layer of middle depth); what was drawn on one size is added to the next. `octaves` are the
    sizes, by default up to 4, none of less than 16 pixels nor of a size the model can't take. Each step is made on the
    image shifted around its edges by up to `jitter` pixels. `step` is .006 by default (the notebook's 1.5 of 255), or
    .04 where a third of an image's values stand at 0 or 1 and can go one way only. With `tile` (a side, or two) the
    gradient is found tile by tile, with borders elsewhere at each step, so memory is bounded by the tile. `steps` are
    those of one octave; frames and history run through all. Raises InputError, LayerError.
    """
    x = sizes.accept(box, x, "a deep dream")
    objective = box.check_objective(_objective(box, layer), len(x))
    plan = _Plan(box, objective, _tile(tile), _jitter(box, jitter), check_seed(seed), batch_size)
    ladder = _ladder(plan, (x.shape[2], x.shape[3]), octaves, check_float("scale", scale, above=1))
    settings = _length(x, step), _every(every)
    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in no_grad or inference_mode
        return _Dream(plan, x, ladder, *settings).run(check_int("steps", steps))


def _objective(box: Box, layer: str | Objective | None) -> Objective:
    if isinstance(layer, Objective):
        return layer
    return energy(_middle(box) if layer is None else box.layers.resolve(layer))


def _middle(box: Box) -> str:
    """The layer two thirds down those that have positions."""
    found = [r for r in box.layers.leaves if r.has_batch_axis and len(r.shape) == 3 and math.prod(r.shape[1:]) > 1]
    if not found:
        raise LayerError("no layer of this model has positions to dream at; give an objective, such as logit(3)")
    row = found[(2 * len(found)) // 3]
    return row.addresses[0]


def _tile(tile: object) -> Size | None:
    if tile is None:
        return None
    sides = tile if isinstance(tile, tuple) else (tile, tile)
    if len(sides) != 2:
        raise InputError(f"tile is a side, or (height, width); got {tile!r}")
    return check_int("tile", sides[0], minimum=1), check_int("tile", sides[1], minimum=1)


def _length(x: Tensor, step: float | None) -> Tensor:
    """The mean change of an image's values in one step, (N,)."""
    if step is not None:
        return x.new_full((len(x),), check_float("step", step, above=0))
    at_ends = ((x == 0) | (x == 1)).flatten(1).to(x.dtype).mean(1)
    return torch.where(at_ends > 1 / 3, x.new_tensor(INK), x.new_tensor(PHOTO))


def _every(every: int | None) -> int | None:
    return None if every is None else check_int("every", every, minimum=1)


def _jitter(box: Box, jitter: int | None) -> int:
    """By default a seventh of the model's own side, as 32 is of 224."""
    return min(32, min(sizes.own(box)) // 7) if jitter is None else check_int("jitter", jitter)


def _ladder(plan: _Plan, size: Size, octaves: int | None, scale: float) -> list[Size]:
    """The sizes of the octaves, small to large."""
    plan.check(size)
    count = OCTAVES if octaves is None else check_int("octaves", octaves, minimum=1)
    found = [size]
    for k in range(1, count):
        smaller = (max(1, round(size[0] / scale**k)), max(1, round(size[1] / scale**k)))
        if octaves is not None:
            plan.check(smaller)
        elif min(smaller) < LEAST or not plan.takes(smaller):
            break
        found.append(smaller)
    return found[::-1]


class _Plan:
    """How the gradient of an image is found: whole or in tiles, shifted, some rows at a time."""

    def __init__(
        self, box: Box, objective: Objective, tile: Size | None, jitter: int, seed: int, batch_size: BatchSize
    ) -> None:
        self.box, self.objective, self.batch_size = box, objective, batch_size
        self.tile, self.jitter, self.seed = tile, jitter, seed

    def window(self, size: Size) -> Size:
        """What the model sees at once of an image of this size."""
        return size if self.tile is None else (min(size[0], self.tile[0]), min(size[1], self.tile[1]))

    def takes(self, size: Size) -> bool:
        return sizes.takes(self.box, self.objective, self.window(size))

    def check(self, size: Size) -> None:
        own = sizes.own(self.box)
        hint = f"give tile={own} and sizes no smaller (octaves=1 keeps to the image's own), or a layer before that"
        sizes.check(self.box, self.objective, self.window(size), hint)

    def look(self, x: Tensor, step: int, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The score (N,), mean over tiles, its gradient (N, C, H, W), and the rows (N,) taken before a clamp."""
        high, wide = self.window((x.shape[2], x.shape[3]))
        by = (0, 0) if last else self._shift(x, (high, wide), step)
        moved, grad = x.roll(by, (2, 3)), torch.zeros_like(x)
        scores, clamped = [], []
        for top in _starts(x.shape[2], high):
            for left in _starts(x.shape[3], wide):
                here = (..., slice(top, top + high), slice(left, left + wide))
                score, grad[here], stuck = self._gradient(moved[here], last)
                scores.append(score)
                clamped.append(stuck)
        return torch.stack(scores).mean(0), grad.roll((-by[0], -by[1]), (2, 3)), torch.stack(clamped).any(0)

    def _shift(self, x: Tensor, window: Size, step: int) -> Size:
        """Where the image is cut into tiles, their borders come to lie anywhere."""
        whole_image = window == (x.shape[2], x.shape[3])
        most = self.jitter if whole_image else max(self.jitter, *window)
        down, right = torch.randint(-most, most + 1, (2,), generator=step_generator(self.seed, step, CPU)).tolist()
        return down, right

    def _gradient(self, x: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        box = self.box

        def part(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            objective = self.objective.rows(rows)
            with box.isolated(grad=not last):
                leaf = x[rows].detach().clone().requires_grad_(not last)
                acts = box.forward(leaf, objective.layers)
                score = objective(acts)
                none = torch.zeros(len(score), dtype=torch.bool, device=score.device)
                (grad,), clamped = ([leaf], none) if last else pull(score, acts, objective, [leaf])
                return score.detach().to(box.dtype), grad.detach().nan_to_num(0, 0, 0).to(box.dtype), clamped

        size, most = box.batch_plan(len(x), self.batch_size, self.objective.batch_dependent)
        if not (box.batch_dependent or self.objective.batch_dependent):  # a limit for the model's own size
            high, wide = sizes.own(box)
            most = max(1, most * high * wide // max(x.shape[2] * x.shape[3], high * wide))
        scores, grads, clamped = zip(*in_batches(part, len(x), size, most), strict=True)
        return torch.cat(scores), torch.cat(grads), torch.cat(clamped)


def _starts(length: int, window: int) -> list[int]:
    """Where tiles begin; the last one ends where the image does, over a part of the one before."""
    return [*range(0, length - window, window), length - window]


class _Dream:
    """The octaves, small to large. What was reached is kept at each look."""

    def __init__(self, plan: _Plan, x: Tensor, ladder: list[Size], step: Tensor, every: int | None) -> None:
        self.plan, self.x, self.ladder, self.step, self.every = plan, x, ladder, step, every
        self.reached = (x, x)  # the octave's image before and now
        self.frames, self.history = list[Tensor](), list[Tensor]()
        self.clamped = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def run(self, steps: int) -> Drawn:
        interrupted = False
        try:
            self._climb(steps)
        except KeyboardInterrupt:
            interrupted = True
        images = self._shown()
        history = torch.stack(self.history or [self.x.new_zeros(len(self.x))])
        if self.every and not (self.frames and torch.equal(self.frames[-1], images)):
            self.frames.append(images)
        frames = torch.stack(self.frames) if self.every else None
        return Drawn(images, history[-1], history, frames, self.clamped, interrupted)

    def _climb(self, steps: int) -> None:
        image = detail = torch.zeros_like(self.x[:, :, :1, :1])
        for size in self.ladder:
            base = sizes.resized(self.x, size)
            image = (base + sizes.resized(detail, size)).clamp(0, 1)
            for _ in range(steps):
                grad = self._look(base, image)
                eta = self.step / grad.abs().flatten(1).mean(1).clamp_min(TINY)
                image = (image + per_row(eta, grad) * grad).clamp(0, 1)
            detail = image - base
        self._look(self.x, image, last=True)

    def _look(self, base: Tensor, image: Tensor, last: bool = False) -> Tensor:
        score, grad, clamped = self.plan.look(image, len(self.history), last)
        self.reached = (base, image)
        self.clamped |= clamped
        if self.every and len(self.history) % self.every == 0:
            self.frames.append(self._shown())
        self.history.append(score)
        return grad

    def _shown(self) -> Tensor:
        """The whole image with what was drawn so far."""
        base, image = self.reached
        size = (self.x.shape[2], self.x.shape[3])
        return image if image.shape == self.x.shape else (self.x + sizes.resized(image - base, size)).clamp(0, 1)
