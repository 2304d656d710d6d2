"""The gradient of an objective in several layers at once: one forward and one backward pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...box import Box
from ...errors import OutputError
from ...model.batching import BatchSize, map_in_batches
from ...objectives import INPUT_OUTPUT_ADDRESSES, Objective
from .score import score_gradients


def layer_gradients(
    box: Box, objective: Objective, x: Tensor, addresses: Sequence[str], *, batch_size: BatchSize = "auto"
) -> dict[str, Tensor]:  # fmt: skip
    """d objective / d activation {address: (N, ...)} of validated inputs x (N, ...); zeros where a layer has none.

    Raises OutputError where no layer has a gradient.
    """
    box.check_objective(objective, len(x))

    def run_batch(rows: slice) -> list[Tensor]:
        with box.isolated():
            part, score_of = x[rows].detach().requires_grad_(), objective.rows(rows)
            acts = box.forward(part, score_of.layers | {*addresses})
            score = score_of(acts)
            leaves = [acts[a] if a in INPUT_OUTPUT_ADDRESSES else acts.edges[a] for a in addresses]
            with_graph = [leaf for leaf in leaves if leaf is not None]
            if not with_graph:
                raise OutputError(f"nothing has a gradient at {' or '.join(map(repr, addresses))}")
            like = [acts[a] for a, leaf in zip(addresses, leaves, strict=True) if leaf is not None]
            grads, _ = score_gradients(score, acts, score_of, with_graph, relu_bypass="no", like=like)
            found = iter(grads)
            return [
                torch.zeros_like(acts[a]) if leaf is None else next(found).detach()
                for a, leaf in zip(addresses, leaves, strict=True)
            ]

    parts = map_in_batches(
        run_batch, len(x), *box.batch_size_and_max_rows(len(x), batch_size, objective.batch_dependent)
    )
    return {a: torch.cat(grads).to(box.dtype) for a, grads in zip(addresses, zip(*parts, strict=True), strict=True)}
