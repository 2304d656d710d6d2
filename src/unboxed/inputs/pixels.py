"""Images: one input of a model, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..validation import check_float, check_int
from .base import RANGE_TOLERANCE, as_numbers, constant_tensor, format_non_default_settings
from .batches import checked_value_range

MAX_VALUE_BELOW_ZERO = 0.05  # images with values further below zero are taken to be normalized
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
MAX_IMAGE_VALUES = 2**36  # values of an image: more than any memory


@dataclass(frozen=True, repr=False)
class Pixels:
    """Images (N, C, H, W) in [0, 1]: what one image is, and how the model normalizes it.

    Normalization happens inside the box: inputs, results, constraints and figures are in pixel units. A signal is an
    image (C, 1, L); a volume has its slices as channels.

    Args:
        shape: (channels, height, width) of one image.
        mean: What the training of the model subtracted, in units of [0, 1]: a number or one per channel.
        std: What it then divided by, in units of [0, 1]: a number or one per channel.
        resize: Size that image files are resized to before they are cropped around the center: of the short side, or
            (height, width) whatever their proportions. None resizes them just to cover the shape.
        interpolation: Interpolation of that resizing: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        bgr: Whether the model takes the channels in reverse, blue first; images, results and figures stay RGB.

    Raises:
        InputError: for a shape that is not three positive ints, std not above 0, or values for 8-bit pixels.

    Example:
        >>> import torch, unboxed as ub
        >>> pixels = ub.Pixels((1, 28, 28), mean=0.5, std=0.25)
        >>> pixels
        Pixels((1, 28, 28), mean=0.5, std=0.25)
        >>> pixels.encode(torch.ones(2, 1, 28, 28)).mean()
        tensor(2.)
    """

    shape: tuple[int, int, int]
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    bgr: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.shape) if isinstance(self.shape, Sequence) else ()
        if len(shape) != 3:
            raise InputError(f"shape must be (channels, height, width) of one image; got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(check_int("a side of the shape", s, minimum=1) for s in shape))
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

    def __repr__(self) -> str:
        settings = format_non_default_settings(self, mean=0.0, std=1.0)
        settings += [f"resize={self.resize}"] * (self.resize is not None)
        settings += [f"interpolation={self.interpolation!r}"] * (self.interpolation != "bilinear")
        return f"Pixels({', '.join([str(self.shape), *settings, *['bgr=True'] * self.bgr])})"

    def _check_channels(self, name: str, above: float, below: float) -> float | tuple[float, ...]:
        """A number, or one per channel, in units of [0, 1]."""
        value = as_numbers(getattr(self, name))
        if not isinstance(value, (tuple, list)):
            return check_float(name, value, above, below)
        if len(value) not in (1, self.shape[0]):
            channels = f"{len(value)} values for {self.shape[0]} channels"
            raise InputError(f"{name} has {channels}; give one, or one per channel")
        return tuple(check_float(name, v, above, below) for v in value)

    def encode(self, x: Tensor) -> Tensor:
        """What the model takes: (x - mean) / std."""
        z = (x - self._per_channel(self.mean, x)) / self._per_channel(self.std, x)
        return z.flip(-3) if self.bgr else z

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`: pixels in [0, 1]."""
        z = z.flip(-3) if self.bgr else z
        return z * self._per_channel(self.std, z) + self._per_channel(self.mean, z)

    def clip(self, x: Tensor) -> Tensor:
        """x clamped to [0, 1]."""
        return x.clamp(0, 1)

    def from_unit(self, u: Tensor) -> Tensor:
        """Images for levels u in [0, 1]: the levels themselves."""
        return u

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """n images of uniform noise (n, C, H, W) in [0, 1]."""
        problem = f"there is no memory for {n} images of the shape {self.shape}"
        too_large = InputError(f"{problem}; wanted (channels, height, width) of one image that the model takes")
        if math.prod(self.shape) > MAX_IMAGE_VALUES:  # some systems allocate memory that they do not have
            raise too_large
        try:
            return torch.rand(n, *self.shape, generator=generator, device=generator.device)
        except (RuntimeError, TypeError) as error:
            raise too_large from error

    def check(self, x: Tensor) -> Tensor:
        """x itself, if it is a batch of such images; else InputError that says what to do."""
        low, high = checked_value_range(x, self.shape, "images in [0, 1]")
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise InputError(self._range_message(low, high))
        return x

    def _range_message(self, low: float, high: float) -> str:
        problem = f"images must be in [0, 1]; these go from {_format_out_of_range(low)} to {_format_out_of_range(high)}"
        if low > -MAX_VALUE_BELOW_ZERO and high <= 2:
            return f"{problem}: clip them with x.clamp(0, 1), or divide them by the largest value there can be"
        if low >= 0 and high > 255:
            return f"{problem}: divide them by the largest value there can be, 65535 for 16 bits"
        if low >= 0:
            return f"{problem}: they look like 8-bit values, divide them by 255"
        if self.mean != 0.0 or self.std != 1.0:
            return f"{problem}: they look normalized already. The box normalizes; pass pixels, or box.inputs.decode(x)"
        return f"{problem}: they look normalized. Give Pixels their mean and std and pass images in [0, 1]"

    def _per_channel(self, value: float | tuple[float, ...], like: Tensor) -> Tensor | float:
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
