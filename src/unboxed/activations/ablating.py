"""Ablation: silence the units of a layer, one after another, and see what the output loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edited_runs import ReplaceWhere, run_variants
from ..engine.read.edits import check_units, part_masks, require_units, resolve_target, unit_addresses
from ..engine.read.examples import input_batches
from ..engine.read.packing import pack_data
from ..errors import InputError
from ..model.batching import BatchSize
from ..model.hooks import Edit
from ..model.layers import input_address
from ..objectives import Objective

DATA_BATCH_ROWS = 256  # of the data read at a time


@dataclass(frozen=True, eq=False)
class Ablation:
    layer: str
    units: Tensor  # (U,)
    original_score: Tensor  # (N,) of the target, nothing silenced
    original_logits: Tensor  # (N, K)
    ablated_scores: Tensor  # (N, U) with each unit silenced
    ablated_logits: Tensor  # (N, U, K) logits with each unit silenced

    @property
    def score_change(self) -> Tensor:
        """What silencing does to the score, (N, U): below zero where the unit speaks for the target."""
        return self.ablated_scores - self.original_score[:, None]

    @property
    def logits_change(self) -> Tensor:  # (N, U, K)
        return self.ablated_logits - self.original_logits[:, None]

    def accuracy(self, y: Tensor) -> tuple[float, Tensor]:
        """The share of labels y (N,) named right: by the whole model, and with each unit silenced (U,)."""
        y = y.to(self.original_logits.device)
        accuracy_without_unit = (self.ablated_logits.argmax(2) == y[:, None]).double().mean(0)
        return float((self.original_logits.argmax(1) == y).double().mean()), accuracy_without_unit


@card(
    name="Ablation",
    source="Morcos et al. 2018, arXiv:1803.06959, section 2 (ablations: a unit clamped to zero, or to its mean)",
    shows="Which units this answer, or the accuracy, can't do without.",
    does_not_show="What units do together: a unit whose work another can take over seems to matter little.",
    example=lambda method, box, x, y: method(box, x, unit_addresses(box)[-1], [0, 1], target=y),
    exempt={"one forward": "it runs the model once for each unit"},
)
def ablation(
    box: Box,
    x: Tensor,
    layer: str | None = None,
    units: Sequence[int] | None = None,
    target: int | Tensor | Objective | None = None,
    *,
    replacement: Literal["zero", "mean"] = "zero",
    data: Any = None,
    batch_size: BatchSize = "auto",
) -> Ablation:
    """The target's score and the logits of x with each unit (channel) of a layer silenced, one at a time.

    `layer` is by default the last hidden one, `units` all of it, and `target` the class predicted for x as it is.
    `to="mean"` sets a unit to its mean over `data` (and positions) instead. Pairs of example and unit share batches.
    Raises LayerError for a layer without units, InputError for units it doesn't have.
    """
    if replacement not in ("zero", "mean") or (replacement == "mean") != (data is not None):
        raise InputError(
            f'replacement must be "zero", or "mean" together with data to take it over; got {replacement!r}'
        )
    x = box.validate_inputs(x)
    address = require_units(box, last_hidden_layer(box) if layer is None else layer)
    shape = box.read(x[:1] if not box.batch_dependent else x, [address])[address].shape[1:]
    unit_index = torch.tensor(check_units(units, shape[0], address), device=box.device)
    objective = resolve_target(box, target, x, batch_size)
    value = torch.zeros(shape[0], device=box.device) if data is None else _channel_means(box, address, data, batch_size)

    def make_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
        mask = part_masks(unit_index[variants], shape[0], shape, axis=1)
        return {address: ReplaceWhere(mask, value.view(1, -1, *[1] * (len(shape) - 1)))}

    original = run_variants(box, x, objective, batch_size=batch_size)
    ablated = run_variants(box, x, objective, make_edits, len(unit_index), batch_size=batch_size)
    if original.logits is None or ablated.logits is None:
        raise InputError("no logits were read")
    return Ablation(address, unit_index, original.score[:, 0], original.logits[:, 0], ablated.score, ablated.logits)


PASSTHROUGH_TYPES = ("Dropout", "Flatten", "Identity")


def last_hidden_layer(box: Box) -> str:
    """What the last layer with weights is given: by the layer before it, or from several. Raises LayerError."""
    paths = unit_addresses(box)
    weighted = [i for i, path in enumerate(paths) if box.layers[path].n_parameters]
    i = previous = weighted[-1] if weighted else len(paths) - 1
    while previous and (previous == i or box.layers[paths[previous]].type in PASSTHROUGH_TYPES):
        previous -= 1
    input_name = input_address(paths[i])
    noise = box.inputs.sample(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    acts = box.read(noise, [input_name, paths[previous]])
    a, b = acts[input_name].flatten(), acts[paths[previous]].flatten()
    return paths[previous] if previous < i and torch.equal(a, b) else input_name  # a branch may be as large


def _channel_means(box: Box, layer: str, data: Any, batch_size: BatchSize) -> Tensor:
    """The mean of each channel (C,) over examples and positions."""
    total, count = torch.zeros(()), 0
    for x in input_batches(pack_data(box, data), DATA_BATCH_ROWS):
        h = box.read(x, [layer], batch_size=batch_size)[layer]
        h = h.flatten(2) if h.ndim > 2 else h[..., None]  # (n, C, positions)
        total = total.to(h.device) + h.double().sum((0, 2))
        count += h.shape[0] * h.shape[2]
    return (total / count).to(box.dtype)
