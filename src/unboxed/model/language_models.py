"""Language models, which score every token of the vocabulary at each token of a text: where they are asked for one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..inputs.base import Inputs
from ..inputs.tokens import Tokens
from .outputs import class_names_in_config, usable_config_class_names


def is_next_token_output(inputs: Inputs, output: Tensor) -> bool:
    """Whether an output (N, K, T) for a text of T tokens scores the K tokens of the vocabulary."""
    if not isinstance(inputs, Tokens) or output.ndim != 3:
        return False
    return output.shape[1] >= inputs.n_vocabulary_tokens > 0


def output_names_of_model(model: nn.Module, inputs: Inputs, n_outputs: int, is_map: bool) -> tuple[str, ...] | None:
    """The names of a model's outputs: of its config, or the tokens of a language model; None where none fit."""
    if isinstance(inputs, Tokens) and not is_map and n_outputs >= inputs.n_vocabulary_tokens > 0:
        return inputs.vocabulary_token_names(n_outputs)
    return usable_config_class_names(class_names_in_config(model), n_outputs, is_map)


def scores_at_answer_position(inputs: Inputs, x: Tensor, output: Tensor) -> Tensor:
    """The scores (N, K) at the token where each text x is asked for one, of a language model's output (N, K, T)."""
    if not (isinstance(inputs, Tokens) and is_next_token_output(inputs, output)):
        return output
    rows = torch.arange(len(output), device=output.device)
    return output[rows, :, inputs.answer_positions(x)]
