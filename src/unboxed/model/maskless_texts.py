"""Texts for a model that takes no mask: padding must not change its answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.text_models import MASK_ARGUMENT_NAMES
from ..inputs.tokens import N_TOKEN_META_COLUMNS, Tokens
from .batching import is_out_of_memory_error
from .hooks import Acts

LogitsFn = Callable[[Tensor], Tensor]
ForwardFn = Callable[[Tensor, Collection[str]], Acts]


class PaddingCheck:
    """Finds out whether padding changes the answers of a model that takes no mask.

    Every text that is padded is asked, until one has another answer alone: the model `is_sensitive` from then on. Other
    inputs have no padding, and a stochastic model has other answers to the same text by chance.
    """

    def __init__(
        self, inputs: Inputs, stochastic: bool, batch_dependent: bool, output_map_shape: tuple[int, ...]
    ) -> None:
        self.inputs = inputs if isinstance(inputs, Tokens) and not (inputs.takes_mask or stochastic) else None
        self.batch_dependent = batch_dependent
        self.can_group = not (batch_dependent or output_map_shape)
        self.is_sensitive = self._was_asked = False

    def update(self, x: Any, packed: Tensor, logits_of: LogitsFn) -> None:
        """Compare the answers to texts x, packed (N, T, D + 3), with those to each alone.

        What came packed was asked before: methods change it. Only of another model it was not, as of a copy.
        """
        is_packed_before = isinstance(x, Tensor) and x.is_floating_point()
        if self.inputs is None or (is_packed_before and self._was_asked) or (mask := self.inputs.mask(packed)).all():
            return
        self._was_asked = True
        for rows in _rows_by_mask(mask):
            for part in torch.split(rows, 1 if self.batch_dependent else len(rows)):
                if self.is_sensitive or mask[part[0]].all():
                    break
                self.is_sensitive = _is_changed_by_padding(packed[part], mask[part[0]], logits_of)

    def forward_by_length(self, x: Tensor, addresses: Collection[str], forward: ForwardFn) -> Acts | None:
        """The logits of packed texts x of a sensitive model, of equal masks at a time; None where padding is harmless.

        Raises InputError where other activations are wanted, whose rows would differ in length.
        """
        if self.inputs is None or not self.is_sensitive:
            return None
        wanted, mask = {*addresses} - {"input"}, self.inputs.mask(x)
        if not wanted or mask.all():
            return None
        if wanted != {"logits"} or not self.can_group:
            raise InputError(
                f"these texts have {int(mask.sum(1).min())} to {x.shape[1]} tokens, and padding changes the "
                f"model's answers: its forward has no argument {' or '.join(MASK_ARGUMENT_NAMES)}. Give it one, by "
                "which it leaves padding out, or give texts of one length at a time"
            )
        groups = list(_rows_by_mask(mask))
        logits = torch.cat([_run_unpadded(x[rows][:, mask[rows[0]]], forward) for rows in groups])
        return Acts({"input": x, "logits": logits[torch.cat(groups).argsort()]})


def _rows_by_mask(mask: Tensor) -> Iterator[Tensor]:
    """The rows of each distinct mask (N, T)."""
    groups = torch.unique(mask, dim=0, return_inverse=True)[1]
    for k in range(int(groups.max()) + 1):
        yield (groups == k).nonzero()[:, 0]


def _run_unpadded(x: Tensor, forward: ForwardFn) -> Tensor:
    """The logits of texts of one length. Raises InputError where the model fails on so few tokens."""
    try:
        return forward(x, {"logits"})["logits"]
    except RuntimeError as error:
        if is_out_of_memory_error(error):
            raise
        raise InputError(
            f"the model fails on texts of {x.shape[1]} tokens alone ({error}), and padding changes its answers: leave "
            "them out"
        ) from error


def _is_changed_by_padding(x: Tensor, mask: Tensor, logits_of: LogitsFn) -> bool:
    """Whether packed texts x of one mask (T,) have other answers alone, by more than rounding.

    Methods change embeddings, so the first text is asked with its embeddings negated, too: a maximum over tokens
    leaves padding out by chance.
    """
    negated = x[:1].clone()
    negated[:, mask, :-N_TOKEN_META_COLUMNS] *= -1
    return any(_differs_unpadded(part, mask, logits_of) for part in (x, negated))


def _differs_unpadded(x: Tensor, mask: Tensor, logits_of: LogitsFn) -> bool:
    padded = logits_of(x)
    try:
        alone = logits_of(x[:, mask])
    except RuntimeError:  # the model takes texts of one length alone: padding is a part of them
        return False
    if padded.ndim == 3 and padded.shape[2] == len(mask):  # (N, K, T), of each token
        padded = padded[..., mask]
    scale = alone.abs().amax() * torch.finfo(alone.dtype).eps ** 0.5
    return padded.shape != alone.shape or bool(((padded - alone).abs() > scale).any())
