"""Language models, which score every token of the vocabulary at each token of a text: where they are asked for one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs.base import Inputs
from ..inputs.tokens import Tokens


def scores_next_tokens(inputs: Inputs, output: Tensor) -> bool:
    """Whether an output (N, K, T) for a text of T tokens scores the K tokens of the vocabulary."""
    if not isinstance(inputs, Tokens) or output.ndim != 3:
        return False
    return output.shape[1] >= inputs.n_tokens_known > 0


def at_answer_position(inputs: Inputs, x: Tensor, output: Tensor) -> Tensor:
    """The scores (N, K) at the token where each text x is asked for one, of an output (N, K, T)."""
    if not isinstance(inputs, Tokens):
        return output
    rows = torch.arange(len(output), device=output.device)
    return output[rows, :, inputs.answer_positions(x)]
