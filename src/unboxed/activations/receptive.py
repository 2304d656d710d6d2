"""Receptive fields: which part of the picture each position of a layer can see, found by probing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..arguments import whole
from ..box import Box
from ..cards import card
from ..errors import InputError
from ..net.batching import BatchSize, in_batches
from .units import by_unit, unit_layers

T = TypeVar("T")
Probe = Literal["NaN", "differences"]
DRAWS = 4  # noise images of the probe by differences
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest activation; a coarser dtype: 1e-2


@dataclass(frozen=True)
class ReceptiveField:
    """`bounds` (*P, 4) of each position: top, left, bottom, right, in pixels; it sees rows top to bottom - 1.

    All four are 0 for a position that sees nothing (padding alone).
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
    tells="Which rows and columns of the picture can reach each position of a layer at all.",
    not_tells="How much each counts: the effective field is mostly smaller, and strongest in its middle.",
    example=lambda method, box, x, y: method(box, unit_layers(box, None)[-2:][0]),
)
def receptive_field(
    box: Box, layer: str, *, axis: int = 1, step: int = 1, batch_size: BatchSize = "auto"
) -> ReceptiveField:
    """What each position of a layer can see, found by putting NaN into `step` rows (then columns) at a time.

    `step` > 1 is quicker, and rounds fields up to whole steps. `axis` is that of the layer's units; its other axes are
    positions. Where the net swallows NaN or refuses it, noise is put there instead (`probe="differences"`): what then
    never made a difference in a few tries is missing. Raises InputError where inputs are no pictures, LayerError.
    """
    if len(box.inputs.shape) != 3:
        raise InputError(f"a receptive field is a part of a picture; this net takes inputs of shape {box.inputs.shape}")
    (path,) = unit_layers(box, layer)
    prober = _Prober(box, path, axis, whole("step", step, least=1), batch_size)
    bounds = prober.by_nan()
    if bounds is not None and prober.confirms(bounds):
        return ReceptiveField(path, bounds, "NaN")
    return ReceptiveField(path, prober.by_differences(), "differences")


class _Prober:
    def __init__(self, box: Box, path: str, axis: int, step: int, batch_size: BatchSize) -> None:
        self.box, self.path, self.axis, self.step, self.batch_size = box, path, axis, step, batch_size
        self.noise = box.inputs.sample(DRAWS + 1, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
        self.bands = [(side, i) for side in (-2, -1) for i in range(0, self.noise.shape[side], step)]

    def by_nan(self) -> Tensor | None:
        """Bounds (*P, 4); None where the net raises at a NaN."""
        nan = torch.full_like(self.noise[0], torch.nan)
        try:
            return self._bounds(lambda h: h.isnan().any(1), self.noise[0], nan)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, ArithmeticError, AssertionError, LookupError):
            return None  # it checks its input

    def by_differences(self) -> Tensor:
        found = []
        for draw in range(DRAWS):
            base, other = self.noise[draw], self.noise[draw + 1]
            found.append(self._bounds(self._differs(self._given(base[None])), base, other))
        return _hull(torch.stack(found))

    def confirms(self, bounds: Tensor) -> bool:
        """Whether some positions stay as they are when all that lies outside of their fields is drawn anew."""
        corners = [sorted({0, s // 2, s - 1}) for s in bounds.shape[:-1]]
        at = list(product(*corners)) if len(corners) < 3 else list(zip(*corners, strict=False))
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

    def _bounds(self, reached: Callable[[Tensor], Tensor], base: Tensor, other: Tensor) -> Tensor:
        """`reached` tells of activations (n, C, *P) which positions the change to `other` reached, (n, *P)."""

        def part(rows: slice) -> Tensor:
            return reached(self._given(torch.stack([self._banded(base, other, b) for b in self.bands[rows]])))

        hit = torch.cat(self._split(part, len(self.bands)))  # (bands, *P)
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

    def _banded(self, base: Tensor, other: Tensor, band: tuple[int, int]) -> Tensor:
        side, start = band
        x, n = base.clone(), min(self.step, base.shape[side] - start)
        x.narrow(side, start, n).copy_(other.narrow(side, start, n))
        return x

    def _given(self, x: Tensor) -> Tensor:
        with _plain_kernels(), self.box.quiet(grad=False):
            return by_unit(self.box.forward(x, [self.path])[self.path], self.axis, self.path)

    def _differs(self, base: Tensor) -> Callable[[Tensor], Tensor]:
        least = TOLERANCE.get(self.box.net_dtype, 1e-2) * float(base.abs().max())
        return lambda h: ((h - base).abs() > least).any(1)

    def _split(self, part: Callable[[slice], T], n: int) -> list[T]:
        size, most = self.box.splits(n, self.batch_size)
        return in_batches(part, n, 1 if self.box.coupled else size, most)  # each probe beside no other


def _hull(bounds: Tensor) -> Tensor:
    """The smallest bounds (*P, 4) around several, (D, *P, 4)."""
    empty = (bounds[..., 2:] <= bounds[..., :2]).any(-1, keepdim=True)
    first = bounds[..., :2].masked_fill(empty, torch.iinfo(bounds.dtype).max).amin(0)
    return torch.cat([first.masked_fill(empty.all(0), 0), bounds[..., 2:].amax(0)], -1)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without fast algorithms (Winograd, FFT), which mix neighbors and cancel them again: NaN does not cancel."""
    with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        yield
