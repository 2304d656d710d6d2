"""Features: activations of layers as vectors, one row per example, read in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError
from ...inputs.examples import input_batches, open_data
from ...inputs.items import SkippedExamples
from ...inputs.pixels import Pixels
from ...model.batching import BatchSize, map_in_batches
from ...model.layers import input_address
from ...objectives import INPUT_OUTPUT_ADDRESSES
from ...validation import address_list

MAX_UNSKETCHED_VALUES = 2**26  # of one layer, that are not sketched
SKETCH_SIZE = 4096  # values per example after sketching


def max_unsketched_features(n_examples: int) -> int:
    """The largest number of features per example, of n, that are not sketched."""
    return max(SKETCH_SIZE, MAX_UNSKETCHED_VALUES // max(1, n_examples))


def hidden_layer_input_addresses(box: Box, max_layers: int | None = None) -> list[str]:
    """The inputs of all layers with parameters but the first; evenly spaced in depth where there are too many.

    An input address is valid for any spelling of the nonlinearity before the layer.
    """
    rows = [row for row in box.layers.leaves if row.n_parameters and row.runs_per_example]
    addresses = [input_address(a) for row in rows for a in row.addresses][1:]
    if max_layers is None or len(addresses) <= max_layers:
        return addresses
    return (
        [addresses[round(i * (len(addresses) - 1) / (max_layers - 1))] for i in range(max_layers)]
        if max_layers > 1
        else addresses[-1:]
    )


def default_feature_layer(box: Box) -> str:
    """The input of the last layer with parameters; of a model without a hidden layer, the output.

    Raises LayerError where no layer has parameters.
    """
    if not any(row.n_parameters for row in box.layers.leaves):
        raise LayerError("no module of this model has parameters; name the layer, such as layer='output'")
    hidden = hidden_layer_input_addresses(box)
    return hidden[-1] if hidden else "output"


def input_and_hidden_layer_addresses(box: Box, max_hidden_layers: int) -> list[str]:
    """The input, and the inputs of hidden layers, evenly spaced in depth: what methods read by default."""
    return ["input", *hidden_layer_input_addresses(box, max_hidden_layers)]


def resolve_address(box: Box, name: str) -> str:
    """The full address of a layer, or "input", "output" or "logits". Raises LayerError."""
    return name if isinstance(name, str) and name in INPUT_OUTPUT_ADDRESSES else box.layers.resolve(name)


def resolve_layers(box: Box, layers: str | Sequence[str]) -> list[str]:
    """The full addresses of the named layers. Raises LayerError."""
    return list(dict.fromkeys(resolve_address(box, a) for a in address_list(layers)))


def read_features(
    box: Box, x: Tensor, addresses: Sequence[str], *, batch_size: BatchSize = "auto", max_features: int | None = None,
    unit_axes: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Vectors {address: (N, D)} of validated inputs x. More features than the limit are sketched to 4,096.

    Of the layers in `unit_axes` they are the units' means over positions.

    Raises LayerError where the first axis of a layer is not the batch, InputError for NaN.
    """

    def read_rows(rows: slice) -> dict[str, Tensor]:
        with box.isolated(grad=False):
            acts = box.forward(x[rows], addresses)
            acts.update({a: mean_over_other_axes(acts[a], axis) for a, axis in (unit_axes or {}).items()})
            return {a: _to_checked_vectors(box, a, acts[a], len(x[rows]), max_features) for a in addresses}

    parts = map_in_batches(read_rows, len(x), *box.batch_size_and_max_rows(len(x), batch_size))
    return {a: torch.cat([p[a] for p in parts]) for a in addresses}


def mean_over_other_axes(h: Tensor, axis: int) -> Tensor:
    """The means (N, C) over positions of activations with their units on this axis."""
    h = h.movedim(axis, 1)
    return h.flatten(2).mean(2) if h.ndim > 2 else h


def make_feature_reader(
    box: Box, data: Any, address: str, *, batch_size: BatchSize = "auto", skipped: SkippedExamples | None = None
) -> Any:
    """A function that returns the vectors (n, D) of the next batch of `data`, and None at the end."""
    size = max(1, box.batch_limit if batch_size == "auto" else batch_size)
    data = open_data(data, box.inputs)
    # a batch-dependent model gets all rows
    parts = input_batches(data, 2**62 if box.batch_dependent else size, skipped)

    def next_features() -> Tensor | None:
        x = next(parts, None)
        return (
            None if x is None else read_features(box, box.validate_inputs(x), [address], batch_size=batch_size)[address]
        )

    return next_features


def _to_checked_vectors(box: Box, address: str, h: Tensor, n: int, max_features: int | None) -> Tensor:
    if not h.ndim or len(h) != n:
        raise LayerError(f"{address!r} gives {tuple(h.shape)} for {n} inputs: its first axis is not the batch")
    if address == "input" and not isinstance(box.inputs, Pixels):
        h = box.inputs.pack(box.inputs.encode(h))  # columns of a table have different units
    flat = (torch.view_as_real(h) if h.is_complex() else h).flatten(1) if h.ndim > 1 else h[:, None]
    flat = flat.to(box.dtype)
    if not torch.isfinite(flat).all():
        raise InputError(f"{address!r} gives NaN or infinite values for some of these inputs")
    return count_sketch(flat) if max_features is not None and flat.shape[1] > max_features else flat


def count_sketch(h: Tensor) -> Tensor:
    """Vectors (N, D) in 4,096 values, which keeps distances up to some percent (count sketch: Charikar et al. 2002).

    Each value is added, with a random sign, to a random index; both depend on D alone, so that batches are comparable.
    """
    generator = torch.Generator().manual_seed(h.shape[1])
    bucket = torch.randint(SKETCH_SIZE, (h.shape[1],), generator=generator).to(h.device)
    sign = torch.randint(2, (h.shape[1],), generator=generator).to(h) * 2 - 1
    return h.new_zeros(len(h), SKETCH_SIZE).index_add_(1, bucket, h * sign)
