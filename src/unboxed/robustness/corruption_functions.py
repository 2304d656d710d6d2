"""Common corruptions of images, each in five severities: what weather, sensors and files do to images.

After Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261, whose ImageNet-C constants are taken where an image of any size allows it; rotation is not theirs.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..inputs.pixels import Pixels
from ..rng import sample_generator
from ..validation import check_int, valid_seed

Generator = torch.Generator
CorruptionFn = Callable[[Tensor, float, Generator], Tensor]  # an image (C, H, W), amount, generator -> (C, H, W)
BLUR_REFERENCE_SIDE_PIXELS = 224  # side of the images that the severities of blur are meant for


def _gaussian_noise(x: Tensor, std: float, generator: Generator) -> Tensor:
    return x + std * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _shot_noise(x: Tensor, photons: float, generator: Generator) -> Tensor:
    """So many photons at white."""
    return torch.poisson(x * photons, generator=generator) / photons


def _gaussian_blur(x: Tensor, std_pixels: float, generator: Generator) -> Tensor:
    sigma = std_pixels * _blur_scale_factor(x)
    radius = min(math.ceil(3 * sigma), *(side - 1 for side in x.shape[-2:]))
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype).square()) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None]
    z = F.pad(x[:, None], (radius, radius, radius, radius), mode="reflect") if radius else x[:, None]
    return F.conv2d(F.conv2d(z, kernel[..., None]), kernel[:, :, None])[:, 0]


def _motion_blur(x: Tensor, length_pixels: float, generator: Generator) -> Tensor:
    """The mean along a line of pixels of a given length, at a random angle between -45 and 45 degrees."""
    angle = (torch.rand((), generator=generator, device=x.device, dtype=x.dtype) - 0.5) * math.pi / 2
    length = length_pixels * _blur_scale_factor(x)
    offsets = torch.linspace(-length / 2, length / 2, 2 * math.ceil(length) + 1, device=x.device, dtype=x.dtype)
    shifted = [
        _rotate_and_shift(x, torch.zeros_like(angle), offset * angle.cos(), offset * angle.sin()) for offset in offsets
    ]
    return torch.stack(shifted).mean(0)


def _change_contrast(x: Tensor, factor: float, generator: Generator) -> Tensor:
    mean = x.mean((1, 2), keepdim=True)
    return mean + factor * (x - mean)


def _increase_brightness(x: Tensor, increase: float, generator: Generator) -> Tensor:
    """The value of HSV (the largest channel) increased: hue and saturation stay."""
    value = x.amax(0, keepdim=True)
    raised = (value + increase).clamp_max(1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-12), raised)


def _compress_as_jpeg(x: Tensor, quality: float, generator: Generator) -> Tensor:
    """Saved as a JPEG file and loaded: gray or RGB, other images channel by channel."""
    if len(x) not in (1, 3):
        return torch.cat([_compress_as_jpeg(channel[None], quality, generator) for channel in x])
    levels = (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu()
    image, file = Image.fromarray((levels[..., 0] if len(x) == 1 else levels).numpy()), io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    with Image.open(file) as loaded:
        decoded = torch.frombuffer(bytearray(loaded.tobytes()), dtype=torch.uint8)
    return (decoded.view(levels.shape).movedim(-1, 0).to(x.dtype) / 255).to(x.device)


def _pixelate(x: Tensor, size_fraction: float, generator: Generator) -> Tensor:
    """Shrunk to a fraction of its sides, and enlarged by nearest neighbors."""
    size = tuple(x.shape[-2:])
    shrunk = F.interpolate(x[None], [max(1, int(side * size_fraction)) for side in size], mode="area")
    return F.interpolate(shrunk, size, mode="nearest-exact")[0]


def _rotate(x: Tensor, degrees: float, generator: Generator) -> Tensor:
    """A rotation by the given degrees to either side, around the center; beyond its edges the image is mirrored."""
    turns_left = torch.rand((), generator=generator, device=x.device, dtype=x.dtype) < 0.5
    angle = torch.where(turns_left, 1.0, -1.0).to(x.dtype) * math.radians(degrees)
    zero_shift = torch.zeros_like(angle)
    return _rotate_and_shift(x, angle, zero_shift, zero_shift)


def _rotate_and_shift(x: Tensor, angle: Tensor, shift_right: Tensor, shift_down: Tensor) -> Tensor:
    """An image rotated by an angle (radians) and shifted by pixels, mirrored beyond its edges."""
    h, w = x.shape[-2:]
    cos, sin = angle.cos(), angle.sin()
    matrix_rows = (
        (cos, -sin * h / w, -2 * shift_right / w),
        (sin * w / h, cos, -2 * shift_down / h),
    )  # in units of half a side
    theta = torch.stack([torch.stack(row) for row in matrix_rows])[None]
    grid = F.affine_grid(theta, [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]


def _blur_scale_factor(x: Tensor) -> float:
    """Factor for blur in an image of this size: the geometric mean of the same pixels and the same fraction of it."""
    return math.sqrt(min(x.shape[-2:]) / BLUR_REFERENCE_SIDE_PIXELS)


CORRUPTION_FN_AND_AMOUNTS: dict[str, tuple[CorruptionFn, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "motion_blur": (_motion_blur, (10, 15, 20, 25, 30)),
    "contrast": (_change_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": (_increase_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": (_compress_as_jpeg, (25, 18, 15, 10, 7)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "rotation": (_rotate, (5, 10, 15, 20, 30)),
}
"""Each kind, and its amount at severities 1 to 5."""
CORRUPTION_KINDS_OF_ANY_INPUT = ("gaussian_noise", "shot_noise", "contrast")
"""Those that mean the same for signals and volumes: the others are of the two axes and the colors of an image."""


def corrupted(x: Tensor, kind: str, severity: int = 3, seed: int = 0, rows: Tensor | None = None) -> Tensor:
    """Images with one common corruption.

    To see what `corruptions` measures, or for augmentation.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        kind: One of `CORRUPTIONS`: "gaussian_noise", "jpeg", ...
        severity: From 1 (mild) to 5 (severe).
        seed: Seed of all random draws: same seed, same result.
        rows: Numbers (N,) of the images, which their draws depend on. None: 0, 1, ...

    Returns:
        Images (N, C, H, W) in [0, 1].

    Raises:
        InputError: for an unknown kind or severity, or other inputs than images.

    Example:
        >>> import unboxed as ub
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.robustness.corrupted(x, "gaussian_noise", severity=5).shape
        torch.Size([4, 1, 28, 28])

    Source:
        Hendrycks & Dietterich 2019, arXiv:1903.12261; see `corruptions` for deviations.
    """
    corrupt, amount = _corruption_and_amount(kind, severity)
    Pixels(_check_image_shape(x)).check(x)
    row_numbers = range(len(x)) if rows is None else rows.tolist()
    stream = 8 * list(CORRUPTION_FN_AND_AMOUNTS).index(kind) + severity
    seed = valid_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        z = x.detach().clone().clamp(0, 1)
        images = [
            corrupt(z[i], amount, sample_generator(seed, row, stream, x.device)) for i, row in enumerate(row_numbers)
        ]
        return torch.stack(images).clamp(0, 1)


def _corruption_and_amount(kind: object, severity: object) -> tuple[CorruptionFn, float]:
    if not isinstance(kind, str) or kind not in CORRUPTION_FN_AND_AMOUNTS:
        raise InputError(f"kind must be one of {', '.join(CORRUPTION_FN_AND_AMOUNTS)}; got {kind!r}")
    if check_int("severity", severity, minimum=1) > 5:
        raise InputError(f"severity is 1 to 5; got {severity!r}")
    corrupt, amounts = CORRUPTION_FN_AND_AMOUNTS[kind]
    return corrupt, amounts[check_int("severity", severity) - 1]


def _check_image_shape(x: object) -> tuple[int, int, int]:
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"wanted images (N, C, H, W) in [0, 1] as floats; got {got}")
    return int(x.shape[1]), int(x.shape[2]), int(x.shape[3])
