"""Embeddings put in the place of what a model's embedding layer returns for a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.tokens import Tokens
from .state import NULL_CONTEXT


def feeding_text_embeddings(inputs: Inputs, x: Tensor) -> AbstractContextManager[None]:
    """While open, a model of texts embeds them as packed x (N, T, D + 3) has it; nothing for other inputs."""
    if not isinstance(inputs, Tokens):
        return NULL_CONTEXT
    return feeding_embeddings(inputs.layer, inputs.ids(x), inputs.fed_embeddings(x), str(inputs.embedding))


def refuse_training_on_texts(inputs: Inputs) -> None:
    """Raise InputError for a model of texts: it is fed embeddings as values, from which its own learns nothing."""
    if isinstance(inputs, Tokens):
        raise InputError(
            "training takes no texts, and this is a model of texts: it would leave the embedding as it is. Train it by "
            "a loop of your own; ub.influence.Training(step, start, batches, query_loss) runs that again"
        )


@contextmanager
def feeding_embeddings(layer: nn.Module, ids: Tensor, embeddings: Tensor, name: str) -> Iterator[None]:
    """While open, the layer returns the embeddings (N, T, D or more) where it is called with the ids (N, T).

    Raises InputError where it was not called with them once, as of an encoder and decoder that share it, and where the
    model has no position for a token.
    """
    n_calls, is_stopped = 0, True

    def return_embeddings(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        nonlocal n_calls
        if not torch.equal(args[0], ids):  # types of tokens, of GPT-2, or what a decoder starts with
            return None
        n_calls += 1
        return embeddings[..., : output.shape[-1]].to(output.dtype)

    handle = layer.register_forward_hook(return_embeddings, prepend=True)
    try:
        yield
        is_stopped = False
    except IndexError as error:
        raise InputError(
            f"the model fails on texts of {ids.shape[1]} tokens ({error}): where it has positions for fewer, say how "
            "many by Tokens(..., max_length=), and shorten texts or cut them by truncate=True"
        ) from error
    finally:
        handle.remove()
    if not is_stopped and n_calls != 1:
        raise InputError(f"{name!r} embeds the text {n_calls} times; wanted a layer that does once")
