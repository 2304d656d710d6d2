"""Ablation: silence the units of a layer, one after another, and see what the output loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edited_runs import Exchange, runs
from ..engine.read.edits import addresses, chosen, one_of, settled, with_units
from ..engine.read.examples import batches
from ..engine.read.packing import packed
from ..errors import InputError
from ..model.batching import BatchSize
from ..model.hooks import Edit
from ..model.layers import input_address
from ..objectives import Objective

ROWS = 256  # of the data read at a time


@dataclass(frozen=True, eq=False)
class Ablation:
    layer: str
    units: Tensor  # (U,)
    score: Tensor  # (N,) of the target, nothing silenced
    logits: Tensor  # (N, K)
    scores: Tensor  # (N, U) with each unit silenced
    ablated: Tensor  # (N, U, K) logits with each unit silenced

    @property
    def change(self) -> Tensor:
        """What silencing does to the score, (N, U): below zero where the unit speaks for the target."""
        return self.scores - self.score[:, None]

    @property
    def logits_change(self) -> Tensor:  # (N, U, K)
        return self.ablated - self.logits[:, None]

    def accuracy(self, y: Tensor) -> tuple[float, Tensor]:
        """The share of labels y (N,) named right: by the whole model, and with each unit silenced (U,)."""
        y = y.to(self.logits.device)
        right = (self.ablated.argmax(2) == y[:, None]).double().mean(0)
        return float((self.logits.argmax(1) == y).double().mean()), right


@card(
    name="Ablation",
    source="Morcos et al. 2018, arXiv:1803.06959, section 2 (ablations: a unit clamped to zero, or to its mean)",
    shows="Which units this answer, or the accuracy, can't do without.",
    does_not_show="What units do together: a unit whose work another can take over seems to matter little.",
    example=lambda method, box, x, y: method(box, x, addresses(box)[-1], [0, 1], target=y),
    exempt={"one look": "it runs the model once for each unit"},
)
def ablation(
    box: Box,
    x: Tensor,
    layer: str | None = None,
    units: Sequence[int] | None = None,
    target: int | Tensor | Objective | None = None,
    *,
    to: Literal["zero", "mean"] = "zero",
    data: Any = None,
    batch_size: BatchSize = "auto",
) -> Ablation:
    """The target's score and the logits of x with each unit (channel) of a layer silenced, one at a time.

    `layer` is by default the last hidden one, `units` all of it, and `target` the class predicted for x as it is.
    `to="mean"` sets a unit to its mean over `data` (and positions) instead. Pairs of example and unit share batches.
    Raises LayerError for a layer without units, InputError for units it doesn't have.
    """
    if to not in ("zero", "mean") or (to == "mean") != (data is not None):
        raise InputError(f'to is "zero", or "mean" together with data to take it over; got {to!r}')
    x = box.validate_inputs(x)
    real = with_units(box, hidden(box) if layer is None else layer)
    shape = box.read(x[:1] if not box.batch_dependent else x, [real])[real].shape[1:]
    ks = torch.tensor(chosen(units, shape[0], real), device=box.device)
    objective = settled(box, target, x, batch_size)
    value = torch.zeros(shape[0], device=box.device) if data is None else _means(box, real, data, batch_size)

    def ways(n: Tensor, p: Tensor) -> Mapping[str, Edit]:
        one = one_of(ks[p], shape[0], shape, axis=1)
        return {real: Exchange(one, value.view(1, -1, *[1] * (len(shape) - 1)))}

    plain = runs(box, x, objective, batch_size=batch_size)
    found = runs(box, x, objective, ways, len(ks), batch_size=batch_size)
    if plain.logits is None or found.logits is None:
        raise InputError("no logits were read")
    return Ablation(real, ks, plain.score[:, 0], plain.logits[:, 0], found.score, found.logits)


PASSING = ("Dropout", "Flatten", "Identity")


def hidden(box: Box) -> str:
    """What the last layer with weights is given: by the layer before it, or from several. Raises LayerError."""
    paths = addresses(box)
    weighted = [i for i, path in enumerate(paths) if box.layers[path].n_parameters]
    i = before = weighted[-1] if weighted else len(paths) - 1
    while before and (before == i or box.layers[paths[before]].type in PASSING):
        before -= 1
    given = input_address(paths[i])
    noise = box.inputs.sample(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    acts = box.read(noise, [given, paths[before]])
    a, b = acts[given].flatten(), acts[paths[before]].flatten()
    return paths[before] if before < i and torch.equal(a, b) else given  # a branch may be as large


def _means(box: Box, layer: str, data: Any, batch_size: BatchSize) -> Tensor:
    """The mean of each channel (C,) over examples and positions."""
    total, count = torch.zeros(()), 0
    for x in batches(packed(box, data), ROWS):
        h = box.read(x, [layer], batch_size=batch_size)[layer]
        h = h.flatten(2) if h.ndim > 2 else h[..., None]  # (n, C, positions)
        total = total.to(h.device) + h.double().sum((0, 2))
        count += h.shape[0] * h.shape[2]
    return (total / count).to(box.dtype)
