"""Receptive fields: which part of the picture each position of a layer can see, found by probing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..box import Box
from ..cards import card
from ..engine.read.sizes import images_only
from ..model.batching import BatchSize, in_batches
from ..validation import check_int
from .units import by_unit, unit_layers

T = TypeVar("T")
Probe = Literal["NaN", "differences"]
Band = tuple[int, int]  # a side of the picture, and where the band starts
DRAWS = 4  # noise images of the probe by differences
TRIES = 24  # noise images in which the outermost bands of a field may come to matter: maxima pass few of them on
WIDE = 30.0  # by how much some of them are wider than images
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest activation; a coarser dtype: 1e-2


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """`bounds` (*P, 4) of each position: top, left, bottom, right, in pixels; it sees rows top to bottom - 1.

    All four are 0 for a position that sees nothing (padding alone). `probe` tells how they were found.
    """

    path: str
    bounds: Tensor  # (*P, 4)
    probe: Probe

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the central position's field."""
        top, left, bottom, right = self._center().tolist()
        return bottom - top, right - left

    @property
    def stride(self) -> tuple[int, int]:
        """By how many pixels the field moves from the central position to the next, on the layer's last two axes."""
        sides = self.bounds.shape[:-1]
        if len(sides) < 2:
            return 0, 0
        at = [max(0, min(s // 2, s - 2)) for s in sides]
        down, right = (_moved(self.bounds, at, len(at) - back) for back in (2, 1))
        return down[2], right[3]

    def of(self, position: Tensor) -> Tensor:
        """The bounds (..., 4) of positions (..., P)."""
        if not position.shape[-1]:  # a layer without positions
            return self.bounds.expand(*position.shape[:-1], 4)
        return self.bounds[tuple(position.to(self.bounds.device).unbind(-1))]

    def patch(self, x: Tensor, position: Tensor | tuple[int, ...] = ()) -> Tensor:
        """The part (..., h, w) of images (..., H, W) that one position (P,) sees."""
        top, left, bottom, right = self.of(torch.as_tensor(position, dtype=torch.long)).tolist()
        return x[..., top:bottom, left:right]

    def _center(self) -> Tensor:
        return self.bounds[tuple(s // 2 for s in self.bounds.shape[:-1])]


def _moved(bounds: Tensor, at: list[int], axis: int) -> list[int]:
    """How the bounds change to the next position on an axis."""
    following = [min(i + (a == axis), s - 1) for a, (i, s) in enumerate(zip(at, bounds.shape, strict=False))]
    moved: list[int] = (bounds[tuple(following)] - bounds[tuple(at)]).tolist()
    return moved


@card(
    name="Receptive field",
    source="defined as in Araujo, Norris & Sim 2019, doi:10.23915/distill.00021; found by probing with NaN",
    shows="Which rows and columns of the picture can reach each position of a layer at all.",
    does_not_show="How much each counts: the effective field is mostly smaller, and strongest in its middle.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, unit_layers(box, None)[-2:][0]),
)
def receptive_field(
    box: Box, layer: str, *, axis: int = 1, step: int = 1, batch_size: BatchSize = "auto"
) -> ReceptiveField:
    """What each position of a layer can see, found by putting NaN into `step` rows (then columns) at a time.

    `step` > 1 is quicker, and rounds fields up to whole steps. `axis` is that of the layer's units; its other axes are
    positions. Where the model swallows NaN or refuses it, or NaN passes where no value could (a masked or zero weight:
    0 * NaN is NaN), noise is put there instead (`probe="differences"`): what then never made a difference in a few
    tries is missing. Raises InputError where inputs are no pictures, LayerError.
    """
    images_only(box, "a receptive field")
    (path,) = unit_layers(box, layer)
    prober = _Prober(box, path, axis, check_int("step", step, minimum=1), batch_size)
    bounds = prober.by_nan()
    if bounds is not None and prober.confirms(bounds) and prober.reaches(bounds):
        return ReceptiveField(path, bounds, "NaN")
    return ReceptiveField(path, prober.by_differences(), "differences")


REFUSED = (RuntimeError, ValueError, ArithmeticError, AssertionError, LookupError)  # what a model may say of a probe


class _Prober:
    def __init__(self, box: Box, path: str, axis: int, step: int, batch_size: BatchSize) -> None:
        self.box, self.path, self.axis, self.step, self.batch_size = box, path, axis, step, batch_size
        noise = box.inputs.sample(TRIES + 1, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
        noise[DRAWS + 1 :: 2] = WIDE * (noise[DRAWS + 1 :: 2] - 0.5)  # of both signs, which wakes most units
        self.noise = noise
        self.bands = [(side, i) for side in (-2, -1) for i in range(0, self.noise.shape[side], step)]

    def by_nan(self) -> Tensor | None:
        """Bounds (*P, 4); None where the model raises at a NaN."""
        nan = torch.full_like(self.noise[0], torch.nan)
        try:
            return self._bounds(self._hit(self.bands, lambda h: h.isnan().any(1), self.noise[0], nan))
        except torch.OutOfMemoryError:
            raise
        except REFUSED:
            return None  # it checks its input

    def by_differences(self) -> Tensor:
        """Bounds (*P, 4) around what moved a position, or had a slope, however small."""
        return _hull(torch.stack([self._bounds(hit) for hit in self._hits(self.bands, DRAWS)]))

    def reaches(self, bounds: Tensor) -> bool:
        """Whether the outermost bands of some positions' fields make a difference to them."""
        at = [p for p in _sampled(bounds) if bounds[p].any()]
        edges = {p: self._edges(bounds[p].tolist()) for p in at}
        bands = sorted({band for own in edges.values() for band in own})
        index = {band: i for i, band in enumerate(bands)}
        open_ = {(index[band], *p) for p, own in edges.items() for band in own}
        for hit in self._hits(bands, TRIES) if bands else ():
            open_ = {place for place in open_ if not hit[place]}
            if not open_:
                return True
        moves = torch.stack([self._moves(draw) for draw in range(TRIES)]).any(0)  # (*P)
        return not any(moves[place[1:]] for place in open_)  # of a dead position noise tells nothing

    def _moves(self, draw: int) -> Tensor:
        """Which positions differ between two noise images, (*P)."""
        return self._differs(self._given(self.noise[draw, None]))(self._given(self.noise[draw + 1, None]))[0]

    def _edges(self, bounds: list[int]) -> list[Band]:
        """The first and the last band of a field, on both sides."""
        top, left, bottom, right = (i - i % self.step for i in (bounds[0], bounds[1], bounds[2] - 1, bounds[3] - 1))
        return [(-2, top), (-2, bottom), (-1, left), (-1, right)]

    def _hits(self, bands: list[Band], draws: int) -> Iterator[Tensor]:
        """Which bands matter to which positions, (bands, *P): by slopes and by differences, from a few draws."""
        for draw in range(draws):
            base, other = self.noise[draw], self.noise[draw + 1]
            try:
                yield self._sloped(bands, base, other - base)
            except torch.OutOfMemoryError:
                raise
            except REFUSED:
                pass  # an op without forward derivatives
            yield self._hit(bands, self._differs(self._given(base[None])), base, other)

    def confirms(self, bounds: Tensor) -> bool:
        """Whether some positions stay as they are when all that lies outside of their fields is drawn anew."""
        at = _sampled(bounds)
        base, other = self.noise[0], self.noise[1]
        changed = other.expand(len(at), *other.shape).clone()
        for x, position in zip(changed, at, strict=True):
            top, left, bottom, right = bounds[position].tolist()
            x[:, top:bottom, left:right] = base[:, top:bottom, left:right]
        differs = self._differs(self._given(base[None]))

        def part(rows: slice) -> list[bool]:
            moved = differs(self._given(changed[rows]))
            return [bool(m[position]) for m, position in zip(moved, at[rows], strict=True)]

        return not any(any(p) for p in self._split(part, len(at)))

    def _hit(self, bands: list[Band], reached: Callable[[Tensor], Tensor], base: Tensor, other: Tensor) -> Tensor:
        """`reached` tells of activations (n, C, *P) which positions the change to `other` reached: (bands, *P)."""

        def part(rows: slice) -> Tensor:
            return reached(self._given(torch.stack([self._banded(base, other, b) for b in bands[rows]])))

        return torch.cat(self._split(part, len(bands)))

    def _sloped(self, bands: list[Band], base: Tensor, way: Tensor) -> Tensor:
        """Where the derivative along a band is not zero, (bands, *P). A weight of zero makes it exactly zero."""

        def part(rows: slice) -> Tensor:
            along = torch.stack([self._banded(torch.zeros_like(way), way, b) for b in bands[rows]])
            with _slopes():
                x = base.expand_as(along).clone()
                h, slope = forward_ad.unpack_dual(self._given(forward_ad.make_dual(x, along.clone())))  # type: ignore[no-untyped-call]
                return (torch.zeros_like(h) if slope is None else slope.nan_to_num(0)).ne(0).any(1)

        return torch.cat(self._split(part, len(bands)))

    def _bounds(self, hit: Tensor) -> Tensor:
        """Bounds (*P, 4) of which of all bands reach a position, (bands, *P)."""
        down = sum(side == -2 for side, _ in self.bands)
        (top, bottom), (left, right) = (self._interval(h, side) for h, side in ((hit[:down], -2), (hit[down:], -1)))
        return torch.stack([top, left, bottom, right], -1)

    def _interval(self, hit: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """The first band that reaches a position, and the end of the last one, in pixels."""
        n = len(hit)
        first, last = hit.int().argmax(0), n - hit.flip(0).int().argmax(0)
        none = ~hit.any(0)
        ends = (first * self.step, (last * self.step).clamp(max=self.noise.shape[side]))
        return ends[0].masked_fill(none, 0), ends[1].masked_fill(none, 0)

    def _banded(self, base: Tensor, other: Tensor, band: Band) -> Tensor:
        side, start = band
        x, n = base.clone(), min(self.step, base.shape[side] - start)
        x.narrow(side, start, n).copy_(other.narrow(side, start, n))
        return x

    def _given(self, x: Tensor) -> Tensor:
        with _plain_kernels(), self.box.isolated(grad=False):
            return by_unit(self.box.forward(x, [self.path])[self.path], self.axis, self.path)

    def _differs(self, base: Tensor) -> Callable[[Tensor], Tensor]:
        least = TOLERANCE.get(self.box.model_dtype, 1e-2) * float(base.abs().max())
        return lambda h: ((h - base).abs() > least).any(1)

    def _split(self, part: Callable[[slice], T], n: int) -> list[T]:
        size, most = self.box.batch_plan(n, self.batch_size)
        return in_batches(part, n, 1 if self.box.batch_dependent else size, most)  # each probe beside no other


def _sampled(bounds: Tensor) -> list[tuple[int, ...]]:
    """Some positions of bounds (*P, 4): corners, the middle, and between."""
    corners = [sorted({0, s // 2, s - 1}) for s in bounds.shape[:-1]]
    return list(product(*corners)) if len(corners) < 3 else list(zip(*corners, strict=False))


def _hull(bounds: Tensor) -> Tensor:
    """The smallest bounds (*P, 4) around several, (D, *P, 4)."""
    empty = (bounds[..., 2:] <= bounds[..., :2]).any(-1, keepdim=True)
    first = bounds[..., :2].masked_fill(empty, torch.iinfo(bounds.dtype).max).amin(0)
    return torch.cat([first.masked_fill(empty.all(0), 0), bounds[..., 2:].amax(0)], -1)


@contextmanager
def _slopes() -> Iterator[None]:
    """Forward derivatives, by kernels that have them."""
    with warnings.catch_warnings():  # what torch loads at first use calls its own deprecated functions
        warnings.simplefilter("ignore", DeprecationWarning)
        import_module("torch._decomp.decompositions_for_jvp")
    with torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        yield


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without fast algorithms (Winograd, FFT), which mix neighbors and cancel them again: NaN does not cancel."""
    with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        yield
