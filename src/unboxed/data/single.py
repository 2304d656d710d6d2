"""A single image, or a few, as a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..box import Box
from ..errors import DataError, InputError
from ..inputs.base import Inputs
from ..inputs.examples import to_batch
from ..inputs.images import require_pixels
from ..inputs.items import SkippedExamples
from ..inputs.pixel_arrays import image_to_tensor, is_single_image_source


def image(source: Any, like: Inputs | Box) -> Tensor:
    """An image, or a list of images, as a batch that every method takes.

    Methods also take paths and Pillow images themselves; this is for looking at what they are given, and for one array
    without a batch axis. For many images of your own use `ub.data.folder`, which decodes them when they are read.

    Args:
        source: The path of an image file, a Pillow image, an array (H, W, C), (C, H, W) or (H, W), a tensor (C, H, W),
            or a list of these. Files and Pillow images are turned upright (EXIF), resized by the short side with
            antialiasing and cropped around the center; transparency becomes white.
        like: What images become: a box, or its `inputs`.

    Returns:
        Images (N, C, H, W) in [0, 1], N = 1 for a single one.

    Raises:
        DataError: for a file that is no sound image, and arrays of another shape or range.

    Example:
        >>> import numpy as np, unboxed as ub
        >>> ub.image(np.zeros((28, 28), np.uint8), like=ub.Pixels((1, 28, 28))).shape
        torch.Size([1, 1, 28, 28])
        >>> x = ub.image("photo.jpg", like=ub.Pixels((3, 224, 224)))  # doctest: +SKIP
    """
    pixels = require_pixels(like.inputs if isinstance(like, Box) else like)
    if is_single_image_source(source) or getattr(source, "ndim", 0) in (2, 3):
        seen = SkippedExamples()
        seen.note_8_bit_values(source)
        seen.warn()
        return image_to_tensor(source, "the image", pixels)[None]
    try:
        return pixels.check(to_batch(source, pixels))
    except InputError as error:
        raise DataError(str(error)) from error
