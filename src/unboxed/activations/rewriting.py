"""Rewrite: run a model with some of its activations changed, and see what its output does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edits import Change, ablate, addresses, with_units
from ..errors import InputError
from ..model.batching import BatchSize, in_batches
from ..model.hooks import Edit

Edits = Mapping[str, Edit | Sequence[Edit]]


@dataclass(frozen=True, eq=False)
class Rewritten:
    before: Tensor  # (N, K) logits
    after: Tensor  # (N, K) logits of the rewritten model

    @property
    def change(self) -> Tensor:  # (N, K)
        return self.after - self.before


@card(
    name="Rewriting",
    source="Bau et al. 2019, arXiv:1811.10597, section 3.2 (interventions on units)",
    shows="What the output becomes when these activations are other ones: a cause, not a correlation.",
    does_not_show="What the model would do on an input that has such activations: often there is none.",
    example=lambda method, box, x, y: method(box, x, {addresses(box)[-1]: ablate(0)}),
    exempt={"one look": "it runs the model with and without the edits"},
)
def rewrite(box: Box, x: Tensor, edits: Edits, *, batch_size: BatchSize = "auto") -> Rewritten:
    """The logits of x before and after edits {layer address: edit, or several in turn}.

    Ready-made: `ablate(k)`, `scale(k, factor)`, `put(k, value)`; or any function from the layer's output (N, ...) to a
    tensor of its shape. Of what a layer gives as several tensors, the first is rewritten. Raises LayerError for an
    unknown layer, InputError for an edit that doesn't fit it.
    """
    x = box.validate_inputs(x)
    wanted = _checked(box, edits, len(x))
    coupled = not all(map(box.has_batch_axis, wanted))

    def part(rows: slice, wanted: Mapping[str, Sequence[Edit]]) -> Tensor:
        mine = {a: _chain([e.rows(rows) if isinstance(e, Change) else e for e in es], a) for a, es in wanted.items()}
        with box.isolated(grad=False):
            return box.forward(x[rows], ["logits"], mine)["logits"].to(box.dtype)

    split = box.batch_plan(len(x), batch_size, coupled)
    both = [torch.cat(in_batches(partial(part, wanted=edits), len(x), *split)) for edits in ({}, wanted)]
    return Rewritten(*both)


def _checked(box: Box, edits: Edits, n: int) -> dict[str, tuple[Edit, ...]]:
    if not isinstance(edits, Mapping) or not edits:
        raise InputError("edits is {layer address: edit}, such as {'conv1': ablate(3)}, with at least one edit")
    found: dict[str, tuple[Edit, ...]] = {}
    for address, given in edits.items():
        several = tuple(given) if isinstance(given, Sequence) else (given,)
        if not several or not all(map(callable, several)):
            raise InputError(f"an edit of {address!r} is a function of its activation, such as ablate(3)")
        ready = [e.fits(n) for e in several if isinstance(e, Change)]
        real = with_units(box, address) if ready else box.layers.resolve(address)
        found[real] = several
    return found


def _chain(edits: Sequence[Edit], address: str) -> Edit:
    """The edits in turn. Raises InputError for one that does not keep the shape."""

    def edited(h: Tensor) -> Tensor:
        new = h
        for edit in edits:
            new = edit(new.clone())  # a function may write over what it is given
        if not isinstance(new, Tensor) or new.shape != h.shape:
            got = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise InputError(f"an edit of {address!r} must give a tensor of its shape {tuple(h.shape)}; it gave {got}")
        return new.to(h)

    return edited
