"""Segments: which group each value of an input belongs to. Perturbation methods mask segments, not single pixels.

SLIC: Achanta et al. 2012, "SLIC Superpixels Compared to State-of-the-art Superpixel Methods"; quickshift: Vedaldi &
Soatto 2008, "Quick Shift and Kernel Methods for Mode Seeking", with the settings of Ribeiro et al.'s LIME on photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError
from ...inputs.base import Inputs
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels
from ...inputs.tokens import Tokens
from ...settings import ValueRole
from ...validation import check_int, nearest_names, suggestion_text

Segments = Annotated[
    Any, ValueRole("str"), "Which values are masked together: a kind of superpixels, a number of them, or a map of ids."
]
"""A name ("slic", "quickshift", "squares", "pixels"); a name with a number, such as ("slic", 30) for 30 superpixels or
("squares", 4) for squares of 4 x 4 pixels (cubes of a volume, windows of a signal); an int for so many SLIC
superpixels; or a tensor of ids (int): (H, W) for all images, (N, H, W) per image, or shaped like one input or like the
batch. Each column of a table is a segment, unless grouped by ids (F,) or (N, F). Several inputs take a dict or tuple of
these, or one for all.
"""

SEGMENTATION_KINDS = ("slic", "quickshift", "squares", "pixels")
SUPERPIXEL_KINDS = ("slic", "quickshift")  # of images alone
N_DEFAULT_SUPERPIXELS = 50  # about how many SLIC superpixels
DEFAULT_SQUARES_PER_SIDE = 7  # squares along the longer side
MIN_LIME_QUICKSHIFT_SIDE_PIXELS = 96  # pixels per side: from here on, LIME's own settings of quickshift
LIME_QUICKSHIFT_SETTINGS = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2}
SMALL_IMAGE_QUICKSHIFT_SETTINGS = {
    "kernel_size": 1,
    "max_dist": 4,
    "ratio": 0.5,
}  # LIME's own settings would join a digit with its background


@dataclass(frozen=True, eq=False)
class FeatureGroups:
    """The segment id of each value: (N, 1 or C, H, W), (N, F) or (N, D), int; row n has `n_segments[n]` segments."""

    ids: Tensor
    n_segments: tuple[int, ...]

    @property
    def max_n_segments(self) -> int:
        return max(self.n_segments)

    def broadcast_to_values(self, values: Tensor) -> Tensor:
        """Per-segment values (N, F) at each value's segment: shaped like `ids`."""
        return values.gather(1, self.ids.flatten(1)).view(self.ids.shape)

    def sizes(self) -> Tensor:
        """How many values each segment has, (N, F)."""
        ones = torch.ones_like(self.ids).flatten(1)
        return ones.new_zeros(len(self.ids), self.max_n_segments).scatter_add_(1, self.ids.flatten(1), ones)

    def distribute_within_segments(self, values: Tensor) -> Tensor:
        """Per-segment values (N, F) divided evenly within each segment: the map sums to them."""
        return self.broadcast_to_values(values / self.sizes().clamp(min=1).to(values))

    def changed_segments_mask(self, x: Tensor, baseline_values: Tensor) -> Tensor:
        """Which segments (N, F) masking changes: x differs from the baseline somewhere in them."""
        differs = x != baseline_values
        if self.ids.ndim == 4 and self.ids.shape[1] == 1:
            differs = differs.any(1, keepdim=True)
        none = torch.zeros(len(x), self.max_n_segments, dtype=torch.long, device=x.device)
        return none.scatter_add_(1, self.ids.flatten(1), differs.flatten(1).long()) > 0

    def replace_by_segment_means(self, x: Tensor) -> Tensor:
        """x (N, ...) with each value replaced by its segment's mean, channel by channel in images."""
        if self.ids.ndim == 4 and self.ids.shape[1] == 1:
            return torch.cat([self._replace_by_joint_segment_means(x[:, c : c + 1]) for c in range(x.shape[1])], 1)
        return self._replace_by_joint_segment_means(x)

    def _replace_by_joint_segment_means(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x), self.max_n_segments).scatter_add_(1, self.ids.flatten(1), x.flatten(1))
        return self.broadcast_to_values(total / self.sizes().clamp(min=1).to(x))


DefaultSegments = Segments | Callable[[Pixels], Segments]


