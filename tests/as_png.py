"""Images written as real PNG files and read back as a user would."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def decoded(images: Tensor) -> Tensor:
    """(N, C, H, W) float32 in [0, 1], of as many files; channels beyond RGB are files of their own, in gray."""
    return torch.stack([_one(image) for image in images.double()])


def _one(image: Tensor) -> Tensor:
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (H, W, C)
    if pixels.shape[2] == 3:
        return _file(pixels).permute(2, 0, 1)
    return torch.stack([_file(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[2])])


def _file(pixels: np.ndarray) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return torch.from_numpy(np.array(Image.open(io.BytesIO(buffer.getvalue())), dtype=np.float32) / 255)
