"""Images with one rectangle exchanged, at each of many places: computed anew only where that changes anything."""

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
from ...model.batching import BatchSize, in_batches
from ...model.incremental import BasePass, Everywhere, Windowed, crop, plain, put_back
from ...objectives import Objective
from ..read.edited_runs import Runs

LOG = logging.getLogger("unboxed")

Size = tuple[int, int]  # (h, w)

SMALL = 256  # pixels; below, calls cost more than what they save
LARGE = 0.5  # of the image: a window of more reaches all of it within a few layers
FEW = 4  # places that are not worth a base pass
SHARE = 16  # of what an automatic batch may hold: windows are quickest where they stay in a cache
ROWS = 290  # of an automatic batch; more are no quicker
AGREE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; else 3e-2


def windows(
    box: Box,
    x: Tensor,
    objective: Objective,
    value: Tensor,
    corners: Tensor,
    size: Size,
    *,
    logits: bool = True,
    itself: bool = False,
    batch_size: BatchSize = "auto",
) -> Runs:
    """Scores (N, P) and logits (N, P, K) of images x (N, C, H, W) with the rectangle of `size` at each of the corners
    (P, 2), (top, left), taken from `value`; with `itself`, the images as they are come last, (N, P + 1).

    `value` is as large as x (what stands at the same place there is put in), or as the rectangle: (N, C, h, w) or
    (C, h, w). Where the model allows it, only what the window reaches is computed (`model.incremental`); two places, at
    a corner and in the middle, are compared with whole runs once, in an image of x and in noise, and where they
    disagree, all are whole runs; so they are where the model keeps maps on itself, or asks where in a map the largest
    value lies. Raises InputError for a rectangle that does not lie in the image.
    """
    at, n = _inside(x, corners, size), len(x)
    at = torch.cat([at, at[-1:]]) if itself else at
    p = len(at)
    work = _Work(box, x, objective, _patches(x, value, size), at, size, logits, p - 1 if itself else p)
    if box.coupled or objective.coupled:  # then a batch is all examples, with a window at one place
        rows = torch.arange(n)
        parts = in_batches(lambda r: work.whole(rows, torch.full_like(rows, r.start)), p, 1, 1)
        return _runs([torch.stack(h, 1) for h in zip(*parts, strict=True)])
    if work.may_be_local(p):
        return _runs([torch.stack(h) for h in zip(*(work.one(i, batch_size) for i in range(n)), strict=True)])
    found = work.wholes(torch.arange(n).repeat_interleave(p), torch.arange(p).repeat(n), batch_size)
    return _runs([h.view(n, p, *h.shape[1:]) for h in found])


def _runs(found: Sequence[Tensor]) -> Runs:
    return Runs(found[0], found[1] if len(found) > 1 else None)


def _patches(x: Tensor, value: Tensor, size: Size) -> Tensor:
    """What is put in: (N, C, H, W), or (N, C, h, w). Raises InputError."""
    value = value[None] if value.ndim == x.ndim - 1 else value
    shapes = (tuple(x.shape[1:]), (x.shape[1], *size))
    if tuple(value.shape[1:]) not in shapes or len(value) not in (1, len(x)):
        raise InputError(f"what is put in has shape {shapes[0]} or {shapes[1]} an image; got {tuple(value.shape)}")
    return value.to(x).expand(len(x), -1, -1, -1)


def _inside(x: Tensor, corners: Tensor, size: Size) -> Tensor:
    """The corners (P, 2) on the host. Raises InputError."""
    corners = torch.as_tensor(corners).cpu().long()
    if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners):
        raise InputError(f"corners are (P, 2), (top, left) of each place; got shape {tuple(corners.shape)}")
    most = torch.tensor([x.shape[2] - size[0], x.shape[3] - size[1]])
    if min(size) < 1 or bool(((corners < 0) | (corners > most)).any()):
        raise InputError(f"a window {size[0]}x{size[1]} must lie in images of {x.shape[2]}x{x.shape[3]}")
    return corners


_KNOWN: WeakKeyDictionary[Box, dict[object, int]] = WeakKeyDictionary()