def feature_groups(
    box: Box,
    x: Tensor,
    segments: Segments = None,
    *,
    default: DefaultSegments = "slic",
    max_features: int | None = None,
    n_samples: int | None = None,
) -> FeatureGroups:
    """The segments of x (N, ...), inputs that the box has validated. Raises InputError for segments that do not fit.

    Without `segments`, images are cut by `default`, and more coarsely where that makes more than `max_features`. Images
    are not cut more coarsely, but refused, where `n_samples` is below the number of their segments + 2.
    """
    if not isinstance(box.inputs, MultiInput):
        return _groups_of_input(box.inputs, x, segments, default, max_features, n_samples)
    parts, part_segments = _inputs_and_their_segments(box.inputs, segments)
    images = sum(isinstance(p, Pixels) for p in parts)
    columns = sum(math.prod(p.shape) for p in parts if not isinstance(p, Pixels))
    max_features = None if max_features is None else max(1, (max_features - columns) // max(1, images))
    groups = [
        _groups_of_input(p, v, s, default, max_features)
        for p, v, s in zip(parts, box.inputs.split(x), part_segments, strict=True)
    ]
    offset, ids = torch.zeros(len(x), dtype=torch.long, device=x.device), []
    for part, group in zip(parts, groups, strict=True):
        part_ids = group.ids.expand(len(x), *part.shape).reshape(len(x), -1)
        ids.append(part_ids + offset[:, None])
        offset = offset + torch.tensor(group.n_segments, device=x.device)
    return FeatureGroups(torch.cat(ids, 1), tuple(int(c) for c in offset))


def _inputs_and_their_segments(multi: MultiInput, segments: Any) -> tuple[list[Inputs], list[Any]]:
    is_mapping = isinstance(multi.parts, Mapping)
    parts = list(multi.parts.values() if isinstance(multi.parts, Mapping) else multi.parts)
    if isinstance(segments, Mapping) and is_mapping and set(segments) == set(multi.parts):
        return parts, [segments[name] for name in multi.parts]
    if (
        isinstance(segments, (list, tuple))
        and not is_mapping
        and len(segments) == len(parts)
        and not _is_name_with_size(segments)
    ):
        return parts, list(segments)
    if (
        isinstance(segments, (list, tuple))
        and segments
        and isinstance(segments[0], str)
        and segments[0] not in SEGMENTATION_KINDS
    ):
        _parse_segments(segments)  # raises with the nearest name
    if isinstance(segments, (Mapping, Tensor)) or (
        isinstance(segments, (list, tuple)) and not _is_name_with_size(segments)
    ):
        raise InputError("segments of several inputs are one setting for all, or one each, structured like the inputs")
    return parts, [segments] * len(parts)


def _is_name_with_size(segments: Any) -> bool:
    """Whether this is a name with a number, such as ("slic", 30)."""
    return (
        isinstance(segments, (list, tuple))
        and len(segments) == 2
        and segments[0] in SEGMENTATION_KINDS
        and not isinstance(segments[1], str)
    )


def _groups_of_input(
    inputs: Inputs, x: Tensor, segments: Any, default: Any, max_features: int | None, n_samples: int | None = None
) -> FeatureGroups:
    if isinstance(segments, Tensor):
        return _groups_from_tensor(x, _pack_segment_ids(inputs, segments))
    if isinstance(inputs, Tokens):
        ids = torch.arange(x.shape[1], device=x.device)[None, :, None].expand(1, *x.shape[1:])  # a token each
        return _groups_for_all_rows(ids, x)
    if not isinstance(inputs, Pixels):
        if segments is not None:
            _parse_segments(segments)  # superpixels of images; each column of a table is a segment of its own
        return _groups_for_all_rows(torch.arange(math.prod(x.shape[1:]), device=x.device).view(1, *x.shape[1:]), x)
    if segments is None:
        name, size = _parse_segments(default(inputs) if callable(default) else default)
        if inputs.n_axes != 2 and name in SUPERPIXEL_KINDS:
            name, size = "squares", None
        return _image_groups_within_limit(x, inputs, name, size, max_features, n_samples)
    return _segment_images(x, inputs, *_parse_segments(segments))


def _pack_segment_ids(inputs: Inputs, ids: Tensor) -> Tensor:
    """Ids of a signal (..., T) or a volume (..., D, H, W) in the form of the images that methods work on."""
    axes = inputs.model_shape[1:] if isinstance(inputs, Pixels) and inputs.n_axes != 2 else ()
    if not axes or tuple(ids.shape[-len(axes) :]) != axes or tuple(ids.shape[-2:]) == inputs.shape[1:]:
        return ids
    return ids.reshape(*ids.shape[: -len(axes)], *inputs.shape[1:])


def _segment_images(x: Tensor, inputs: Pixels, name: str, size: int | None) -> FeatureGroups:
    """Segments of images x (N, C, H, W), and of signals and volumes in that form."""
    if name == "pixels":
        return _groups_for_all_rows(torch.arange(math.prod(x.shape[2:]), device=x.device).view(1, 1, *x.shape[2:]), x)
    if name == "squares":
        return _groups_for_all_rows(_square_segment_ids(x, _axes(x, inputs), size), x)
    if inputs.n_axes == 3:
        raise InputError(f'{name} cuts images; of volumes take segments="squares", or a tensor of ids (D, H, W)')
    return _groups_from_ids(torch.stack([_superpixel_ids(image, name, size) for image in x])[:, None])


def _axes(x: Tensor, inputs: Pixels) -> tuple[int, ...]:
    """The sides of one input: (1, T) of a signal, (H, W) of an image, (D, H, W) of a volume."""
    return inputs.model_shape[1:] if inputs.n_axes == 3 else tuple(x.shape[-2:])


def _image_groups_within_limit(
    x: Tensor, inputs: Pixels, name: str, size: int | None, max_features: int | None, n_samples: int | None
) -> FeatureGroups:
    """The same, with images cut more coarsely where they have more than `max_features`. Raises InputError."""
    groups = _segment_images(x, inputs, name, size)
    if max_features is None or groups.max_n_segments <= max_features:
        return groups
    min_samples = min(groups.max_n_segments, N_DEFAULT_SUPERPIXELS) + 2
    if n_samples is not None and n_samples < min_samples:
        found = f"these images have {groups.max_n_segments} segments, and segments take"
        raise InputError(f"{found} n_samples of {min_samples} or more; got {n_samples}: take more, or larger segments")
    return _groups_from_ids(
        torch.cat([_segment_within_limit(x[n : n + 1], inputs, name, size, max_features).ids for n in range(len(x))])
    )


def _segment_within_limit(x: Tensor, inputs: Pixels, name: str, size: int | None, max_features: int) -> FeatureGroups:
    """Segments of an image x (1, C, H, W): as named, else ever fewer SLIC superpixels, else squares."""
    groups = _segment_images(x, inputs, name, size)
    count = min(N_DEFAULT_SUPERPIXELS, max_features) if inputs.n_axes == 2 else 0
    while groups.max_n_segments > max_features and count > 1:
        groups = _segment_images(x, inputs, "slic", count)
        count //= 2
    side = 1
    while groups.max_n_segments > max_features:
        side = min(2 * side, max(_axes(x, inputs)))
        groups = _segment_images(x, inputs, "squares", side)
    return groups


def _parse_segments(segments: Any) -> tuple[str, int | None]:
    """(name, size) of a segments setting. Raises InputError."""
    if _is_name_with_size(segments):
        name, size = segments
        if name not in ("slic", "squares"):
            raise InputError(f'{name!r} takes no number; ("slic", 30) and ("squares", 4) do')
        return name, check_int("the number of segments, or their side,", size, minimum=1)
    if isinstance(segments, str) and segments in SEGMENTATION_KINDS:
        return segments, None
    if isinstance(segments, Integral) and not isinstance(segments, bool):
        return "slic", check_int("segments", segments, minimum=1)
    names = ", ".join(map(repr, SEGMENTATION_KINDS))
    raise InputError(
        f'segments is {names}, ("squares", 4), an int (so many) or a tensor of ints; got '
        f"{_invalid_segments_text(segments)}"
    )


def _invalid_segments_text(segments: Any) -> str:
    """What was passed, and which name may have been meant."""
    is_sequence = isinstance(segments, (list, tuple))
    is_plain = all(isinstance(s, (str, int, float)) for s in (segments if is_sequence else [segments]))
    text = repr(segments) if is_plain and len(repr(segments)) < 60 else type(segments).__name__
    word = segments[0] if is_sequence and len(segments) else segments
    is_misspelled = isinstance(word, str) and word not in SEGMENTATION_KINDS and nearest_names(word, SEGMENTATION_KINDS)
    return f"{text}; {suggestion_text(word, SEGMENTATION_KINDS)}" if is_misspelled else text


def _square_segment_ids(x: Tensor, axes: tuple[int, ...], side: int | None) -> Tensor:
    """(1, 1, H, W): squares of `side` pixels from the upper left, cut off at the lower and right borders.

    Of three axes cubes, of one row windows. Raises InputError where they are larger than the inputs.
    """
    side = -(-max(axes) // DEFAULT_SQUARES_PER_SIDE) if side is None else side
    if side > max(axes):
        raise InputError(f"squares of {side} pixels per side are larger than the images, {'x'.join(map(str, axes))}")
    ids = torch.zeros((), dtype=torch.long, device=x.device)
    for n_pixels in axes:
        ids = ids[..., None] * -(-n_pixels // side) + torch.arange(n_pixels, device=x.device) // side
    return ids.reshape(1, 1, *x.shape[-2:])


def _superpixel_ids(image: Tensor, name: str, count: int | None) -> Tensor:
    """(H, W) of an image (C, H, W). An image of one color is cut into squares."""
    from skimage.segmentation import quickshift, slic

    colors = image.detach().double().cpu().numpy().transpose(1, 2, 0)  # (H, W, C)
    is_lab = colors.shape[2] in (1, 3)
    colors = np.repeat(colors, 3, 2) if colors.shape[2] == 1 else colors if is_lab else 100 * colors
    colors = np.ascontiguousarray(colors.clip(0, 100))
    if name == "slic":
        count = min(N_DEFAULT_SUPERPIXELS, -(-image[0].numel() // 4)) if count is None else count
        labels = slic(colors, n_segments=count, compactness=10, start_label=0, convert2lab=is_lab, channel_axis=-1)
    else:
        settings = (
            LIME_QUICKSHIFT_SETTINGS
            if min(image.shape[1:]) >= MIN_LIME_QUICKSHIFT_SIDE_PIXELS
            else SMALL_IMAGE_QUICKSHIFT_SETTINGS
        )
        labels = quickshift(colors, **settings, convert2lab=is_lab, rng=0)  # type: ignore[no-untyped-call]
    if labels.max() == labels.min() and count != 1:
        return _square_segment_ids(image[None], tuple(image.shape[-2:]), None)[0, 0]
    return torch.from_numpy(labels.astype(np.int64)).to(image.device)


def _groups_from_tensor(x: Tensor, segments: Tensor) -> FeatureGroups:
    """Segments of a tensor of ids. Raises InputError where its shape does not fit x."""
    if segments.is_floating_point() or segments.is_complex() or segments.dtype == torch.bool:
        raise InputError(f"segments are whole numbers that name groups; got {segments.dtype}")
    ids = _broadcastable_segment_ids(x, segments.detach()).to(x.device, torch.long)
    if int(ids.min()) < 0:
        raise InputError(f"segments are numbered from 0; got {int(ids.min())}")
    return (
        _groups_from_ids(ids)
        if len(ids) == len(x) and len(x) > 1
        else _groups_for_all_rows(_groups_from_ids(ids[:1]).ids, x)
    )


def _broadcastable_segment_ids(x: Tensor, segments: Tensor) -> Tensor:
    """Ids (N or 1, ...) of segments in any of the accepted shapes. Raises InputError."""
    shape, rows, got = tuple(x.shape[1:]), (1, len(x)), tuple(segments.shape)
    if len(shape) == 3 and len(got) == 3 and got[1:] == shape[1:]:
        if got[0] == shape[0] == len(x) > 1:
            raise InputError(
                f"segments {got} are ambiguous, per image or per channel: pass them as (N, 1, H, W) or (1, C, H, W)"
            )
        if got[0] in rows:
            return segments[:, None]
    if got in (shape, shape[1:]) and got:
        return segments[None] if got == shape else segments[None, None]
    if len(got) == len(shape) + 1 and got[0] in rows and got[1:] in (shape, (1, *shape[1:])):
        return segments
    wanted = f"{shape[1:]} or {(len(x), *shape[1:])}" if len(shape) == 3 else f"{shape} or {(len(x), *shape)}"
    raise InputError(f"segments of these inputs have shape {wanted}, or that of one input {shape}; got {got}")


def _groups_from_ids(ids: Tensor) -> FeatureGroups:
    """Ids numbered from 0 without gaps, row by row."""
    rows = [torch.unique(row, return_inverse=True) for row in ids]
    return FeatureGroups(torch.stack([inverse for _, inverse in rows]), tuple(len(values) for values, _ in rows))


def _groups_for_all_rows(ids: Tensor, x: Tensor) -> FeatureGroups:
    """The same segments (1, ...) for every row of x."""
    return FeatureGroups(ids.expand(len(x), *ids.shape[1:]), (int(ids.max()) + 1,) * len(x))


def segment_square_side(box: Box, n_along: int) -> int:
    """The side, in pixels, of squares of which `along` cover the longer side: for examples that fit any size."""
    parts = box.inputs.parts if isinstance(box.inputs, MultiInput) else (box.inputs,)
    images = [p for p in (parts.values() if isinstance(parts, Mapping) else parts) if isinstance(p, Pixels)]
    return -(-max((side for p in images for side in p.model_shape[1:]), default=1) // n_along)
