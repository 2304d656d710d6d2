"""Segments: which player each number of an input belongs to. Perturbation methods hide players, not single pixels.

SLIC: Achanta et al. 2012, "SLIC Superpixels Compared to State-of-the-art Superpixel Methods"; quickshift: Vedaldi &
Soatto 2008, "Quick Shift and Kernel Methods for Mode Seeking", with the settings of Ribeiro et al.'s LIME on photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError
from ...inputs.base import Inputs
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels
from ...validation import whole

Segments = Any
"""A name ("slic", "quickshift", "squares", "pixels"), a name with a number (("slic", 30) superpixels, ("squares", 4)
pixels a side), an int (so many SLIC superpixels), or ints as a tensor: (H, W) for all, (N, H, W) one an image, or
shaped like one input or like the batch. For several inputs: a dict or tuple of those, or one for all. Columns of a
table are players each, or grouped by ints (F,) or (N, F).
"""

NAMES = ("slic", "quickshift", "squares", "pixels")
COUNT = 50  # SLIC superpixels, about
GRID = 7  # squares along the longer side
PHOTO = 96  # pixels a side: from here on quickshift as LIME sets it
OF_PHOTOS = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2}
OF_SMALL = {"kernel_size": 1, "max_dist": 4, "ratio": 0.5}  # LIME's own would lump a digit together with its ground


@dataclass(frozen=True, eq=False)
class Players:
    """The player of each number: ints beside x, (N, 1 or C, H, W), (N, F) or (N, D); row n has `count[n]` of them."""

    of: Tensor
    count: tuple[int, ...]

    @property
    def most(self) -> int:
        return max(self.count)

    def gathered(self, values: Tensor) -> Tensor:
        """Each number's value, of values (N, F) a player: shaped like `of`."""
        return values.gather(1, self.of.flatten(1)).view(self.of.shape)

    def sizes(self) -> Tensor:
        """How many numbers each player has, (N, F)."""
        ones = torch.ones_like(self.of).flatten(1)
        return ones.new_zeros(len(self.of), self.most).scatter_add_(1, self.of.flatten(1), ones)

    def shared(self, values: Tensor) -> Tensor:
        """Values (N, F) dealt out evenly among each player's numbers: the map sums to them."""
        return self.gathered(values / self.sizes().clamp(min=1).to(values))

    def differing(self, x: Tensor, base: Tensor) -> Tensor:
        """Which players (N, F) hiding would change: x differs from the baseline somewhere in them."""
        differs = x != base
        if self.of.ndim == 4 and self.of.shape[1] == 1:
            differs = differs.any(1, keepdim=True)
        none = torch.zeros(len(x), self.most, dtype=torch.long, device=x.device)
        return none.scatter_add_(1, self.of.flatten(1), differs.flatten(1).long()) > 0

    def mean(self, x: Tensor) -> Tensor:
        """x (N, ...) with each number replaced by its player's mean, channel by channel in images."""
        if self.of.ndim == 4 and self.of.shape[1] == 1:
            return torch.cat([self._mean(x[:, c : c + 1]) for c in range(x.shape[1])], 1)
        return self._mean(x)

    def _mean(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x), self.most).scatter_add_(1, self.of.flatten(1), x.flatten(1))
        return self.gathered(total / self.sizes().clamp(min=1).to(x))


Default = Segments | Callable[[Pixels], Segments]


def players(
    box: Box, x: Tensor, segments: Segments = None, *, default: Default = "slic", most: int | None = None
) -> Players:
    """The players of x (N, ...), as accepted by the box. Raises InputError for segments that do not fit it.

    Where no segments are given, images are cut by `default`, and more coarsely where that makes more than `most`.
    """
    if not isinstance(box.inputs, MultiInput):
        return _of(box.inputs, x, segments, default, most)
    parts, given = _parts(box.inputs, segments)
    images = sum(isinstance(p, Pixels) for p in parts)
    columns = sum(math.prod(p.shape) for p in parts if not isinstance(p, Pixels))
    most = None if most is None else max(1, (most - columns) // max(1, images))
    found = [_of(p, v, s, default, most) for p, v, s in zip(parts, box.inputs.split(x), given, strict=True)]
    before, of = torch.zeros(len(x), dtype=torch.long, device=x.device), []
    for part, own in zip(parts, found, strict=True):
        beside = own.of.expand(len(x), *part.shape).reshape(len(x), -1)
        of.append(beside + before[:, None])
        before = before + torch.tensor(own.count, device=x.device)
    return Players(torch.cat(of, 1), tuple(int(c) for c in before))


def _parts(several: MultiInput, given: Any) -> tuple[list[Inputs], list[Any]]:
    named = isinstance(several.parts, Mapping)
    parts = list(several.parts.values() if isinstance(several.parts, Mapping) else several.parts)
    if isinstance(given, Mapping) and named and set(given) == set(several.parts):
        return parts, [given[name] for name in several.parts]
    if isinstance(given, (list, tuple)) and not named and len(given) == len(parts) and not _sized(given):
        return parts, list(given)
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], str) and given[0] not in NAMES:
        _named(given)  # says which name was meant
    if isinstance(given, (Mapping, Tensor)) or (isinstance(given, (list, tuple)) and not _sized(given)):
        raise InputError("segments of several inputs are one setting for all, or one each as the inputs come")
    return parts, [given] * len(parts)


