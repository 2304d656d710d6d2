"""The part of the image that can reach each position of a layer, found by running the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import product
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...box import Box
from ...model.batching import BatchSize, map_in_batches
from .channel_axes import units_to_axis_1

ResultT = TypeVar("ResultT")
ProbeKind = Literal["NaN", "differences"]
BandAxisAndStart = tuple[int, int]  # an axis of the image, and the first row or column of the band
N_DIFFERENCE_PROBE_IMAGES = 4  # of the probe by differences
MAX_EDGE_CHECK_NOISE_IMAGES = 24  # until the edges of a field make a difference: of a maximum few values do
WIDE_NOISE_RANGE_FACTOR = 30.0  # ratio of the range of some noise images to that of images
RELATIVE_CHANGE_TOLERANCE_BY_DTYPE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest activation
LOW_PRECISION_TOLERANCE = 1e-2  # of other dtypes


def probe_receptive_bounds(
    box: Box, path: str, axis: int = 1, resolution: int = 1, batch_size: BatchSize = "auto"
) -> tuple[Tensor, ProbeKind]:
    """Bounds (*P, 4) in pixels (top, left, bottom, right) of a layer's positions, and how they were found.

    Some rows (then columns) become NaN, and where NaN arrives they reach; where NaN does not pass the model, or passes
    where no value can, noise takes its place.
    """
    prober = _ReceptiveFieldProber(box, path, axis, resolution, batch_size)
    bounds = prober.probe_by_nan()
    if (
        bounds is not None
        and prober.pixels_outside_field_have_no_effect(bounds)
        and prober.field_edges_change_activations(bounds)
    ):
        return bounds, "NaN"
    return prober.probe_by_differences(), "differences"


ERRORS_CAUSED_BY_PROBES = (
    RuntimeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    LookupError,
)  # that a probe may cause


class _ReceptiveFieldProber:
    """Probes which bands of the image reach which positions of a layer."""

    def __init__(self, box: Box, path: str, axis: int, resolution: int, batch_size: BatchSize) -> None:
        self.box, self.path, self.axis, self.batch_size = box, path, axis, batch_size
        self.resolution = resolution
        noise = box.inputs.random_inputs(
            MAX_EDGE_CHECK_NOISE_IMAGES + 1, torch.Generator(box.device).manual_seed(0)
        ).to(box.dtype)
        is_wide = slice(N_DIFFERENCE_PROBE_IMAGES + 1, None, 2)
        noise[is_wide] = WIDE_NOISE_RANGE_FACTOR * (noise[is_wide] - 0.5)  # of both signs, which activates most units
        self.noise = noise
        self.bands = [(side, i) for side in (-2, -1) for i in range(0, self.noise.shape[side], resolution)]

    def probe_by_nan(self) -> Tensor | None:
        """Bounds (*P, 4); None where the model raises at a NaN."""
        nan = torch.full_like(self.noise[0], torch.nan)
        try:
            return self._bounds_from_bands(
                self._reached_mask_by_band(self.bands, lambda h: h.isnan().any(1), self.noise[0], nan)
            )
        except torch.OutOfMemoryError:
            raise
        except ERRORS_CAUSED_BY_PROBES:
            return None  # it checks its input

    def probe_by_differences(self) -> Tensor:
        """Bounds (*P, 4) of the bands that changed a position, or had a nonzero derivative."""
        return _union_bounds(
            torch.stack(
                [
                    self._bounds_from_bands(hit)
                    for hit in self._probe_bands_with_noise(self.bands, N_DIFFERENCE_PROBE_IMAGES)
                ]
            )
        )

    def field_edges_change_activations(self, bounds: Tensor) -> bool:
        """Whether the outermost bands of some positions' fields make a difference to them."""
        positions = [p for p in _corner_and_center_positions(bounds) if bounds[p].any()]
        edges = {p: self._field_edge_bands(bounds[p].tolist()) for p in positions}
        bands = sorted({band for field_bands in edges.values() for band in field_bands})
        index = {band: i for i, band in enumerate(bands)}
        unconfirmed = {(index[band], *p) for p, field_bands in edges.items() for band in field_bands}
        for reached in self._probe_bands_with_noise(bands, MAX_EDGE_CHECK_NOISE_IMAGES) if bands else ():
            unconfirmed = {location for location in unconfirmed if not reached[location]}
            if not unconfirmed:
                return True
        responds_to_noise = torch.stack(
            [self._positions_changed_by_noise(draw) for draw in range(MAX_EDGE_CHECK_NOISE_IMAGES)]
        ).any(0)  # (*P)
        return not any(responds_to_noise[location[1:]] for location in unconfirmed)  # dead positions are not evidence

    def _positions_changed_by_noise(self, image_index: int) -> Tensor:
        """Which positions differ between two noise images, (*P)."""
        return self._make_activation_change_test(self._unit_activations(self.noise[image_index, None]))(
            self._unit_activations(self.noise[image_index + 1, None])
        )[0]

    def _field_edge_bands(self, bounds: list[int]) -> list[BandAxisAndStart]:
        """The first and the last band of a field, on both sides."""
        top, left, bottom, right = (
            i - i % self.resolution for i in (bounds[0], bounds[1], bounds[2] - 1, bounds[3] - 1)
        )
        return [(-2, top), (-2, bottom), (-1, left), (-1, right)]

    def _probe_bands_with_noise(self, bands: list[BandAxisAndStart], n_samples: int) -> Iterator[Tensor]:
        """Which bands reach which positions, (bands, *P): by derivatives and by differences, on a few noise images."""
        for sample in range(n_samples):
            base, other = self.noise[sample], self.noise[sample + 1]
            try:
                yield self._nonzero_derivative_mask(bands, base, other - base)
            except torch.OutOfMemoryError:
                raise
            except ERRORS_CAUSED_BY_PROBES:
                pass  # an op without forward derivatives
            yield self._reached_mask_by_band(
                bands, self._make_activation_change_test(self._unit_activations(base[None])), base, other
            )

    def pixels_outside_field_have_no_effect(self, bounds: Tensor) -> bool:
        """Whether some positions are unchanged when all pixels outside of their fields are replaced."""
        positions = _corner_and_center_positions(bounds)
        base, other = self.noise[0], self.noise[1]
        changed = other.expand(len(positions), *other.shape).clone()
        for x, position in zip(changed, positions, strict=True):
            top, left, bottom, right = bounds[position].tolist()
            x[:, top:bottom, left:right] = base[:, top:bottom, left:right]
        differs_from_base = self._make_activation_change_test(self._unit_activations(base[None]))

        def check_rows(rows: slice) -> list[bool]:
            has_changed = differs_from_base(self._unit_activations(changed[rows]))
            return [bool(m[position]) for m, position in zip(has_changed, positions[rows], strict=True)]

        return not any(any(p) for p in self._run_probes_in_batches(check_rows, len(positions)))

    def _reached_mask_by_band(
        self, bands: list[BandAxisAndStart], is_reached: Callable[[Tensor], Tensor], base: Tensor, other: Tensor
    ) -> Tensor:
        """Which positions the change of a band to `other` reaches, (bands, *P), by `is_reached` of activations."""

        def probe_bands_in_rows(rows: slice) -> Tensor:
            return is_reached(
                self._unit_activations(
                    torch.stack([self._with_band_of_other_image(base, other, b) for b in bands[rows]])
                )
            )

        return torch.cat(self._run_probes_in_batches(probe_bands_in_rows, len(bands)))

    def _nonzero_derivative_mask(self, bands: list[BandAxisAndStart], base: Tensor, direction: Tensor) -> Tensor:
        """Where the derivative along a band is not zero, (bands, *P). For a weight of zero it is exactly zero."""

        def probe_bands_in_rows(rows: slice) -> Tensor:
            tangents = torch.stack(
                [self._with_band_of_other_image(torch.zeros_like(direction), direction, b) for b in bands[rows]]
            )
            with _allowing_forward_ad():
                x = base.expand_as(tangents).clone()
                h, slope = forward_ad.unpack_dual(self._unit_activations(forward_ad.make_dual(x, tangents.clone())))  # type: ignore[no-untyped-call]
                return (torch.zeros_like(h) if slope is None else slope.nan_to_num(0)).ne(0).any(1)

        return torch.cat(self._run_probes_in_batches(probe_bands_in_rows, len(bands)))

    def _bounds_from_bands(self, reached: Tensor) -> Tensor:
        """Bounds (*P, 4) from which of all bands reach a position, (bands, *P)."""
        n_row_bands = sum(side == -2 for side, _ in self.bands)
        (top, bottom), (left, right) = (
            self._pixel_interval_of_reaching_bands(h, side)
            for h, side in ((reached[:n_row_bands], -2), (reached[n_row_bands:], -1))
        )
        return torch.stack([top, left, bottom, right], -1)

    def _pixel_interval_of_reaching_bands(self, reached: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The first band that reaches a position, and the end of the last one, in pixels."""
        n = len(reached)
        first, last = reached.int().argmax(0), n - reached.flip(0).int().argmax(0)
        is_unreached = ~reached.any(0)
        ends = (first * self.resolution, (last * self.resolution).clamp(max=self.noise.shape[axis]))
        return ends[0].masked_fill(is_unreached, 0), ends[1].masked_fill(is_unreached, 0)

    def _with_band_of_other_image(self, base: Tensor, other: Tensor, band: BandAxisAndStart) -> Tensor:
        axis, start = band
        x, n = base.clone(), min(self.resolution, base.shape[axis] - start)
        x.narrow(axis, start, n).copy_(other.narrow(axis, start, n))
        return x

    def _unit_activations(self, x: Tensor) -> Tensor:
        with _disabling_fast_convolutions(), self.box.isolated(grad=False):
            return units_to_axis_1(self.box.forward(x, [self.path])[self.path], self.axis, self.path)

    def _make_activation_change_test(self, base: Tensor) -> Callable[[Tensor], Tensor]:
        tolerance = RELATIVE_CHANGE_TOLERANCE_BY_DTYPE.get(self.box.model_dtype, LOW_PRECISION_TOLERANCE) * float(
            base.abs().max()
        )
        return lambda h: ((h - base).abs() > tolerance).any(1)

    def _run_probes_in_batches(self, run_rows: Callable[[slice], ResultT], n: int) -> list[ResultT]:
        size, max_rows = self.box.batch_size_and_max_rows(n, self.batch_size)
        return map_in_batches(run_rows, n, 1 if self.box.batch_dependent else size, max_rows)  # else each probe alone


def _corner_and_center_positions(bounds: Tensor) -> list[tuple[int, ...]]:
    """Some positions of bounds (*P, 4): corners, the center, and between."""
    corners = [sorted({0, s // 2, s - 1}) for s in bounds.shape[:-1]]
    return list(product(*corners)) if len(corners) < 3 else list(zip(*corners, strict=False))


def _union_bounds(bounds: Tensor) -> Tensor:
    """The smallest bounds (*P, 4) around several, (D, *P, 4)."""
    is_empty = (bounds[..., 2:] <= bounds[..., :2]).any(-1, keepdim=True)
    first = bounds[..., :2].masked_fill(is_empty, torch.iinfo(bounds.dtype).max).amin(0)
    return torch.cat([first.masked_fill(is_empty.all(0), 0), bounds[..., 2:].amax(0)], -1)


@contextmanager
def _allowing_forward_ad() -> Iterator[None]:
    """Forward-mode derivatives, by kernels that have them."""
    with warnings.catch_warnings():  # at first use torch calls its own deprecated functions
        warnings.simplefilter("ignore", DeprecationWarning)
        import_module("torch._decomp.decompositions_for_jvp")
    with torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        yield


@contextmanager
def _disabling_fast_convolutions() -> Iterator[None]:
    """Without fast algorithms (Winograd, FFT), which mix neighbors and cancel them again: NaN does not cancel."""
    with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        yield
