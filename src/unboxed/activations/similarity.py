"""Similarity of layers: linear CKA between all layers of two models, in minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edits import addresses, with_units
from ..engine.read.examples import batches
from ..engine.read.packing import packed
from ..errors import DataError, InputError, warn
from ..inputs.multi import MultiInput
from ..model.batching import BatchSize
from ..validation import check_int

LEAST = 4  # examples that HSIC_1 needs
ROUNDING = 32  # units in the last place by which a feature that is the same for all examples may seem to vary
BYTES = 2**29  # of one minibatch's activations held at a time; a layer that is larger is held alone


@dataclass(frozen=True, eq=False)
class Similarity:
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    cka: Tensor  # (La, Lb), NaN where a layer is (nearly) the same for all examples
    examples: int
    minibatches: int


def _mirrored(box: Box, x: Tensor) -> Tensor:
    """Images turned round; of several inputs, each in its own shape."""
    if not isinstance(box.inputs, MultiInput):
        return x.flip(-1)
    return torch.cat([part.flip(-1).flatten(1) for part in box.inputs.split(x)], 1)


def _example(method: Any, box: Box, x: Tensor) -> Any:
    """The last two layers with weights, on the examples and their mirror images."""
    weighted = [path for path in addresses(box) if box.layers[path].n_parameters]
    layers = (weighted if len(weighted) > 1 else addresses(box))[-2:]
    x = box.validate_inputs(x)
    return method(box, box, torch.cat([x, _mirrored(box, x)]), layers, layers)


@card(
    name="CKA",
    source="Kornblith et al. 2019, arXiv:1905.00414; in minibatches: Nguyen et al. 2021, arXiv:2010.15327, eq. 3-4",
    shows="Which layers lay out these examples alike, up to rotation and scale, in one model or in two.",
    does_not_show="That two layers compute the same: a few large directions decide, and the small ones may differ.",
    example=lambda method, box, x, y: _example(method, box, x),
)
def similarity(
    box_a: Box,
    box_b: Box,
    data: Any,
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    *,
    minibatch: int = 256,
    unbiased: bool = True,
    batch_size: BatchSize = "auto",
) -> Similarity:
    """Linear CKA of every layer of one model (rows) with every layer of another, over `data`; by default all layers.

    sum_i HSIC(X_i X_i', Y_i Y_i') / sqrt(sum_i HSIC(X_i X_i', X_i X_i') * sum_i HSIC(Y_i Y_i', Y_i Y_i')) over
    minibatches i, with HSIC_1, whose expected value does not depend on their size (Song et al. 2012). A model with
    itself has the diagonal 1. `unbiased=False` takes HSIC_0: with one minibatch of all data, CKA as first published,
    which lies in [0, 1] but grows with the width of layers when examples are few. `minibatch` is how many examples a
    Gram matrix holds; a rest of fewer than 4 is left out. Raises InputError where the models take other inputs.
    """
    least = LEAST if unbiased else 2
    size = check_int("minibatch", minibatch, minimum=least)
    if box_a.inputs.shape != box_b.inputs.shape:
        raise InputError(
            f"the models take inputs of {box_a.inputs.shape} and {box_b.inputs.shape}; compare on the same"
        )
    a, b = _named(box_a, layers_a), _named(box_b, layers_b)
    sums, examples, count = _Sums(len(a), len(b)), 0, 0
    for x in batches(packed(box_a, data), size):
        if len(x) >= least:
            ka = _grams(box_a, x, a, batch_size)
            kb = ka if box_a is box_b and a == b else _grams(box_b, x, b, batch_size)
            sums.add(ka, kb, hsic_1 if unbiased else hsic_0)
            examples, count = examples + len(x), count + 1
    if not count:
        raise DataError(f"similarity needs at least {least} examples")
    return Similarity(a, b, _told(sums.cka()).to(box_a.device, box_a.dtype), examples, count)


def _named(box: Box, layers: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(layers, str):
        raise InputError(f"layers is a list of addresses; got the text {layers!r}")
    return addresses(box) if layers is None else tuple(with_units(box, path) for path in layers)


def _told(cka: Tensor) -> Tensor:
    if n := int(cka.isnan().sum()):
        warn(
            f"{n} of {cka.numel()} similarities are undefined (NaN): a layer is the same for all examples, or they are "
            "too few to tell"
        )
    return cka


class _Sums:
    """The sums over minibatches."""

    def __init__(self, a: int, b: int) -> None:
        self.both, self.a, self.b = (torch.zeros(s, dtype=torch.float64) for s in ((a, b), (a,), (b,)))

    def add(self, ka: Tensor, kb: Tensor, hsic: Any) -> None:
        self.both += hsic(ka, kb)
        self.a += hsic(ka, ka, own=True)
        self.b += hsic(kb, kb, own=True)

    def cka(self) -> Tensor:
        own = self.a.clamp_min(0).sqrt()[:, None] * self.b.clamp_min(0).sqrt()  # (La, Lb)
        return torch.where(own > 0, self.both / own, math.nan)


def hsic_1(k: Tensor, m: Tensor, own: bool = False) -> Tensor:
    """HSIC_1 of Gram matrices (A, n, n) and (B, n, n): all pairs (A, B), or each with its own mate (A,).

    [tr(K~ M~) + 1'K~1 1'M~1 / ((n-1)(n-2)) - 2 / (n-2) 1'K~ M~ 1] / (n(n-3)), K~ and M~ without their diagonals.
    """
    n = k.shape[-1]
    off = 1 - torch.eye(n, dtype=k.dtype)
    k, m = k * off, m * off
    rows_k, rows_m = k.sum(2), m.sum(2)  # (A, n), (B, n)
    trace, cross = _pairs(k.flatten(1), m.flatten(1), own), _pairs(rows_k, rows_m, own)
    total = _pairs(rows_k.sum(1, keepdim=True), rows_m.sum(1, keepdim=True), own)
    return (trace + total / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def hsic_0(k: Tensor, m: Tensor, own: bool = False) -> Tensor:
    """HSIC_0: tr(K H M H) / (n-1)^2 with the centering matrix H (Gretton et al. 2005). Shapes as for `hsic_1`."""
    k, m = (g - g.mean(1, keepdim=True) - g.mean(2, keepdim=True) + g.mean((1, 2), keepdim=True) for g in (k, m))
    return _pairs(k.flatten(1), m.flatten(1), own) / (k.shape[-1] - 1) ** 2


def _pairs(a: Tensor, b: Tensor, own: bool) -> Tensor:
    """Inner products of rows (A, d) and (B, d): (A, B), or (A,) of each with its own mate."""
    return (a * b).sum(1) if own else a @ b.T


def _grams(box: Box, x: Tensor, paths: Sequence[str], batch_size: BatchSize) -> Tensor:
    """The Gram matrices (L, n, n) of a minibatch, of few layers at a time: their activations are never all held."""
    found: list[Tensor] = []
    for group in _groups(box, paths, len(x)):
        acts = box.read(x, group, batch_size=batch_size)
        found += [gram(acts[path]) for path in group]
    return torch.stack(found)


def _groups(box: Box, paths: Sequence[str], n: int) -> Iterator[list[str]]:
    """The layers in groups whose activations of n examples are at most BYTES."""
    group: list[str] = []
    held = 0
    for path in paths:
        size = 0 if ":" in path else 8 * n * math.prod(box.layers[path].shape)
        if group and held + size > BYTES:
            yield group
            group, held = [], 0
        group, held = [*group, path], held + size
    if group:
        yield group


def gram(h: Tensor) -> Tensor:
    """X X' (n, n) in double precision of activations (n, ...), centered: CKA is the same, and rounding is less."""
    flat = (torch.view_as_real(h) if h.is_complex() else h).flatten(1)
    scale = flat.abs().amax(0)
    flat = flat - flat.mean(0)
    flat = flat * (flat.abs().amax(0) > ROUNDING * torch.finfo(flat.dtype).eps * scale)  # else noise, not variation
    return (flat @ flat.T).to("cpu", torch.float64)
