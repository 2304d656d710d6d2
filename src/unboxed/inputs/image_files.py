"""Image files: which are read, why others are not, and colors of more than 8 bits."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import warn
from .images import (
    TIFF_BITS_PER_SAMPLE_TAG,
    apply_exif_orientation,
    levels_to_tensor,
    pil_to_tensor,
    silencing_decoder_warnings,
    warn_of_color_or_size_mismatch,
)
from .pixels import Pixels

# Pillow also opens formats that start other programs (EPS) or that any bytes may match (TGA): unsafe for unknown files.
SAFE_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
LOG = logging.getLogger("unboxed")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
CONVERT_ADVICE = "convert it to PNG or JPEG"
UNREADABLE_REASON_BY_SUFFIX = {
    ".heic": f"a HEIC file, which Pillow reads with the package pillow-heif alone: install that, or {CONVERT_ADVICE}",
    ".avif": f"an AVIF file, which this Pillow does not read: {CONVERT_ADVICE}",
    ".dcm": f"a DICOM file: {CONVERT_ADVICE}, or pass its pixels as an array",
    ".npy": "an array of NumPy, not an image: pass np.load(path)",
    ".npz": "arrays of NumPy, not an image: pass one, np.load(path)[name]",
    ".svg": f"a vector graphic: {CONVERT_ADVICE}",
    ".pdf": f"a document: {CONVERT_ADVICE}",
}


def unreadable_file_reason(path: Path) -> str | None:
    """Why a file is not an image, judged by its header; None if it may be one."""
    if not os.path.isfile(path):
        return "a link to nothing" if os.path.islink(path) else _not_a_file_reason(path)
    try:
        with silencing_decoder_warnings(), Image.open(path, formats=readable_formats()):
            return None
    except UnidentifiedImageError:
        return _unidentified_reason(path)
    except Exception as error:  # a hostile header can make a decoder raise nearly anything
        return unreadable_image_reason(error)


def _not_a_file_reason(path: Path) -> str:
    return "not a regular file" if os.path.exists(path) else "there is no such file"


def read_image(path: Path, like: Pixels | None) -> Tensor:
    """The image in a file, (C, H, W) in [0, 1], as `pil_to_tensor`; raises whatever its decoder raises."""
    with silencing_decoder_warnings(), Image.open(path, formats=readable_formats()) as image:
        warn_of_color_or_size_mismatch(image, like)
        levels = _deep_color_levels(path, image)
        if levels is None:
            return pil_to_tensor(image, like)
        return levels_to_tensor(apply_exif_orientation(levels, image), like)


def unreadable_image_reason(error: Exception) -> str:
    """Why an image can't be read, from what its decoder raised."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"a decompression bomb: {error}"
    if isinstance(error, PermissionError):
        return "may not be read: permission denied"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"broken image: {error or type(error).__name__}"


@cache
def readable_formats() -> tuple[str, ...]:
    """The safe formats that the installed Pillow reads; HEIF where pillow-heif is installed."""
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in SAFE_PILLOW_FORMATS if name in Image.OPEN)


def _unidentified_reason(path: Path) -> str:
    """What a file is that Pillow does not know, by its first bytes and its name."""
    with path.open("rb") as file:
        head = file.read(132)
    suffix = path.suffix.lower()
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        suffix = ".heic"
    elif head[4:12] == b"ftypavif":
        suffix = ".avif"
    elif head[128:] == b"DICM":
        suffix = ".dcm"
    elif head.startswith(b"\x93NUMPY"):
        suffix = ".npy"
    return UNREADABLE_REASON_BY_SUFFIX.get({".heif": ".heic", ".dicom": ".dcm"}.get(suffix, suffix), "not an image")


# -- colors of 16 bits -------------------------------------------------------------------------------------------------


def _deep_color_levels(path: Path, image: Image.Image) -> NDArray[Any] | None:
    """The levels (H, W, C) of a color image of 16 bits per channel, which Pillow cuts to 8; None for all others.

    Where only 8 of the bits can be read, that is said, and None is returned.
    """
    if not _has_deep_colors(image):
        return None
    levels = _read_tiff_values(path) if image.format == "TIFF" else None
    if levels is None:
        warn("color images with 16 bits per channel are read with 8: the finer levels are lost")
    return levels


def _has_deep_colors(image: Image.Image) -> bool:
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return False
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE_TAG, ())
        return bool(bits) and min(bits) == 16
    tiles = getattr(image, "tile", ())
    raw_mode = tiles[0][3] if tiles else ""
    return ";16" in str(raw_mode[0] if isinstance(raw_mode, tuple) else raw_mode)


def _read_tiff_values(path: Path) -> NDArray[Any] | None:
    """The values (H, W, C) of the first page; None where its compression can't be decoded here."""
    try:
        import tifffile  # scikit-image brings it

        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            values: NDArray[Any] = page.asarray()
            if page.axes.startswith("S"):  # channels first
                values = values.transpose(1, 2, 0)
    except Exception:  # missing codecs and odd files raise nearly anything
        LOG.info("%s can't be read with its full depth", path, exc_info=True)
        return None
    return values if values.ndim == 3 and values.dtype == np.uint16 else None
