"""Texts for a model that takes no mask: padding must not change its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.text_models import MASK_ARGUMENT_NAMES
from ..inputs.tokens import Tokens


class PaddingCheck:
    """Refuses padded texts where a model without a mask answers them otherwise than each alone.

    It is asked once for each shortest and longest text, until a weight is written.
    """

    def __init__(self, model: nn.Module, inputs: Tokens) -> None:
        self.model, self.inputs = model, inputs
        self.harmless: set[tuple[int, ...]] = set()

    def __call__(self, x: Any, packed: Tensor, logits_of: Callable[[Tensor], Tensor]) -> None:
        """Raise InputError where padding changes answers, asked of the text with most padding.

        `packed` (N, T, D + 3) are the texts x; where x was packed before, nothing is asked again.
        """
        is_packed_before = isinstance(x, Tensor) and x.is_floating_point()
        if is_packed_before or self.inputs.takes_mask:
            return
        n_tokens = int(self.inputs.mask(packed).sum(1).min())
        case = (n_tokens, packed.shape[1], *(0 if p.is_inference() else p._version for p in self.model.parameters()))
        if n_tokens < packed.shape[1] and case not in self.harmless:
            _check_padding_changes_nothing(self.inputs, packed, n_tokens, logits_of)
            self.harmless.add(case)


def padding_check_of(model: nn.Module, inputs: Inputs) -> PaddingCheck | None:
    """The check of a model of texts; None for other inputs."""
    return PaddingCheck(model, inputs) if isinstance(inputs, Tokens) else None


def _check_padding_changes_nothing(
    inputs: Tokens, packed: Tensor, n_tokens: int, logits_of: Callable[[Tensor], Tensor]
) -> None:
    if _is_changed_by_padding(inputs, packed, logits_of):
        raise InputError(
            f"these texts have {n_tokens} to {packed.shape[1]} tokens, and padding changes the model's "
            f"answers: its forward has no argument {' or '.join(MASK_ARGUMENT_NAMES)}. Give it one, by which it leaves "
            "padding out, or give texts of one length at a time"
        )


def _is_changed_by_padding(inputs: Tokens, x: Tensor, logits_of: Callable[[Tensor], Tensor]) -> bool:
    """Whether the shortest of packed texts x has another answer alone, by more than rounding."""
    row = int(inputs.mask(x).sum(1).argmin())
    mask = inputs.mask(x)[row]  # (T,)
    padded = logits_of(x[row : row + 1])
    try:
        alone = logits_of(x[row : row + 1, mask])
    except RuntimeError:  # the model takes texts of one length alone: padding is a part of them
        return False
    if padded.ndim == 3 and padded.shape[2] == len(mask):  # (1, K, T), of each token
        padded = padded[..., mask]
    scale = alone.abs().amax() * torch.finfo(alone.dtype).eps ** 0.5
    return padded.shape != alone.shape or bool(((padded - alone).abs() > scale).any())
