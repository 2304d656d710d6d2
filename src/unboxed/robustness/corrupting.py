"""Common corruptions of images, each in five severities: what weather, sensors and files do to them, without malice.

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
from ..rng import of_sample
from ..validation import check_seed, whole

Generator = torch.Generator
Corrupt = Callable[[Tensor, float, Generator], Tensor]  # an image (C, H, W), how much of it, draws -> (C, H, W)
PHOTO = 224  # pixels on the side of the images that the severities of blur are for


def _gaussian_noise(x: Tensor, c: float, draw: Generator) -> Tensor:
    return x + c * torch.randn(x.shape, generator=draw, device=x.device, dtype=x.dtype)


def _shot_noise(x: Tensor, c: float, draw: Generator) -> Tensor:
    """c photons where it is white."""
    return torch.poisson(x * c, generator=draw) / c


def _gaussian_blur(x: Tensor, c: float, draw: Generator) -> Tensor:
    sigma = c * _scale(x)
    reach = min(math.ceil(3 * sigma), *(s - 1 for s in x.shape[-2:]))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype).square()) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None]
    z = F.pad(x[:, None], (reach, reach, reach, reach), mode="reflect") if reach else x[:, None]
    return F.conv2d(F.conv2d(z, kernel[..., None]), kernel[:, :, None])[:, 0]


def _motion_blur(x: Tensor, c: float, draw: Generator) -> Tensor:
    """The mean along a line of c pixels, in a direction drawn between -45 and 45 degrees."""
    angle = (torch.rand((), generator=draw, device=x.device, dtype=x.dtype) - 0.5) * math.pi / 2
    length = c * _scale(x)
    places = torch.linspace(-length / 2, length / 2, 2 * math.ceil(length) + 1, device=x.device, dtype=x.dtype)
    moved = [_moved(x, torch.zeros_like(angle), s * angle.cos(), s * angle.sin()) for s in places]
    return torch.stack(moved).mean(0)


def _contrast(x: Tensor, c: float, draw: Generator) -> Tensor:
    mean = x.mean((1, 2), keepdim=True)
    return mean + c * (x - mean)


def _brightness(x: Tensor, c: float, draw: Generator) -> Tensor:
    """The value of HSV, the largest channel, raised by c: hue and saturation stay."""
    value = x.amax(0, keepdim=True)
    more = (value + c).clamp_max(1)
    return torch.where(value > 0, x * more / value.clamp_min(1e-12), more)


def _jpeg(x: Tensor, c: float, draw: Generator) -> Tensor:
    """Saved as a JPEG file of quality c and loaded: gray or RGB, or else each channel as a gray one."""
    if len(x) not in (1, 3):
        return torch.cat([_jpeg(channel[None], c, draw) for channel in x])
    levels = (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu()
    image, file = Image.fromarray((levels[..., 0] if len(x) == 1 else levels).numpy()), io.BytesIO()
    image.save(file, "JPEG", quality=int(c))
    with Image.open(file) as loaded:
        saved = torch.frombuffer(bytearray(loaded.tobytes()), dtype=torch.uint8)
    return (saved.view(levels.shape).movedim(-1, 0).to(x.dtype) / 255).to(x.device)


def _pixelate(x: Tensor, c: float, draw: Generator) -> Tensor:
    """Shrunk to the share c of its sides, and enlarged with hard pixels."""
    size = tuple(x.shape[-2:])
    few = F.interpolate(x[None], [max(1, int(s * c)) for s in size], mode="area")
    return F.interpolate(few, size, mode="nearest-exact")[0]


def _rotation(x: Tensor, c: float, draw: Generator) -> Tensor:
    """By c degrees to the left or the right, around the middle; what is not seen there mirrors what is."""
    left = torch.rand((), generator=draw, device=x.device, dtype=x.dtype) < 0.5
    angle = torch.where(left, 1.0, -1.0).to(x.dtype) * math.radians(c)
    none = torch.zeros_like(angle)
    return _moved(x, angle, none, none)


def _moved(x: Tensor, angle: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """An image turned by an angle (radians) and then moved by so many pixels, mirrored beyond its edges."""
    h, w = x.shape[-2:]
    cos, sin = angle.cos(), angle.sin()
    rows = (cos, -sin * h / w, -2 * right / w), (sin * w / h, cos, -2 * down / h)  # in units of half a side
    theta = torch.stack([torch.stack(row) for row in rows])[None]
    grid = F.affine_grid(theta, [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]


def _scale(x: Tensor) -> float:
    """What blur of a photo comes to in an image of this size: between as many pixels and as large a share of it."""
    return math.sqrt(min(x.shape[-2:]) / PHOTO)


KINDS: dict[str, tuple[Corrupt, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "motion_blur": (_motion_blur, (10, 15, 20, 25, 30)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "rotation": (_rotation, (5, 10, 15, 20, 30)),
}
"""Each kind, and how much of it there is at severities 1 to 5."""


def corrupted(x: Tensor, kind: str, severity: int = 3, seed: int = 0, rows: Tensor | None = None) -> Tensor:
    """Images (N, C, H, W) in [0, 1], corrupted: `kind` is one of `CORRUPTIONS`, `severity` 1 to 5.

    Random draws are keyed by the seed and each image's place, or its number in `rows` (N,). Raises InputError.
    """
    corrupt, amount = _chosen(kind, severity)
    Pixels(_shape(x)).check(x)
    places = range(len(x)) if rows is None else rows.tolist()
    key = 8 * list(KINDS).index(kind) + severity
    seed = check_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        z = x.detach().clone().clamp(0, 1)
        made = [corrupt(z[i], amount, of_sample(seed, row, key, x.device)) for i, row in enumerate(places)]
        return torch.stack(made).clamp(0, 1)


def _chosen(kind: object, severity: object) -> tuple[Corrupt, float]:
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"a corruption is one of {', '.join(KINDS)}; got {kind!r}")
    if whole("severity", severity, least=1) > 5:
        raise InputError(f"severity is 1 to 5; got {severity!r}")
    corrupt, amounts = KINDS[kind]
    return corrupt, amounts[whole("severity", severity) - 1]


def _shape(x: object) -> tuple[int, int, int]:
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"wanted images (N, C, H, W) in [0, 1] as floats; got {got}")
    return int(x.shape[1]), int(x.shape[2]), int(x.shape[3])
