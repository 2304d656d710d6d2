"""Gradients through edits of activations, which stay in place for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from ...box import Box
from ...errors import LayerError
from ...model.batching import BatchPadding
from ...model.hooks import Acts, Edit, capturing_activations

T = TypeVar("T")


def call_with_edited_activations(
    box: Box, x: Tensor, addresses: Collection[str], edits: Mapping[str, Edit], then: Callable[[Acts], T]
) -> T:
    """What `then` makes of the activations of one batch x (N, ...) while its edits are in place, inside `box.isolated`.

    Checkpointed parts of a model run again in the backward pass, where they are to be edited as in the forward pass.
    Raises LayerError where an edited layer runs again there, and runs several times or is a functional op of a
    checkpointed function that is no module.
    """
    rewrites = {box.layers.resolve(address): edit for address, edit in edits.items()}
    padding = BatchPadding(len(x), max(len(x), box.min_rows))
    try:
        with (
            capturing_activations(box.modules, (), edits=rewrites, stop=False, padding=padding, for_backward=True),
            torch.autograd.set_multithreading_enabled(False),  # hooks act in this thread alone
        ):
            return then(box.forward(x, addresses))
    except CheckpointError as error:
        raise LayerError(
            f"{', '.join(map(repr, edits))} changes in a part of the model that is checkpointed, and runs again in the "
            "backward pass without the change; choose the output or the input of a module"
        ) from error
