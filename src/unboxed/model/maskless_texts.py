"""Texts for a model that takes no mask: padding must not change its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.text_models import MASK_ARGUMENT_NAMES
from ..inputs.tokens import Tokens


def check_padding_changes_nothing(
    inputs: Inputs, x: Any, packed: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> None:
    """Raise InputError where padded texts x would be answered otherwise than each alone, for want of a mask.

    Asked of the text with most padding. `packed` (N, T, D + 3) are the texts; where x was packed before, nothing is
    asked again.
    """
    is_packed_before = isinstance(x, Tensor) and x.is_floating_point()
    if is_packed_before or not isinstance(inputs, Tokens) or inputs.takes_mask:
        return
    n_tokens = inputs.mask(packed).sum(1)
    if int(n_tokens.min()) < packed.shape[1] and _is_changed_by_padding(inputs, packed, logits_of):
        raise InputError(
            f"these texts have {int(n_tokens.min())} to {packed.shape[1]} tokens, and padding changes the model's "
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
