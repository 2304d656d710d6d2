"""Images with one rectangle replaced, at each of many positions: only what that changes is computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, UnboxedError
from ...inputs.pixels import Pixels
from ...model.batching import BatchSize, map_in_batches, run_all_example_variants
from ...model.incremental import BasePass, WindowedMode, WindowedTensor, crop_rectangles, restoring_containers, to_dense
from ...objectives import Objective, mean_over_positions
from ..read.edited_runs import VariantOutputs

LOG = logging.getLogger("unboxed")

Size = tuple[int, int]  # (h, w)

MIN_INCREMENTAL_IMAGE_PIXELS = 256  # pixels; below, calls cost more than they save
MAX_INCREMENTAL_WINDOW_FRACTION = 0.5  # of the image: larger windows reach all of it within a few layers
MIN_INCREMENTAL_WINDOWS = 4  # fewer positions are not worth a pass over the whole image
WINDOW_BATCH_MEMORY_DIVISOR = 16  # of an automatic batch's memory: windows are fastest within a cache
MAX_AUTO_WINDOW_BATCH_ROWS = 290  # of an automatic batch; more are no faster
TOLERANCE_BY_DTYPE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; else 3e-2


def run_with_replaced_windows(
    box: Box,
    x: Tensor,
    objective: Objective,
    replacement: Tensor,
    corners: Tensor,
    size: Size,
    *,
    return_logits: bool = True,
    include_original: bool = False,
    batch_size: BatchSize = "auto",
) -> VariantOutputs:
    """Scores (N, P) and logits (N, P, K) of images x (N, C, H, W) with the rectangle of `size` at each of the corners
    (P, 2), (top, left), taken from `value`; with `include_original`, the unchanged images come last, (N, P + 1).

    `value` is as large as x (its values at the same position are put in), or as the rectangle: (N, C, h, w) or
    (C, h, w). Where the model allows it, only what the window reaches is computed (`model.incremental`). Two positions,
    a corner and the middle, are compared with whole runs once, for an image of x and for noise; where they disagree,
    all are whole runs, and so they are where the model stores maps on itself, or asks where a map's maximum is. Raises
    InputError for a rectangle that does not fit into the image.
    """
    positions, n = _check_corners(x, corners, size), len(x)
    positions = torch.cat([positions, positions[-1:]]) if include_original else positions
    n_positions = len(positions)
    runs = _WindowRunner(
        box,
        x,
        objective,
        _broadcast_patches(x, replacement, size),
        positions,
        size,
        return_logits,
        n_positions - 1 if include_original else n_positions,
    )
    if box.batch_dependent or objective.batch_dependent:  # then a batch is all examples, with a window at one position
        return _as_variant_outputs(
            run_all_example_variants(runs.run_full_images, n, n_positions, (1, 1), one_variant_per_batch=True)
        )
    if runs.should_try_incremental(n_positions):
        return _as_variant_outputs(
            [
                torch.stack(h)
                for h in zip(*(runs.run_all_windows_of_image(i, batch_size) for i in range(n)), strict=True)
            ]
        )
    flat_runs = runs.run_full_images_batched(
        torch.arange(n).repeat_interleave(n_positions), torch.arange(n_positions).repeat(n), batch_size
    )
    return _as_variant_outputs([h.view(n, n_positions, *h.shape[1:]) for h in flat_runs])


def _as_variant_outputs(tensors: Sequence[Tensor]) -> VariantOutputs:
    return VariantOutputs(tensors[0], tensors[1] if len(tensors) > 1 else None)


def _broadcast_patches(x: Tensor, value: Tensor, size: Size) -> Tensor:
    """The replacement: (N, C, H, W), or (N, C, h, w). Raises InputError."""
    value = value[None] if value.ndim == x.ndim - 1 else value
    shapes = (tuple(x.shape[1:]), (x.shape[1], *size))
    if tuple(value.shape[1:]) not in shapes or len(value) not in (1, len(x)):
        raise InputError(f"the replacement has shape {shapes[0]} or {shapes[1]} an image; got {tuple(value.shape)}")
    return value.to(x).expand(len(x), -1, -1, -1)


def _check_corners(x: Tensor, corners: Tensor, size: Size) -> Tensor:
    """The corners (P, 2) on the host. Raises InputError."""
    corners = torch.as_tensor(corners).cpu().long()
    if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners):
        raise InputError(f"corners are (P, 2), (top, left) of each position; got shape {tuple(corners.shape)}")
    max_corner = torch.tensor([x.shape[2] - size[0], x.shape[3] - size[1]])
    if min(size) < 1 or bool(((corners < 0) | (corners > max_corner)).any()):
        raise InputError(f"a window {size[0]}x{size[1]} must fit into images of {x.shape[2]}x{x.shape[3]}")
    return corners


_CACHED_WINDOW_BYTES_BY_BOX: WeakKeyDictionary[Box, dict[object, int]] = WeakKeyDictionary()


@dataclass
class _WindowRunner:
    box: Box
    x: Tensor
    objective: Objective
    patches: Tensor
    corners: Tensor  # (P, 2)
    size: Size
    return_logits: bool
    n_windows: int  # positions from here on leave images unchanged

    def replacement_at(self, row: int, position: int) -> Tensor:
        """What replaces the image at a position, (C, h, w)."""
        (top, left), (h, w) = self.corners[position].tolist(), self.size
        patch = self.patches[row] if position < self.n_windows else self.x[row]
        return patch if tuple(patch.shape[1:]) == (h, w) else patch[:, top : top + h, left : left + w]

    def forward(self, x: Tensor, rows: Tensor) -> list[Tensor]:
        """Scores (R,) and logits (R, K) of images (R, C, H, W), made of x[rows]. Inside `box.isolated`."""
        layers = {*self.objective.layers, *(["logits"] if self.return_logits else [])}
        acts = self.box.forward(x, layers)
        if "input" in layers:
            acts["input"] = to_dense(acts["input"])
        outputs = [self.objective.rows(rows.to(self.box.device))(acts)]
        outputs += [mean_over_positions(acts["logits"])] if self.return_logits else []
        return [h.to(self.box.dtype) for h in outputs]

    # -- whole images --------------------------------------------------------------------------------------------------

    def run_full_images(self, rows: Tensor, positions: Tensor) -> list[Tensor]:
        images, (h, w) = self.x[rows.to(self.x.device)], self.size  # a copy
        for i, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            top, left = self.corners[position].tolist()
            images[i, :, top : top + h, left : left + w] = self.replacement_at(row, position)
        with self.box.isolated(grad=False):
            return self.forward(images, rows)

    def run_full_images_batched(self, rows: Tensor, positions: Tensor, batch_size: BatchSize) -> list[Tensor]:
        size, max_rows = self.box.batch_size_and_max_rows(len(rows), batch_size)
        parts = map_in_batches(
            lambda part: self.run_full_images(rows[part], positions[part]), len(rows), size, max_rows
        )
        return [torch.cat(h) for h in zip(*parts, strict=True)]

    # -- windows alone -------------------------------------------------------------------------------------------------

    def should_try_incremental(self, n_positions: int) -> bool:
        """Whether windows are worth trying."""
        if not isinstance(self.box.inputs, Pixels) or not self.box.accepts_proxy_tensors:
            return False
        pixels = self.x.shape[2] * self.x.shape[3]
        return (
            n_positions >= MIN_INCREMENTAL_WINDOWS
            and pixels >= MIN_INCREMENTAL_IMAGE_PIXELS
            and self.size[0] * self.size[1] <= MAX_INCREMENTAL_WINDOW_FRACTION * pixels
        )

    def run_all_windows_of_image(self, row: int, batch_size: BatchSize) -> list[Tensor]:
        """All positions of one image."""
        n_positions, base = len(self.corners), BasePass()
        if row_bytes := self.bytes_per_row(base, row):
            try:
                return self.run_incremental_batched(
                    base,
                    row,
                    min(
                        MAX_AUTO_WINDOW_BATCH_ROWS, self.box.max_rows_in_memory(WINDOW_BATCH_MEMORY_DIVISOR * row_bytes)
                    ),
                    batch_size,
                )
            except Exception:  # the model behaves differently from its first run: whole images decide
                LOG.info("windows by incremental inference failed; whole runs follow", exc_info=True)
                self.cached_window_bytes[self.window_bytes_cache_key] = 0
        return self.run_full_images_batched(torch.full((n_positions,), row), torch.arange(n_positions), batch_size)

    def run_incremental_batched(self, base: BasePass, row: int, max_rows: int, batch_size: BatchSize) -> list[Tensor]:
        order, (size, _) = (
            self.positions_by_border_distance(),
            self.box.batch_size_and_max_rows(len(self.corners), batch_size),
        )
        parts = map_in_batches(lambda part: self.run_incremental(base, row, order[part]), len(order), size, max_rows)
        inverse_order = order.argsort()
        return [torch.cat(h)[inverse_order] for h in zip(*parts, strict=True)]

    def positions_by_border_distance(self) -> Tensor:
        """The positions (P,), sorted so that those equally far from the border share a batch: they reach regions that
        are cut off alike.
        """
        max_corner = torch.tensor([self.x.shape[2] - self.size[0], self.x.shape[3] - self.size[1]])
        margins = torch.minimum(self.corners, max_corner - self.corners)  # (P, 2)
        min_margin = margins.min(1).values
        return torch.from_numpy(np.lexsort((margins[:, 1].numpy(), margins[:, 0].numpy(), min_margin.numpy())))

    @property
    def cached_window_bytes(self) -> dict[object, int]:
        return _CACHED_WINDOW_BYTES_BY_BOX.setdefault(self.box, {})

    @property
    def window_bytes_cache_key(self) -> object:
        """What the cached answer is valid for: it is determined again where the model was rebuilt."""
        parts = tuple((type(m), m.training) for m in self.box.model.modules())
        shapes = tuple((p.shape, p.dtype) for p in self.box.model.parameters())
        return frozenset(self.objective.layers), self.return_logits, self.size, parts, shapes

    def bytes_per_row(self, base: BasePass, row: int) -> int:
        """Bytes per window; 0 where windows do not give the values of whole runs for this model.

        It is determined once per box and model.
        """
        cache, key = self.cached_window_bytes, self.window_bytes_cache_key
        if key not in cache:
            probes = torch.tensor([len(self.corners) // 2, 0])
            agree = self._matches_full_run(base, row, probes) and self.make_noise_image_runner()._matches_full_run(
                BasePass(), row, probes
            )
            cache[key] = max(1, base.bytes_per_row) if agree else 0
        return cache[key]

    def run_incremental(self, base: BasePass, row: int, positions: Tensor) -> list[Tensor]:
        """Raises UnboxedError where windows cannot be used."""
        with self.box.isolated(grad=False), restoring_containers(self.box.model.modules(), base), WindowedMode() as ops:
            outputs = self.forward(
                cast(Tensor, self._windowed_input(base, row, positions)), torch.full((len(positions),), row)
            )
            if ops.depends_on_ties or base.has_referenced_windowed_tensors:
                raise UnboxedError("the model stores a windowed tensor, or asks where its largest values are")
            return outputs

    def _windowed_input(self, base: BasePass, row: int, positions: Tensor) -> WindowedTensor:
        top, left = np.asarray(self.corners[positions]).T
        patch = self.patches[row : row + 1]
        if tuple(patch.shape[2:]) == self.size:
            cuts = patch.expand(len(positions), -1, -1, -1).clone()
        else:
            cuts = crop_rectangles(patch, top, left, self.size).permute(0, 3, 1, 2)
        for i in (positions >= self.n_windows).nonzero().flatten().tolist():
            cuts[i] = self.replacement_at(row, int(positions[i]))
        return WindowedTensor.from_windows(base, self.x[row : row + 1], cuts, top, left)

    def make_noise_image_runner(self) -> _WindowRunner:
        """The same run on noise images: in x a window may change nothing, and so reveal nothing."""
        image, patch = self.box.noise(2)
        return replace(self, x=image.expand_as(self.x), patches=patch.expand_as(self.x))

    def _matches_full_run(self, base: BasePass, row: int, positions: Tensor) -> bool:
        """Whether windows give the values of whole runs: a model may use its input as only a tensor can be."""
        rows = torch.full_like(positions, row)
        try:
            outputs = self.run_incremental(base, row, positions)
        except Exception:  # out of memory, too: then whole runs find a size that fits
            LOG.info("incremental inference is not taken", exc_info=True)
            return False
        tolerance = TOLERANCE_BY_DTYPE.get(
            self.box.model_dtype if self.box.autocast is None else self.box.autocast, 3e-2
        )
        return all(
            _all_close(a, b, tolerance) for a, b in zip(outputs, self.run_full_images(rows, positions), strict=True)
        )


def _all_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether all values agree, relative to the largest."""
    scale = float(b.abs().nan_to_num().max())
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance * scale + 1e-30, equal_nan=True)
