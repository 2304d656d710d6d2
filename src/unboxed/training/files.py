"""Weights to a file, with a card beside it that says how they came about."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..atomic_write import encode_utf8, write_bytes
from ..errors import InputError, WriteError


def save_weights(model: nn.Module, path: str | Path, card: Mapping[str, Any]) -> Path:
    """Write a model's weights as safetensors, and a card beside them as JSON, each file whole or not at all.

    Args:
        model: The module.
        path: File that ends in .safetensors; the card has the same name with .json.
        card: What is worth knowing of the weights, of values that JSON holds.

    Returns:
        The path of the weights.

    Raises:
        WriteError: where the files cannot be written.
        InputError: for a card that JSON cannot hold.

    Example:
        >>> import unboxed as ub
        >>> model, _ = ub.zoo.load("digits-cnn")
        >>> ub.training.save_weights(model, "model.safetensors", {"data": "digits"})  # doctest: +SKIP
    """
    path, text = check_weights_writable(path), _card_json(card)
    tensors = {
        name: _contiguous_cpu_copy(tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)
    }
    write_bytes(path, safetensors.torch.save(tensors, {"format": "pt"}))
    write_bytes(path.with_suffix(".json"), encode_utf8(text))
    return path


def check_weights_writable(path: str | Path) -> Path:
    """The path, if weights can be written there: to be asked before a long training. Raises WriteError."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WriteError(f"weights are written as .safetensors; got {path.name!r}. Name it {path.stem}.safetensors")
    if path.is_dir():
        raise WriteError(f"can't write {path}: it is a folder. Give a file name")
    write_bytes(path.with_name(f".{path.stem[:80]}.{os.getpid()}.try"), b"").unlink()
    return path


def versions() -> dict[str, str]:
    """The versions that a result was made with.

    Returns:
        {"unboxed": ..., "torch": ..., "python": ...}.

    Example:
        >>> import unboxed as ub
        >>> sorted(ub.training.versions())
        ['python', 'torch', 'unboxed']
    """
    return {"unboxed": version("unboxed"), "torch": torch.__version__, "python": platform.python_version()}


def _contiguous_cpu_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # tied weights must not share memory


def _card_json(card: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(card), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"the card can't be written as JSON: {error}") from error
