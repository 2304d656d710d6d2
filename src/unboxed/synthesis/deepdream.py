"""DeepDream: the patterns that a layer sees in an image, amplified in the image itself.

Mordvintsev, Olah & Tyka 2015, "Inceptionism: Going Deeper into Neural Networks", and its published notebook.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import score_gradients
from ..engine.optimize.constraints import MIN_DENOMINATOR
from ..engine.read import sizes
from ..engine.read.features import resolve_address
from ..engine.read.sizes import ANY_SIZE_CARD_EXEMPTION, Size
from ..engine.rows import broadcast_rows
from ..errors import InputError, LayerError
from ..model.batching import BatchSize, map_in_batches
from ..model.nan_checks import OPTIMIZED_INPUT_IN_ERRORS, check_no_nan
from ..objectives import Objective, energy, logit
from ..parameters import FrameInterval, InputBatch, MaxJitter, Seed, Steps, StepSize
from ..rng import step_generator
from ..settings import Above, AtLeast, Unit, ValueRole, check_settings
from ..validation import check_int, valid_seed
from .generated import GeneratedImages, image_names_from_examples, single_layer_of_objective

MAX_DEFAULT_OCTAVES = 4
MIN_OCTAVE_SIDE_PIXELS = 16  # pixels of an octave's shorter side
DEFAULT_STEP_LENGTH, BINARY_IMAGE_STEP_LENGTH = (
    0.006,
    0.04,
)  # pixel range; the latter for images that are mostly black and white
MIN_BLACK_OR_WHITE_FRACTION = 1 / 3  # of an image's values at 0 or 1, from which on it is mostly black and white
MAX_DEFAULT_JITTER_PIXELS, SIDE_TO_JITTER_RATIO = 32, 7  # the notebook's 32 pixels, as a part of 224
CPU = torch.device("cpu")


@card(
    name="DeepDream",
    source="Mordvintsev, Olah & Tyka 2015, 'Inceptionism'; octaves, jitter and steps of its published notebook",
    shows="Which patterns a layer sees in this image: each is amplified where it is seen.",
    does_not_show="What the prediction depends on: a pattern is amplified however little it matters to the output.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, layer=logit(y), steps=3),
    exempt={**ANY_SIZE_CARD_EXEMPTION, "row seeds": "its shifts are shared by all rows"},
    runs=lambda s: (s["octaves"] or MAX_DEFAULT_OCTAVES) * s["steps"] + 1,
    order=5,
)
def deepdream(
    box: Box,
    x: InputBatch,
    layer: Annotated[
        str | Objective | None, ValueRole("layer"), "Address of the layer, as `box.layers` lists them."
    ] = None,
    *,
    octaves: Annotated[int | None, AtLeast(1), Unit("sizes"), "Number of sizes of the image, small to large."] = None,
    octave_scale: Annotated[float, Above(1), "Ratio of the size of an octave to that of the one before."] = 1.4,
    steps: Steps = 10,
    step: StepSize = None,
    jitter: MaxJitter = None,
    tile: Annotated[int | Size | None, Unit("pixels"), "Size of the tiles, (height, width) or one for both."] = None,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """The images x with the patterns amplified that a layer sees in them, at several sizes.

    To see what kind of pattern a layer responds to, in a context that you know. `caricature` exaggerates from noise;
    `feature` needs no image.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. They may have any size that the model
            takes as far as the layer.
        layer: Address of the layer, as `box.layers` lists them. Its mean square is maximized; or an objective. None: a
            layer two thirds down those that have positions.
        octaves: Number of sizes of the image, small to large. What was amplified at one size is added to the next.
            None: up to 4, none of less than 16 pixels or of a size that the model does not take.
        octave_scale: Ratio of the size of an octave to that of the one before.
        steps: Number of iterations. Of each octave.
        step: Length of a step, in the norm. The norm is the mean magnitude over pixels. None: 0.006 (the notebook's
            1.5 of 255), or 0.04 for images of which a third of the values are 0 or 1.
        jitter: Largest random shift of the images in each step. Shifts go around the edges. None: a seventh of the
            model's own side, at most 32.
        tile: Size of the tiles, (height, width) or one for both. The gradient is computed tile by tile, with borders at
            other positions in each step, which bounds the memory for large images. None: the whole image at once.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `GeneratedImages`: `images` (N, C, H, W) like x, `scores` (N,), `history` (T, N) through all octaves.

    Raises:
        InputError: for inputs that are not images, of a size that the model does not take, settings out of their range.
        LayerError: for an unknown layer, or a model without positions.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.synthesis.deepdream(box, x, "relu2", steps=2).images.shape
        torch.Size([2, 1, 28, 28])

    Source:
        Mordvintsev, Olah & Tyka 2015, "Inceptionism", and its notebook: x <- clip(x + step * g / mean |g|), octaves and
        jitter. Deviations: octaves are resized without aliasing; where a gradient is zero the image stays.
    """
    check_settings(deepdream, locals())
    x = sizes.validate_any_size(box, x, "DeepDream")
    objective = box.check_objective(_resolve_dream_objective(box, layer), len(x))
    evaluator = _TiledGradientEvaluator(
        box, objective, _resolve_tile_size(tile), _resolve_jitter(box, jitter), valid_seed(seed), batch_size
    )
    octave_sizes = _octave_sizes_ascending(evaluator, (x.shape[2], x.shape[3]), octaves, octave_scale)
    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in no_grad or inference_mode
        return _DeepDreamOptimizer(evaluator, x, octave_sizes, _resolve_step_sizes(x, step), frame_every).run(steps)


def _resolve_dream_objective(box: Box, layer: str | Objective | None) -> Objective:
    if isinstance(layer, Objective):
        return layer
    return energy(_default_dream_layer(box) if layer is None else resolve_address(box, layer))


def _default_dream_layer(box: Box) -> str:
    """The layer two thirds down those that have positions."""
    candidates = [r for r in box.layers.leaves if r.has_batch_axis and len(r.shape) == 3 and math.prod(r.shape[1:]) > 1]
    if not candidates:
        raise LayerError("no layer of this model has positions; give an objective, such as logit(3)")
    row = candidates[(2 * len(candidates)) // 3]
    return row.addresses[0]


def _resolve_tile_size(tile: object) -> Size | None:
    if tile is None:
        return None
    sides = tile if isinstance(tile, tuple) else (tile, tile)
    if len(sides) != 2:
        raise InputError(f"tile must be a side, or (height, width); got {tile!r}")
    return check_int("tile", sides[0], minimum=1), check_int("tile", sides[1], minimum=1)


def _resolve_step_sizes(x: Tensor, step: float | None) -> Tensor:
    """The mean change of each image's values in one step, (N,)."""
    if step is not None:
        return x.new_full((len(x),), step)
    fraction_at_bounds = ((x == 0) | (x == 1)).flatten(1).to(x.dtype).mean(1)
    is_binary = fraction_at_bounds > MIN_BLACK_OR_WHITE_FRACTION
    return torch.where(is_binary, x.new_tensor(BINARY_IMAGE_STEP_LENGTH), x.new_tensor(DEFAULT_STEP_LENGTH))