def _sized(given: Any) -> bool:
    """Whether this is a name with a number."""
    return isinstance(given, (list, tuple)) and len(given) == 2 and given[0] in NAMES and not isinstance(given[1], str)


def _of(inputs: Inputs, x: Tensor, segments: Any, default: Any, most: int | None) -> Players:
    if isinstance(segments, Tensor):
        return _given(x, segments)
    if not isinstance(inputs, Pixels):
        if segments is not None:
            _named(segments)  # superpixels of images, beside which columns stand for themselves
        return _alike(torch.arange(math.prod(x.shape[1:]), device=x.device).view(1, *x.shape[1:]), x)
    if segments is None:
        cut = default(inputs) if callable(default) else default
        return _at_most(x, *_named(cut), most)
    return _cut(x, *_named(segments))


def _cut(x: Tensor, name: str, size: int | None) -> Players:
    """Players of images x (N, C, H, W)."""
    if name == "pixels":
        return _alike(torch.arange(math.prod(x.shape[2:]), device=x.device).view(1, 1, *x.shape[2:]), x)
    if name == "squares":
        return _alike(_squares(x, size), x)
    return _relabeled(torch.stack([_superpixels(image, name, size) for image in x])[:, None])


def _at_most(x: Tensor, name: str, size: int | None, most: int | None) -> Players:
    """The same, image by image cut more coarsely where there are more than `most`."""
    found = _cut(x, name, size)
    if most is None or found.most <= most:
        return found
    return _relabeled(torch.cat([_coarser(x[n : n + 1], name, size, most).of for n in range(len(x))]))


def _coarser(x: Tensor, name: str, size: int | None, most: int) -> Players:
    """Players of an image x (1, C, H, W): as named, else SLIC superpixels, fewer and fewer, else squares."""
    found = _cut(x, name, size)
    count = min(COUNT, most)
    while found.most > most and count > 1:
        found = _cut(x, "slic", count)
        count //= 2
    side = 1
    while found.most > most:
        side = min(2 * side, max(x.shape[-2:]))
        found = _cut(x, "squares", side)
    return found


def _named(segments: Any) -> tuple[str, int | None]:
    """(name, size) of what was asked for. Raises InputError."""
    if _sized(segments):
        name, size = segments
        if name not in ("slic", "squares"):
            raise InputError(f'{name!r} takes no number; ("slic", 30) and ("squares", 4) do')
        return name, whole("the number of segments, or their side,", size, least=1)
    if isinstance(segments, str) and segments in NAMES:
        return segments, None
    if isinstance(segments, int) and not isinstance(segments, bool):
        return "slic", whole("segments", segments, least=1)
    names = ", ".join(map(repr, NAMES))
    raise InputError(
        f'segments is {names}, ("squares", 4), an int (so many) or a tensor of ints; got {_said(segments)}'
    )


def _said(segments: Any) -> str:
    """What was passed, and which name may have been meant."""
    several = isinstance(segments, (list, tuple))
    plain = all(isinstance(s, (str, int, float)) for s in (segments if several else [segments]))
    said = repr(segments) if plain and len(repr(segments)) < 60 else type(segments).__name__
    word = segments[0] if several and len(segments) else segments
    near = get_close_matches(word.lower(), NAMES, 1) if isinstance(word, str) and word not in NAMES else []
    return f'{said}: did you mean "{near[0]}"?' if near else said


