"""What a model of texts and its tokenizer say of themselves: the embedding layer, how many tokens, which arguments."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

ID_ARGUMENT_NAMES = ("input_ids", "ids", "tokens")  # of the model's arguments, and of a tokenizer's dict
MASK_ARGUMENT_NAMES = ("attention_mask", "mask", "padding_mask")
TOKEN_TYPE_ARGUMENT_NAMES = ("token_type_ids",)
MIN_UNLIMITED_LENGTH_TOKENS = 10**6  # what tokenizers without a limit say is larger


def find_embedding_layer(model: nn.Module, path: str | None) -> tuple[str, nn.Module]:
    """The address and the layer that embeds the ids. Raises InputError."""
    modules = dict(model.named_modules())
    if path is not None:
        if path not in modules:
            raise InputError(f"there is no module {path!r} in this model")
        _check_embeds_ids(path, modules[path])
        return path, modules[path]
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # a model without it, or whose base class alone has it
        found = None
    embeddings = {name: m for name, m in modules.items() if isinstance(m, nn.Embedding)}
    if found is None and len(embeddings) == 1:
        found = next(iter(embeddings.values()))
    if found is None:
        listed = f"it has {', '.join(map(repr, embeddings))}" if embeddings else "it has no nn.Embedding"
        raise InputError(
            f"the embedding layer cannot be determined: {listed}; name it by Tokens(..., embedding='path')"
        )
    return next(name for name, m in modules.items() if m is found), found


def _check_embeds_ids(path: str, layer: nn.Module) -> None:
    """Raise InputError unless the layer gives a vector (D,) of each id."""
    device = next((p.device for p in layer.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            shape = tuple(layer.forward(torch.zeros(1, 1, dtype=torch.long, device=device)).shape)
    except Exception as error:  # whatever a layer of another kind makes of ids
        raise InputError(f"{path!r} is a {type(layer).__name__}, which embeds no ids: {error}") from error
    if len(shape) != 3 or shape[:2] != (1, 1):
        raise InputError(f"{path!r} gives {shape} of one id (1, 1); wanted an embedding layer, which gives (1, 1, D)")


def n_embeddings(layer: nn.Module) -> int | None:
    weight = getattr(layer, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def vocabulary_size(tokenizer: Any) -> int | None:
    try:
        return len(tokenizer)
    except TypeError:
        return None


def n_positions(model: nn.Module, tokenizer: Any) -> int | None:
    """How many tokens the model takes, as its config or the tokenizer says; None where neither does."""
    config = getattr(model, "config", None)
    n = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    padding = getattr(config, "pad_token_id", None)
    has_offset = "roberta" in str(getattr(config, "model_type", "")) and isinstance(padding, int)
    n_before = int(padding) + 1 if has_offset and padding is not None else 0  # positions that padding takes
    limits = [int(n) - n_before] if isinstance(n, int) else []
    stated = getattr(tokenizer, "model_max_length", None)
    limits += [int(stated)] if isinstance(stated, int) and stated < MIN_UNLIMITED_LENGTH_TOKENS else []
    return min(limits, default=None)


def pad_id_of(tokenizer: Any, given: int | None) -> int:
    found = getattr(tokenizer, "pad_token_id", None) if given is None else given
    return 0 if found is None else int(found)


def id_mask_and_type_argument_names(model: nn.Module) -> tuple[str | None, str | None, str | None]:
    """The names of the model's arguments for ids, mask and types; of a model with other names, ids come first."""
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        names = []
    ids, mask, types = (
        next((n for n in known if n in names), None)
        for known in (ID_ARGUMENT_NAMES, MASK_ARGUMENT_NAMES, TOKEN_TYPE_ARGUMENT_NAMES)
    )
    return (ids or names[0] if mask or ids else None), mask, types


def takes_token_ids(model: nn.Module) -> bool:
    """Whether an argument of the model is called as that of ids is."""
    return id_mask_and_type_argument_names(model)[0] in ID_ARGUMENT_NAMES
