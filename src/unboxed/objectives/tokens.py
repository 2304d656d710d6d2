"""Objectives of language models: the log-probabilities of tokens at given places of a text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .algebra import Constant, Objective, layer_objective
from .calls import remember_call


@remember_call
def tokens_logprob(ids: Tensor | Constant, positions: Tensor | Constant) -> Objective:
    """The sum of the log-probabilities of tokens, each predicted at one position of its text.

    `ub.language.continuation` makes ids and positions of texts.

    Args:
        ids: Tokens (N, C), by their numbers.
        positions: Positions (N, C) of the text whose output predicts them, one before their own; -1 for none: texts may
            have fewer than C.

    Returns:
        An `Objective` on the output (N, V, T) of a language model.

    Raises:
        InputError: for ids or positions of other shapes, and when scored, for a position that the text does not have.

    Example:
        >>> import torch
        >>> from unboxed.objectives import tokens_logprob
        >>> score = tokens_logprob(torch.tensor([[1, 0]]), torch.tensor([[0, -1]]))
        >>> score({"output": torch.zeros(1, 2, 3)})
        tensor([-0.6931])
    """
    wanted, places = Constant.wrap(ids), Constant.wrap(positions)
    shapes = tuple(wanted.value.shape), tuple(places.value.shape)
    if shapes[0] != shapes[1] or wanted.value.ndim != 2 or wanted.value.is_floating_point():
        raise InputError(f"ids and positions must be whole numbers, (N, C) each; got {shapes[0]} and {shapes[1]}")

    def score(output: Tensor) -> Tensor:  # (N, V, T)
        if output.ndim != 3:
            raise InputError(f"wanted a language model's output (N, V, T); got {tuple(output.shape)}")
        at, tokens = places.to_like(output), wanted.to_like(output)
        if bool((at >= output.shape[2]).any()):
            raise InputError(f"a position is not below {output.shape[2]}, the number of tokens")
        rows = torch.arange(len(output), device=output.device)[:, None]
        logprobs = output[rows, :, at.clamp_min(0)].log_softmax(-1)  # (N, C, V)
        of_tokens = logprobs.gather(2, tokens.clamp_min(0)[..., None])[..., 0]
        return torch.where(at < 0, 0, of_tokens).sum(1)

    name = "log-probability of the continuation" if shapes[0][1] != 1 else "log-probability of a token"
    return layer_objective("output", score, name, lambda i: tokens_logprob(wanted[i], places[i]), len(wanted))