def _squares(x: Tensor, side: int | None) -> Tensor:
    """(1, 1, H, W): squares of `side` pixels from the upper left, cut off at the lower and right borders."""
    height, width = x.shape[-2:]
    side = -(-max(height, width) // GRID) if side is None else side
    if side > max(height, width):
        raise InputError(f"squares of {side} pixels a side are larger than the images, {height}x{width}")
    across = -(-width // side)
    rows = torch.arange(height, device=x.device) // side
    columns = torch.arange(width, device=x.device) // side
    return (rows[:, None] * across + columns).view(1, 1, height, width)


def _superpixels(image: Tensor, name: str, count: int | None) -> Tensor:
    """(H, W) of an image (C, H, W). One in which nothing can be told apart is cut into squares."""
    from skimage.segmentation import quickshift, slic

    colors = image.detach().double().cpu().numpy().transpose(1, 2, 0)  # (H, W, C)
    lab = colors.shape[2] in (1, 3)
    colors = np.repeat(colors, 3, 2) if colors.shape[2] == 1 else colors if lab else 100 * colors
    colors = np.ascontiguousarray(colors.clip(0, 100))
    if name == "slic":
        count = min(COUNT, -(-image[0].numel() // 4)) if count is None else count
        of = slic(colors, n_segments=count, compactness=10, start_label=0, convert2lab=lab, channel_axis=-1)
    else:
        settings = OF_PHOTOS if min(image.shape[1:]) >= PHOTO else OF_SMALL
        of = quickshift(colors, **settings, convert2lab=lab, rng=0)  # type: ignore[no-untyped-call]
    if of.max() == of.min() and count != 1:
        return _squares(image[None], None)[0, 0]
    return torch.from_numpy(of.astype(np.int64)).to(image.device)


def _given(x: Tensor, segments: Tensor) -> Players:
    """Players of a tensor of ints. Raises InputError where it does not lie beside x."""
    if segments.is_floating_point() or segments.is_complex() or segments.dtype == torch.bool:
        raise InputError(f"segments are whole numbers that name groups; got {segments.dtype}")
    of = _beside(x, segments.detach()).to(x.device, torch.long)
    if int(of.min()) < 0:
        raise InputError(f"segments are numbered from 0; got {int(of.min())}")
    return _relabeled(of) if len(of) == len(x) and len(x) > 1 else _alike(_relabeled(of[:1]).of, x)


def _beside(x: Tensor, segments: Tensor) -> Tensor:
    """(N or 1, ...) of segments in any of the shapes that are taken. Raises InputError."""
    shape, rows, got = tuple(x.shape[1:]), (1, len(x)), tuple(segments.shape)
    if len(shape) == 3 and len(got) == 3 and got[1:] == shape[1:]:
        if got[0] == shape[0] == len(x) > 1:
            raise InputError(
                f"segments {got} are one an image, or one a channel: pass them as (N, 1, H, W) or (1, C, H, W)"
            )
        if got[0] in rows:
            return segments[:, None]
    if got in (shape, shape[1:]) and got:
        return segments[None] if got == shape else segments[None, None]
    if len(got) == len(shape) + 1 and got[0] in rows and got[1:] in (shape, (1, *shape[1:])):
        return segments
    wanted = f"{shape[1:]} or {(len(x), *shape[1:])}" if len(shape) == 3 else f"{shape} or {(len(x), *shape)}"
    raise InputError(f"segments beside these inputs have shape {wanted}, or that of one input {shape}; got {got}")


def _relabeled(of: Tensor) -> Players:
    """Players numbered from 0 without gaps, row by row."""
    rows = [torch.unique(row, return_inverse=True) for row in of]
    return Players(torch.stack([inverse for _, inverse in rows]), tuple(len(values) for values, _ in rows))


def _alike(of: Tensor, x: Tensor) -> Players:
    """The same players (1, ...) in every row of x."""
    return Players(of.expand(len(x), *of.shape[1:]), (int(of.max()) + 1,) * len(x))


def share(box: Box, along: int) -> int:
    """A side in pixels of which `along` cover the longer side of the box's images: of examples that fit any size."""
    parts = box.inputs.parts if isinstance(box.inputs, MultiInput) else (box.inputs,)
    images = [p for p in (parts.values() if isinstance(parts, Mapping) else parts) if isinstance(p, Pixels)]
    return -(-max((side for p in images for side in p.shape[-2:]), default=1) // along)
