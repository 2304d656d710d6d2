"""Images: one input of a model, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..validation import check_float, check_int
from .base import (
    UNIT_RANGE_TOLERANCE,
    constant_tensor,
    non_default_setting_texts,
    to_number_or_list,
    white_advice,
)
from .batches import min_and_max_of_valid_batch

SEEMS_NORMALIZED_BELOW_MINUS = 0.05  # images with values further below zero are taken to be normalized
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
MAX_16_BIT_VALUE = 65535
MAX_VALUES_PER_IMAGE = 2**36  # values of an image: more than any memory


@dataclass(frozen=True, repr=False)
class Pixels:
    """Images (N, C, H, W) in [0, 1]: what one image is, and how the model normalizes it.

    Normalization happens inside the box: inputs, results, constraints and figures are in pixel units. Signals
    (N, C, T) and volumes (N, C, D, H, W) are images of one row, and of their slices below one another: methods work on
    these, and results have the shape of x. Blurs, windows and neighborhoods are those of each slice by itself.

    Args:
        shape: (channels, height, width) of one image; (channels, length) of a signal, (channels, depth, height, width)
            of a volume.
        mean: What the training of the model subtracted, in units of [0, 1]: a number or one per channel.
        std: What it then divided by, in units of [0, 1]: a number or one per channel.
        resize: Size that image files are resized to before they are cropped around the center: of the short side, or
            (height, width) whatever their proportions. None resizes them just to cover the shape.
        interpolation: Interpolation of that resizing: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        bgr: Whether the model takes the channels in reverse, blue first; images, results and figures stay RGB.
        white: Value of white in images of 16 bits, files and arrays: 65535, or 4095 where only 12 of the bits are used.

    Raises:
        InputError: for a shape that is not two to four positive ints, std not above 0, or values for 8-bit pixels.

    Example:
        >>> import torch, unboxed as ub
        >>> pixels = ub.Pixels((1, 28, 28), mean=0.5, std=0.25)
        >>> pixels
        Pixels((1, 28, 28), mean=0.5, std=0.25)
        >>> pixels.encode(torch.ones(2, 1, 28, 28)).mean()
        tensor(2.)
    """

    shape: tuple[int, ...]  # (C, H, W); of a signal (C, 1, T), of a volume (C, D * H, W)
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    bgr: bool = False
    white: int = MAX_16_BIT_VALUE
    own_shape: tuple[int, ...] = field(init=False, repr=False)  # of x, without N
    model_shape: tuple[int, ...] = field(init=False, repr=False)  # that the model takes, without N

    def __post_init__(self) -> None:
        shape = tuple(self.shape) if isinstance(self.shape, Sequence) else ()
        if len(shape) not in (2, 3, 4):
            raise InputError(
                "shape must be (channels, height, width) of one image, (channels, length) of a signal or (channels, "
                f"depth, height, width) of a volume; got {self.shape!r}"
            )
        shape = tuple(check_int("a side of the shape", s, minimum=1) for s in shape)
        object.__setattr__(self, "own_shape", shape)
        object.__setattr__(self, "model_shape", shape)
        as_image = {2: (shape[0], 1, shape[-1]), 4: (shape[0], math.prod(shape[1:-1]), shape[-1])}
        object.__setattr__(self, "shape", as_image.get(len(shape), shape))
        for name, above, below in (("mean", -10.0, 10.0), ("std", 0.0, 10.0)):
            try:
                object.__setattr__(self, name, self._check_channels(name, above, below))
            except InputError as error:
                raise InputError(f"{error}; it is in units of [0, 1]: divide 8-bit values by 255") from None
        object.__setattr__(self, "resize", _check_resize(self.resize))
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got {self.interpolation!r}")
        if not isinstance(self.bgr, bool):
            raise InputError(f"bgr is True or False; got {self.bgr!r}")
        if not 1 <= check_int("white", self.white) <= MAX_16_BIT_VALUE:
            raise InputError(f"white is the largest value that 16-bit images can have, 1 to 65535; got {self.white}")

    def __repr__(self) -> str:
        settings = non_default_setting_texts(self, mean=0.0, std=1.0)
        settings += [f"resize={self.resize}"] * (self.resize is not None)
        settings += [f"interpolation={self.interpolation!r}"] * (self.interpolation != "bilinear")
        settings += ["bgr=True"] * self.bgr + [f"white={self.white}"] * (self.white != MAX_16_BIT_VALUE)
        return f"Pixels({', '.join([str(self.own_shape), *settings])})"

    def _check_channels(self, name: str, above: float, below: float) -> float | tuple[float, ...]:
        """A number, or one per channel, in units of [0, 1]."""
        value = to_number_or_list(getattr(self, name))
        if not isinstance(value, (tuple, list)):
            return check_float(name, value, above, below)
        if len(value) not in (1, self.shape[0]):
            channels = f"{len(value)} values for {self.shape[0]} channels"
            raise InputError(f"{name} has {channels}; give one, or one per channel")
        return tuple(check_float(name, v, above, below) for v in value)

    @property
    def n_axes(self) -> int:
        """Number of axes that the model sees beside the channels: 1 for signals, 2 for images, 3 for volumes."""
        return len(self.model_shape) - 1

    def as_image_pixels(self) -> Pixels:
        """The same inputs for the same model, with signals and volumes as the images that methods work on."""
        images = Pixels(self.shape, self.mean, self.std, bgr=self.bgr, white=self.white)
        object.__setattr__(images, "model_shape", self.model_shape)
        return images

    def pack(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) of signals or volumes; images are returned as they are."""
        is_own = x.shape[2:] in (self.own_shape[1:], self.model_shape[1:]) and x.shape[2:] != self.shape[1:]
        return x.reshape(*x.shape[:2], *self.shape[1:]) if is_own else x  # maps of one channel, too

    def unpack(self, h: Tensor) -> Tensor:
        """The inverse of `pack`, also for maps (N, 1, H, W) and frames (T, N, C, H, W); other tensors unchanged."""
        if self.own_shape == self.shape or h.ndim < 4 or h.shape[-2:] != self.shape[1:]:
            return h
        return h.reshape(*h.shape[:-2], *self.own_shape[1:])

    def slices(self, h: Tensor) -> Tensor:
        """The slices (N, C, D, H, W) of packed images or maps; D is 1 for images and signals."""
        height = self.model_shape[-2] if self.n_axes == 3 else h.shape[-2]
        return h.reshape(*h.shape[:-2], -1, height, h.shape[-1])

    def encode(self, x: Tensor) -> Tensor:
        """What the model takes: (x - mean) / std."""
        z = (x - self._as_channel_tensor(self.mean, x)) / self._as_channel_tensor(self.std, x)
        z = z.flip(-3) if self.bgr else z
        return z if self.model_shape == self.shape else z.reshape(*z.shape[:-3], *self.model_shape)

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`: pixels in [0, 1]."""
        if self.model_shape != self.shape and z.shape[-len(self.model_shape) :] == self.model_shape:
            z = z.reshape(*z.shape[: z.ndim - len(self.model_shape)], *self.shape)
        z = z.flip(-3) if self.bgr else z
        return z * self._as_channel_tensor(self.std, z) + self._as_channel_tensor(self.mean, z)

    def clip(self, x: Tensor) -> Tensor:
        """x clamped to [0, 1]."""
        return x.clamp(0, 1)

    def from_unit_interval(self, u: Tensor) -> Tensor:
        """Images for levels u in [0, 1]: the levels themselves."""
        return u

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """n images of uniform noise (n, C, H, W) in [0, 1]."""
        problem = f"there is no memory for {n} images of the shape {self.shape}"
        too_large = InputError(f"{problem}; wanted (channels, height, width) of one image that the model takes")
        if math.prod(self.shape) > MAX_VALUES_PER_IMAGE:  # some systems allocate memory that they do not have
            raise too_large
        try:
            return torch.rand(n, *self.shape, generator=generator, device=generator.device)
        except (RuntimeError, TypeError) as error:
            raise too_large from error

    def check(self, x: Tensor) -> Tensor:
        """x itself, if it is a batch of such images; else InputError that says what to do."""
        shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else ()
        is_known = shape in (self.own_shape, self.shape, self.model_shape)
        low, high = min_and_max_of_valid_batch(x, shape if is_known else self.own_shape, "images in [0, 1]")
        if low < -UNIT_RANGE_TOLERANCE or high > 1 + UNIT_RANGE_TOLERANCE:
            raise InputError(self._out_of_range_message(low, high))
        return x

    def _out_of_range_message(self, low: float, high: float) -> str:
        noun = {2: "signals", 4: "volumes"}.get(len(self.own_shape), "images")
        problem = f"{noun} must be in [0, 1]; these go from {_format_out_of_range(low)} to {_format_out_of_range(high)}"
        if low > -SEEMS_NORMALIZED_BELOW_MINUS and high <= 2:
            return f"{problem}: clip them with x.clamp(0, 1), or divide them by the largest value there can be"
        if low >= 0:
            return f"{problem}: {white_advice(high)}"
        if self.mean != 0.0 or self.std != 1.0:
            return f"{problem}: they look normalized already. The box normalizes; pass pixels, or box.inputs.decode(x)"
        if noun == "signals":
            return (
                f"{problem}. Of values from a to b give Pixels(shape, mean=-a / (b - a), std=1 / (b - a)) and pass "
                "(x - a) / (b - a): the model gets x"
            )
        return f"{problem}: they look normalized. Give Pixels their mean and std and pass {noun} in [0, 1]"

    def _as_channel_tensor(self, value: float | tuple[float, ...], like: Tensor) -> Tensor | float:
        if isinstance(value, (int, float)):
            return value
        return constant_tensor(value, like).view(-1, 1, 1)


def _check_resize(value: object) -> int | tuple[int, int] | None:
    """None, the short side, or (height, width)."""
    if value is None or isinstance(value, int):
        return None if value is None else check_int("resize", value, minimum=1)
    if not isinstance(value, Sequence) or len(value) != 2:
        raise InputError(f"resize is the short side of an image, (height, width) or None; got {value!r}")
    height, width = (check_int("a side of resize", side, minimum=1) for side in value)
    return height, width


@dataclass(frozen=True, repr=False)
class PixelsOfAnySize(Pixels):
    """Images of a model's channels that keep their size: of models that take any."""


def _format_out_of_range(value: float) -> str:
    """A number with enough digits to tell it from 0 and 1."""
    return next((s for d in (3, 5, 7) if float(s := f"{value:.{d}g}") not in (0.0, 1.0)), f"{value:g}")