@dataclass
class _Work:
    box: Box
    x: Tensor
    objective: Objective
    patches: Tensor
    corners: Tensor  # (P, 2)
    size: Size
    logits: bool
    last: int  # the place from which on images stay as they are

    def cut(self, row: int, place: int) -> Tensor:
        """What is put into an image at a place, (C, h, w)."""
        (top, left), (h, w) = self.corners[place].tolist(), self.size
        patch = self.patches[row] if place < self.last else self.x[row]
        return patch if tuple(patch.shape[1:]) == (h, w) else patch[:, top : top + h, left : left + w]

    def forward(self, x: Tensor, rows: Tensor) -> list[Tensor]:
        """Scores (R,) and logits (R, K) of images (R, C, H, W), made of x[rows]. Inside `quiet`."""
        wanted = {*self.objective.layers, *(["logits"] if self.logits else [])}
        acts = self.box.forward(x, wanted)
        if "input" in wanted:
            acts["input"] = plain(acts["input"])
        found = [self.objective.rows(rows.to(self.box.device))(acts)]
        found += [_flat(acts["logits"])] if self.logits else []
        return [h.to(self.box.dtype) for h in found]

    # -- whole images --------------------------------------------------------------------------------------------------

    def whole(self, rows: Tensor, places: Tensor) -> list[Tensor]:
        images, (h, w) = self.x[rows.to(self.x.device)], self.size  # a copy
        for i, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
            top, left = self.corners[place].tolist()
            images[i, :, top : top + h, left : left + w] = self.cut(row, place)
        with self.box.quiet(grad=False):
            return self.forward(images, rows)

    def wholes(self, rows: Tensor, places: Tensor, batch_size: BatchSize) -> list[Tensor]:
        size, most = self.box.splits(len(rows), batch_size)
        parts = in_batches(lambda part: self.whole(rows[part], places[part]), len(rows), size, most)
        return [torch.cat(h) for h in zip(*parts, strict=True)]

    # -- windows alone -------------------------------------------------------------------------------------------------

    def may_be_local(self, p: int) -> bool:
        """Whether it is worth a try."""
        if not isinstance(self.box.inputs, Pixels) or not self.box.takes_others:
            return False
        pixels = self.x.shape[2] * self.x.shape[3]
        return p >= FEW and pixels >= SMALL and self.size[0] * self.size[1] <= LARGE * pixels

    def one(self, row: int, batch_size: BatchSize) -> list[Tensor]:
        """All places of one image."""
        p, base = len(self.corners), BasePass()
        if each := self.bytes_each(base, row):
            try:
                return self.locals(base, row, min(ROWS, self.box.fitting(SHARE * each)), batch_size)
            except Exception:  # the model does otherwise than when it was looked at: whole runs tell whether it can run
                LOG.info("windows by incremental inference failed; whole runs follow", exc_info=True)
                self.known[self.asked] = 0
        return self.wholes(torch.full((p,), row), torch.arange(p), batch_size)

    def locals(self, base: BasePass, row: int, most: int, batch_size: BatchSize) -> list[Tensor]:
        every, (size, _) = self.by_extent(), self.box.splits(len(self.corners), batch_size)
        parts = in_batches(lambda part: self.local(base, row, every[part]), len(every), size, most)
        back = every.argsort()
        return [torch.cat(h)[back] for h in zip(*parts, strict=True)]

    def by_extent(self) -> Tensor:
        """The places (P,) in an order in which those that are as far from the border share a batch: what windows reach
        is then cut off alike.
        """
        most = torch.tensor([self.x.shape[2] - self.size[0], self.x.shape[3] - self.size[1]])
        far = torch.minimum(self.corners, most - self.corners)  # (P, 2)
        near = far.min(1).values
        return torch.from_numpy(np.lexsort((far[:, 1].numpy(), far[:, 0].numpy(), near.numpy())))

    @property
    def known(self) -> dict[object, int]:
        return _KNOWN.setdefault(self.box, {})

    @property
    def asked(self) -> object:
        """What an answer was found for: another one is looked for where the model was rebuilt."""
        parts = tuple((type(m), m.training) for m in self.box.model.modules())
        shapes = tuple((p.shape, p.dtype) for p in self.box.model.parameters())
        return frozenset(self.objective.layers), self.logits, self.size, parts, shapes

    def bytes_each(self, base: BasePass, row: int) -> int:
        """What a row of windows holds; 0 where they don't give what whole runs give in this model.

        As what else a box knows of its model, it is seen once.
        """
        known, asked = self.known, self.asked
        if asked not in known:
            two = torch.tensor([len(self.corners) // 2, 0])
            agree = self._agrees(base, row, two) and self.of_noise()._agrees(BasePass(), row, two)
            known[asked] = max(1, base.bytes_each) if agree else 0
        return known[asked]

    def local(self, base: BasePass, row: int, places: Tensor) -> list[Tensor]:
        """Raises UnboxedError where windows can't stand in."""
        with self.box.quiet(grad=False), put_back(self.box.model.modules(), base), Everywhere() as ops:
            found = self.forward(cast(Tensor, self._begun(base, row, places)), torch.full((len(places),), row))
            if ops.tied or base.is_kept:
                raise UnboxedError("the model keeps what stands for a tensor, or asks where its largest values lie")
            return found

    def _begun(self, base: BasePass, row: int, places: Tensor) -> Windowed:
        top, left = np.asarray(self.corners[places]).T
        patch = self.patches[row : row + 1]
        if tuple(patch.shape[2:]) == self.size:
            cuts = patch.expand(len(places), -1, -1, -1).clone()
        else:
            cuts = crop(patch, top, left, self.size).permute(0, 3, 1, 2)
        for i in (places >= self.last).nonzero().flatten().tolist():
            cuts[i] = self.cut(row, int(places[i]))
        return Windowed.begin(base, self.x[row : row + 1], cuts, top, left)

    def of_noise(self) -> _Work:
        """This work on an image of noise with another put in: in x, a window may change nothing and so show nothing."""
        image, patch = self.box.noise(2)
        return replace(self, x=image.expand_as(self.x), patches=patch.expand_as(self.x))

    def _agrees(self, base: BasePass, row: int, places: Tensor) -> bool:
        """Whether windows give what whole runs give: a model may look at its input in ways that only tensors stand."""
        rows = torch.full_like(places, row)
        try:
            found = self.local(base, row, places)
        except Exception:  # out of memory, too: then whole runs find a size that fits
            LOG.info("incremental inference is not taken", exc_info=True)
            return False
        close = AGREE.get(self.box.model_dtype if self.box.autocast is None else self.box.autocast, 3e-2)
        return all(_close(a, b, close) for a, b in zip(found, self.whole(rows, places), strict=True))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether all values agree, relative to the largest."""
    scale = float(b.abs().nan_to_num().max())
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance * scale + 1e-30, equal_nan=True)


def _flat(logits: Tensor) -> Tensor:
    """(N, K) of logits (N, K, ...): a map of outputs counts by its mean."""
    return logits if logits.ndim == 2 else logits.flatten(2).mean(2)