def _resolve_jitter(box: Box, jitter: int | None) -> int:
    return (
        min(MAX_DEFAULT_JITTER_PIXELS, min(sizes.native_size(box)) // SIDE_TO_JITTER_RATIO)
        if jitter is None
        else jitter
    )


def _octave_sizes_ascending(
    evaluator: _TiledGradientEvaluator, size: Size, octaves: int | None, scale: float
) -> list[Size]:
    """The sizes of the octaves, small to large."""
    evaluator.check_size(size)
    count = MAX_DEFAULT_OCTAVES if octaves is None else octaves
    octave_sizes = [size]
    for k in range(1, count):
        smaller = (max(1, round(size[0] / scale**k)), max(1, round(size[1] / scale**k)))
        if octaves is not None:
            evaluator.check_size(smaller)
        elif min(smaller) < MIN_OCTAVE_SIDE_PIXELS or not evaluator.accepts_size(smaller):
            break
        octave_sizes.append(smaller)
    return octave_sizes[::-1]


class _TiledGradientEvaluator:
    """Computes the gradient of images: at once or in tiles, shifted, some rows at a time."""

    def __init__(
        self, box: Box, objective: Objective, tile: Size | None, jitter: int, seed: int, batch_size: BatchSize
    ) -> None:
        self.box, self.objective, self.batch_size = box, objective, batch_size
        self.tile, self.jitter, self.seed = tile, jitter, seed

    def window_size(self, size: Size) -> Size:
        """The size of the part of an image of this size that the model is run on."""
        return size if self.tile is None else (min(size[0], self.tile[0]), min(size[1], self.tile[1]))

    def accepts_size(self, size: Size) -> bool:
        return sizes.accepts_size(self.box, self.objective, self.window_size(size))

    def check_size(self, size: Size) -> None:
        native_size = sizes.native_size(self.box)
        hint = f"give tile={native_size} and no smaller sizes (octaves=1 keeps the image's own), or an earlier layer"
        sizes.check_model_accepts_size(self.box, self.objective, self.window_size(size), hint)

    def evaluate(self, x: Tensor, step: int, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The score (N,), mean over tiles, its gradient (N, C, H, W), and the rows (N,) taken before a clamp."""
        height, width = self.window_size((x.shape[2], x.shape[3]))
        shift = (0, 0) if is_last else self._random_shift(x, (height, width), step)
        shifted, grad = x.roll(shift, (2, 3)), torch.zeros_like(x)
        scores, clamped = [], []
        for top in _tile_start_pixels(x.shape[2], height):
            for left in _tile_start_pixels(x.shape[3], width):
                tile_index = (..., slice(top, top + height), slice(left, left + width))
                score, grad[tile_index], tile_clamped = self._score_gradient_and_clamped(shifted[tile_index], is_last)
                scores.append(score)
                clamped.append(tile_clamped)
        return torch.stack(scores).mean(0), grad.roll((-shift[0], -shift[1]), (2, 3)), torch.stack(clamped).any(0)

    def _random_shift(self, x: Tensor, window: Size, step: int) -> Size:
        """(down, right); of an image in tiles up to a tile, so that borders are at other positions in each step."""
        is_untiled = window == (x.shape[2], x.shape[3])
        max_shift = self.jitter if is_untiled else max(self.jitter, *window)
        down, right = torch.randint(
            -max_shift, max_shift + 1, (2,), generator=step_generator(self.seed, step, CPU)
        ).tolist()
        return down, right

    def _score_gradient_and_clamped(self, x: Tensor, is_last: bool) -> tuple[Tensor, Tensor, Tensor]:
        box = self.box

        def score_grad_and_clamped_of_rows(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
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

        size, max_rows = box.batch_size_and_max_rows(len(x), self.batch_size, self.objective.batch_dependent)
        if not (box.batch_dependent or self.objective.batch_dependent):  # a limit for the model's own size
            height, width = sizes.native_size(box)
            max_rows = max(1, max_rows * height * width // max(x.shape[2] * x.shape[3], height * width))
        scores, grads, clamped = zip(
            *map_in_batches(score_grad_and_clamped_of_rows, len(x), size, max_rows), strict=True
        )
        return torch.cat(scores), torch.cat(grads), torch.cat(clamped)


def _tile_start_pixels(length: int, window: int) -> list[int]:
    """The first pixels of tiles; the last tile ends with the image, and overlaps the one before."""
    return [*range(0, length - window, window), length - window]


class _DeepDreamOptimizer:
    """The octaves, small to large. What was reached is kept at each evaluation."""

    def __init__(
        self,
        evaluator: _TiledGradientEvaluator,
        x: Tensor,
        octave_sizes: list[Size],
        step_lengths: Tensor,
        frame_every: int | None,
    ) -> None:
        self.evaluator, self.x, self.octave_sizes = evaluator, x, octave_sizes
        self.step_lengths, self.frame_every = step_lengths, frame_every
        self.base_and_image = (x, x)  # the octave's image before and now
        self.frames, self.history = list[Tensor](), list[Tensor]()
        self.clamped = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def run(self, steps: int) -> GeneratedImages:
        interrupted = False
        try:
            self._run_octaves(steps)
        except KeyboardInterrupt:
            interrupted = True
        images = self._current_full_size_image()
        history = torch.stack(self.history or [self.x.new_zeros(len(self.x))])
        if self.frame_every and not (self.frames and torch.equal(self.frames[-1], images)):
            self.frames.append(images)
        restore = self.evaluator.box.restore_structure
        frames = restore(torch.stack(self.frames)) if self.frame_every else None
        return GeneratedImages(
            images=restore(images),
            scores=history[-1],
            history=history,
            frames=frames,
            before_clamp=self.clamped,
            interrupted=interrupted,
            method="DeepDream",
            names=image_names_from_examples(len(images)),
            layer=single_layer_of_objective(self.evaluator.objective),
        )

    def _run_octaves(self, steps: int) -> None:
        image = detail = torch.zeros_like(self.x[:, :, :1, :1])
        for size in self.octave_sizes:
            base = sizes.resize_images(self.x, size)
            image = (base + sizes.resize_images(detail, size)).clamp(0, 1)
            for _ in range(steps):
                grad = self._evaluate_and_record(base, image)
                step_scale = self.step_lengths / grad.abs().flatten(1).mean(1).clamp_min(MIN_DENOMINATOR)
                image = (image + broadcast_rows(step_scale, grad) * grad).clamp(0, 1)
            detail = image - base
        self._evaluate_and_record(self.x, image, is_last=True)

    def _evaluate_and_record(self, base: Tensor, image: Tensor, is_last: bool = False) -> Tensor:
        score, grad, clamped = self.evaluator.evaluate(image, len(self.history), is_last)
        if is_last or not self.history:
            check_no_nan(score, what=OPTIMIZED_INPUT_IN_ERRORS)
        self.base_and_image = (base, image)
        self.clamped |= clamped
        if self.frame_every and len(self.history) % self.frame_every == 0:
            self.frames.append(self._current_full_size_image())
        self.history.append(score)
        return grad

    def _current_full_size_image(self) -> Tensor:
        """The image at its own size, with all that was amplified so far."""
        base, image = self.base_and_image
        size = (self.x.shape[2], self.x.shape[3])
        return image if image.shape == self.x.shape else (self.x + sizes.resize_images(image - base, size)).clamp(0, 1)
