"""DeepDream: what a layer sees in an image, made stronger in the image itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import score_gradients
from ..engine.optimize.constraints import TINY, broadcast_rows
from ..engine.read import sizes
from ..engine.read.sizes import ANY_SIZE_EXEMPTION, Size
from ..errors import InputError, LayerError
from ..model.batching import BatchSize, in_batches
from ..objectives import Objective, energy, logit
from ..rng import step_generator
from ..validation import check_float, check_int, check_seed
from .generated import GeneratedImages

MAX_OCTAVES = 4
MIN_OCTAVE_SIDE = 16  # pixels of an octave's shorter side
PHOTO_STEP_LENGTH, INK_STEP_LENGTH = 0.006, 0.04  # a step's length on photos, and on ink on paper
CPU = torch.device("cpu")


@card(
    name="DeepDream",
    source="Mordvintsev, Olah & Tyka 2015, 'Inceptionism'; octaves, jitter and steps of its published notebook",
    shows="Which patterns a layer sees in this image: each is made stronger where it was seen.",
    does_not_show="What the model's answer rests on: a pattern is amplified however little it matters to the answer.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, layer=logit(y), steps=3),
    exempt={**ANY_SIZE_EXEMPTION, "row seeds": "its shifts are shared by all rows"},
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
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """Repeat x <- clip(x + step * g / mean |g|), first on a small copy of x, each `scale` times larger, then on x.

    Images (N, C, H, W) may have any size that the model takes as far as `layer` (a name, whose energy is climbed, an
    objective, or None: a layer of middle depth); what was drawn on one size is added to the next. `octaves` are the
    sizes, by default up to 4, none of less than 16 pixels nor of a size the model can't take. Each step is made on the
    image shifted around its edges by up to `jitter` pixels. `step` is .006 by default (the notebook's 1.5 of 255), or
    .04 where a third of an image's values stand at 0 or 1 and can go one way only. With `tile` (a side, or two) the
    gradient is found tile by tile, with borders elsewhere at each step, so memory is bounded by the tile. `steps` are
    those of one octave; frames and history run through all. Raises InputError, LayerError.
    """
    x = sizes.validate_any_size(box, x, "a deep dream")
    objective = box.check_objective(_resolve_objective(box, layer), len(x))
    evaluator = _TileEvaluator(
        box, objective, _check_tile(tile), _resolve_jitter(box, jitter), check_seed(seed), batch_size
    )
    octave_sizes = _octave_sizes(evaluator, (x.shape[2], x.shape[3]), octaves, check_float("scale", scale, above=1))
    settings = _step_length(x, step), _check_frame_every(frame_every)
    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in no_grad or inference_mode
        return _DreamState(evaluator, x, octave_sizes, *settings).run(check_int("steps", steps))


def _resolve_objective(box: Box, layer: str | Objective | None) -> Objective:
    if isinstance(layer, Objective):
        return layer
    return energy(_middle_layer(box) if layer is None else box.layers.resolve(layer))


def _middle_layer(box: Box) -> str:
    """The layer two thirds down those that have positions."""
    candidates = [r for r in box.layers.leaves if r.has_batch_axis and len(r.shape) == 3 and math.prod(r.shape[1:]) > 1]
    if not candidates:
        raise LayerError("no layer of this model has positions to dream at; give an objective, such as logit(3)")
    row = candidates[(2 * len(candidates)) // 3]
    return row.addresses[0]


def _check_tile(tile: object) -> Size | None:
    if tile is None:
        return None
    sides = tile if isinstance(tile, tuple) else (tile, tile)
    if len(sides) != 2:
        raise InputError(f"tile is a side, or (height, width); got {tile!r}")
    return check_int("tile", sides[0], minimum=1), check_int("tile", sides[1], minimum=1)


def _step_length(x: Tensor, step: float | None) -> Tensor:
    """The mean change of an image's values in one step, (N,)."""
    if step is not None:
        return x.new_full((len(x),), check_float("step", step, above=0))
    share_at_bounds = ((x == 0) | (x == 1)).flatten(1).to(x.dtype).mean(1)
    return torch.where(share_at_bounds > 1 / 3, x.new_tensor(INK_STEP_LENGTH), x.new_tensor(PHOTO_STEP_LENGTH))


def _check_frame_every(frame_every: int | None) -> int | None:
    return None if frame_every is None else check_int("frame_every", frame_every, minimum=1)


def _resolve_jitter(box: Box, jitter: int | None) -> int:
    """By default a seventh of the model's own side, as 32 is of 224."""
    return min(32, min(sizes.native_size(box)) // 7) if jitter is None else check_int("jitter", jitter)


def _octave_sizes(evaluator: _TileEvaluator, size: Size, octaves: int | None, scale: float) -> list[Size]:
    """The sizes of the octaves, small to large."""
    evaluator.check_size(size)
    count = MAX_OCTAVES if octaves is None else check_int("octaves", octaves, minimum=1)
    octave_sizes = [size]
    for k in range(1, count):
        smaller = (max(1, round(size[0] / scale**k)), max(1, round(size[1] / scale**k)))
        if octaves is not None:
            evaluator.check_size(smaller)
        elif min(smaller) < MIN_OCTAVE_SIDE or not evaluator.accepts_size(smaller):
            break
        octave_sizes.append(smaller)
    return octave_sizes[::-1]


class _TileEvaluator:
    """How the gradient of an image is found: whole or in tiles, shifted, some rows at a time."""

    def __init__(
        self, box: Box, objective: Objective, tile: Size | None, jitter: int, seed: int, batch_size: BatchSize
    ) -> None:
        self.box, self.objective, self.batch_size = box, objective, batch_size
        self.tile, self.jitter, self.seed = tile, jitter, seed

    def window_size(self, size: Size) -> Size:
        """What the model sees at once of an image of this size."""
        return size if self.tile is None else (min(size[0], self.tile[0]), min(size[1], self.tile[1]))

    def accepts_size(self, size: Size) -> bool:
        return sizes.accepts_size(self.box, self.objective, self.window_size(size))

    def check_size(self, size: Size) -> None:
        native_size = sizes.native_size(self.box)
        hint = (
            f"give tile={native_size} and sizes no smaller (octaves=1 keeps to the image's own), or a layer before that"
        )
        sizes.check_size(self.box, self.objective, self.window_size(size), hint)

    def evaluate(self, x: Tensor, step: int, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The score (N,), mean over tiles, its gradient (N, C, H, W), and the rows (N,) taken before a clamp."""
        height, width = self.window_size((x.shape[2], x.shape[3]))
        shift = (0, 0) if is_last else self._random_shift(x, (height, width), step)
        shifted, grad = x.roll(shift, (2, 3)), torch.zeros_like(x)
        scores, clamped = [], []
        for top in _tile_starts(x.shape[2], height):
            for left in _tile_starts(x.shape[3], width):
                tile_index = (..., slice(top, top + height), slice(left, left + width))
                score, grad[tile_index], tile_clamped = self._score_gradient(shifted[tile_index], is_last)
                scores.append(score)
                clamped.append(tile_clamped)
        return torch.stack(scores).mean(0), grad.roll((-shift[0], -shift[1]), (2, 3)), torch.stack(clamped).any(0)

    def _random_shift(self, x: Tensor, window: Size, step: int) -> Size:
        """Where the image is cut into tiles, their borders come to lie anywhere."""
        is_untiled = window == (x.shape[2], x.shape[3])
        max_shift = self.jitter if is_untiled else max(self.jitter, *window)
        down, right = torch.randint(
            -max_shift, max_shift + 1, (2,), generator=step_generator(self.seed, step, CPU)
        ).tolist()
        return down, right

    def _score_gradient(self, x: Tensor, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
        box = self.box

        def evaluate_rows(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            objective = self.objective.rows(rows)
            with box.isolated(grad=not is_last):
                leaf = x[rows].detach().clone().requires_grad_(not is_last)
                acts = box.forward(leaf, objective.layers)
                score = objective(acts)
                none_clamped = torch.zeros(len(score), dtype=torch.bool, device=score.device)
                (grad,), clamped = (
                    ([leaf], none_clamped) if is_last else score_gradients(score, acts, objective, [leaf])
                )
                return score.detach().to(box.dtype), grad.detach().nan_to_num(0, 0, 0).to(box.dtype), clamped

        size, max_rows = box.batch_plan(len(x), self.batch_size, self.objective.batch_dependent)
        if not (box.batch_dependent or self.objective.batch_dependent):  # a limit for the model's own size
            height, width = sizes.native_size(box)
            max_rows = max(1, max_rows * height * width // max(x.shape[2] * x.shape[3], height * width))
        scores, grads, clamped = zip(*in_batches(evaluate_rows, len(x), size, max_rows), strict=True)
        return torch.cat(scores), torch.cat(grads), torch.cat(clamped)


def _tile_starts(length: int, window: int) -> list[int]:
    """Where tiles begin; the last one ends where the image does, over a part of the one before."""
    return [*range(0, length - window, window), length - window]


class _DreamState:
    """The octaves, small to large. What was reached is kept at each look."""

    def __init__(
        self,
        evaluator: _TileEvaluator,
        x: Tensor,
        octave_sizes: list[Size],
        step_length: Tensor,
        frame_every: int | None,
    ) -> None:
        self.evaluator, self.x, self.octave_sizes, self.step_length, self.frame_every = (
            evaluator,
            x,
            octave_sizes,
            step_length,
            frame_every,
        )
        self.base_and_image = (x, x)  # the octave's image before and now
        self.frames, self.history = list[Tensor](), list[Tensor]()
        self.clamped = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def run(self, steps: int) -> GeneratedImages:
        interrupted = False
        try:
            self._run_octaves(steps)
        except KeyboardInterrupt:
            interrupted = True
        images = self._full_size_image()
        history = torch.stack(self.history or [self.x.new_zeros(len(self.x))])
        if self.frame_every and not (self.frames and torch.equal(self.frames[-1], images)):
            self.frames.append(images)
        frames = torch.stack(self.frames) if self.frame_every else None
        return GeneratedImages(images, history[-1], history, frames, self.clamped, interrupted)

    def _run_octaves(self, steps: int) -> None:
        image = detail = torch.zeros_like(self.x[:, :, :1, :1])
        for size in self.octave_sizes:
            base = sizes.resize_images(self.x, size)
            image = (base + sizes.resize_images(detail, size)).clamp(0, 1)
            for _ in range(steps):
                grad = self._evaluate(base, image)
                step_scale = self.step_length / grad.abs().flatten(1).mean(1).clamp_min(TINY)
                image = (image + broadcast_rows(step_scale, grad) * grad).clamp(0, 1)
            detail = image - base
        self._evaluate(self.x, image, is_last=True)

    def _evaluate(self, base: Tensor, image: Tensor, is_last: bool = False) -> Tensor:
        score, grad, clamped = self.evaluator.evaluate(image, len(self.history), is_last)
        self.base_and_image = (base, image)
        self.clamped |= clamped
        if self.frame_every and len(self.history) % self.frame_every == 0:
            self.frames.append(self._full_size_image())
        self.history.append(score)
        return grad

    def _full_size_image(self) -> Tensor:
        """The whole image with what was drawn so far."""
        base, image = self.base_and_image
        size = (self.x.shape[2], self.x.shape[3])
        return image if image.shape == self.x.shape else (self.x + sizes.resize_images(image - base, size)).clamp(0, 1)
