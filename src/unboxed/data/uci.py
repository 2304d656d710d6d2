"""The 1,797 UCI digits of scikit-learn, resized to the size and the margins of MNIST.

Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, doi:10.24432/C50P49. Each digit was a
bitmap of 32x32, of which only the number of black pixels in every 4x4 block was published. Margins: LeCun et al. 1998,
section III-A.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..inputs.pixels import Pixels
from ..validation import valid_seed
from .sets import InMemory, Split, check_split

IntArray = NDArray[np.int64]

DIGITS_INPUTS = Pixels((1, 28, 28), mean=0.1419, std=0.3233)
TEST_FRACTION_PER_CLASS = 0.2  # of each class
BLOCK_SIDE_PIXELS = 8  # pixels per side of a block
INK_FRACTION_EXPONENT = 1.3  # MNIST's strokes are finer: blocks that are partly ink lose a little
N_BITMAP_REFINEMENTS = 3


def digits(split: Split = "all", seed: int = 0) -> InMemory:
    """1,797 real handwritten digits, resized to 28 x 28 like MNIST; nothing is downloaded.

    For examples and tests. The data do not say who wrote which digit, so a writer may be in both parts.

    Args:
        split: "train" (1,438 digits), "test" (359, the same fraction of each class), or "all".
        seed: Seed of the split and of the order.

    Returns:
        Images (1, 28, 28) in [0, 1] with labels 0 to 9.

    Raises:
        InputError: for another split.

    Example:
        >>> import unboxed as ub
        >>> x, y = ub.data.digits("test").first(8)
        >>> x.shape, y.shape
        (torch.Size([8, 1, 28, 28]), torch.Size([8]))

    Source:
        Alpaydin & Kaynak 1998, UCI, doi:10.24432/C50P49; margins as in LeCun et al. 1998, section III-A.
    """
    check_split("digits", split)
    pixels, labels = _load_digits()
    rows = torch.from_numpy(_stratified_split_rows(labels.numpy(), split, valid_seed(seed)))
    name = "digits" if split == "all" else f"digits ({split})"
    return InMemory(name, pixels[rows], labels[rows], tuple("0123456789"), DIGITS_INPUTS)


def _stratified_split_rows(labels: IntArray, split: Split, seed: int) -> IntArray:
    """The rows of a split, shuffled."""
    order: IntArray = np.random.default_rng(seed).permutation(len(labels))
    if split == "all":
        return order
    held_out = np.concatenate(
        [_select_test_rows(order[labels[order] == class_index]) for class_index in np.unique(labels)]
    )
    selected: IntArray = order[np.isin(order, held_out) == (split == "test")]
    return selected


def _select_test_rows(rows: IntArray) -> IntArray:
    return rows[: round(TEST_FRACTION_PER_CLASS * len(rows))]


@cache
def _load_digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 28, 28) uint8 and labels, in scikit-learn's order."""
    ink_counts, labels = _read_ink_counts_and_labels()
    ink_fraction = torch.from_numpy(ink_counts).float().view(-1, 1, 8, 8) / 16
    pixels = _shrink_and_center_digits(_bitmaps_from_ink_fractions(ink_fraction**INK_FRACTION_EXPONENT))
    return (255 * pixels).round().byte(), torch.from_numpy(labels)


def _read_ink_counts_and_labels() -> tuple[NDArray[np.float64], IntArray]:
    """scikit-learn's `load_digits`, by its file: to import all of its data sets takes .8 s."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            rows = np.loadtxt(path, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    found: tuple[NDArray[np.float64], IntArray] = load_digits(return_X_y=True)
    return found


def _bitmaps_from_ink_fractions(ink_fraction: Tensor) -> Tensor:
    """Smooth bitmaps (N, 1, 64, 64) whose blocks have these fractions of ink (N, 1, 8, 8).

    Inverts the counting: blur, then set the brightest pixels of each block, as many as were counted; repeat.
    """
    n_pixels = (ink_fraction * BLOCK_SIDE_PIXELS**2).round().flatten(1).long()  # (N, 64)
    ink = ink_fraction.repeat_interleave(BLOCK_SIDE_PIXELS, 2).repeat_interleave(BLOCK_SIDE_PIXELS, 3)
    for _ in range(N_BITMAP_REFINEMENTS):
        ink = _brightest_pixel_mask(_gaussian_blur(ink), n_pixels)
    return ink


def _brightest_pixel_mask(ink: Tensor, n_pixels: Tensor) -> Tensor:
    """1 where a pixel is among the `keep` brightest of its block, else 0."""
    blocks = F.unfold(ink, BLOCK_SIDE_PIXELS, stride=BLOCK_SIDE_PIXELS).mT  # (N, blocks, pixels)
    is_ink = (n_pixels == BLOCK_SIDE_PIXELS**2).to(ink)[..., None].expand_as(blocks).clone()
    is_partial = (n_pixels > 0) & (n_pixels < BLOCK_SIDE_PIXELS**2)
    ascending = torch.from_numpy(np.sort(blocks[is_partial].numpy()))  # by vector instructions, as torch's is not
    threshold = ascending.gather(1, BLOCK_SIDE_PIXELS**2 - n_pixels[is_partial][:, None])
    is_ink[is_partial] = (blocks[is_partial] >= threshold).to(ink)
    return F.fold(is_ink.mT, ink.shape[-2:], BLOCK_SIDE_PIXELS, stride=BLOCK_SIDE_PIXELS)


def _gaussian_blur(ink: Tensor, std: float = 0.4 * BLOCK_SIDE_PIXELS) -> Tensor:
    """Gaussian blur with zero padding, as two products with a band matrix."""
    position = torch.arange(ink.shape[-1]).to(ink)
    kernel = torch.exp(-(((position[:, None] - position) / std) ** 2) / 2)
    kernel = kernel / kernel.sum(1).max()
    return kernel @ ink @ kernel


def _shrink_and_center_digits(ink: Tensor) -> Tensor:
    """Bitmaps to 20x20, antialiased, in a field of 28x28 with the center of mass at (14, 14), as in MNIST."""
    padding = ink.shape[-1] // 4  # antialiasing extends a little beyond the 20x20
    resized = F.interpolate(F.pad(ink, [padding] * 4), size=(30, 30), mode="bicubic", antialias=True).clamp(0, 1)
    position = torch.arange(30).to(resized)
    mass = resized.sum((1, 2, 3))
    shift_down = (14 - (resized.sum((1, 3)) @ position) / mass).round().int().tolist()
    shift_right = (14 - (resized.sum((1, 2)) @ position) / mass).round().int().tolist()
    shifted = [torch.roll(digit, (i, j), (1, 2)) for digit, i, j in zip(resized, shift_down, shift_right, strict=True)]
    return torch.stack(shifted)[..., :28, :28]
