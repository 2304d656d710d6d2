"""Loading weights from a file into a model: safetensors, or `torch.save` files of tensors and plain values."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import ModelError

TensorDict = dict[str, Tensor]
MAX_NAMES_LISTED = 8  # names of each kind of mismatch in an error
MAX_STATE_DICT_NESTING = 4  # how deep a checkpoint may wrap its state dict
STATE_DICT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)  # in this order
INNER_WRAPPER_NAMES = {"module", "_orig_mod"}  # from DataParallel and torch.compile, anywhere in a name
WRAPPER_NAMES = {"model", "net", "network", *INNER_WRAPPER_NAMES}  # and prefixes, as of Lightning modules
CONVERT_COMMAND = (
    "import torch; c = torch.load('OLD', weights_only=False); "
    "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c['state_dict'], 'NEW')"
)


def weights(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load weights from a file or a state dict into a model, in place.

    Names that a wrapper has prefixed (DataParallel, torch.compile, Lightning) are recognized. Pickled objects are
    refused: nothing in a file is ever executed.

    Args:
        model: The module that the weights belong to.
        source: A safetensors file, a checkpoint of `torch.save`, or a state dict.

    Raises:
        ModelError: with the names that do not fit; the model is then as it was.

    Example:
        >>> from unboxed import loading, zoo
        >>> trained, _ = zoo.load("digits-cnn")
        >>> fresh, _ = zoo.load("digits-cnn", weights=None)
        >>> loading.weights(fresh, trained.state_dict())
    """
    path = Path("the state dict") if isinstance(source, Mapping) else Path(source)
    loaded = source if isinstance(source, Mapping) else _read(path)
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    fitted, unexpected = _match_names(_find_state_dict(loaded, path), _without_wrapper_names(state, strip_common=True))
    if mismatches := _mismatches(fitted, unexpected, state):
        advice = "the model is as it was. Give the model that these weights were saved from"
        raise ModelError(f"{path} doesn't fit {type(model).__name__}: {'; '.join(mismatches)}; {advice}")
    model.load_state_dict(model.state_dict() | fitted)


def _read(path: Path) -> Any:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; weights are one file (.safetensors, .pt, .pth, .ckpt)")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch names its storage classes
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_unsafe_text(path, str(error))) from error
    except Exception as error:
        message = " ".join(str(error).split())[:200] or "the file ends too early"
        raise ModelError(f"{path} can't be read, it is truncated or no checkpoint: {message}") from error


def _unsafe_text(path: Path, error_text: str) -> str:
    names = re.findall(r"GLOBAL (\S+)", error_text)
    if not names:
        return f"{path} can't be read: it is damaged, or no checkpoint at all"
    command = CONVERT_COMMAND.replace("OLD", path.name).replace("NEW", f"{path.stem}-weights.pt")
    reason = f"holds more than tensors ({names[0]}): unpickling it can run any code, so Unboxed never does"
    return f'{path} {reason}. If you trust its maker, convert it once: python -c "{command}"'


def _find_state_dict(loaded: Any, path: Path) -> TensorDict:
    """The state dict in a checkpoint: under a usual key, the checkpoint itself, or its only set of tensors."""
    if not isinstance(loaded, Mapping):
        expected = "wanted a dict of tensors by name, as model.state_dict() gives"
        raise ModelError(f"{path} holds a {type(loaded).__name__}; {expected}")
    for _ in range(MAX_STATE_DICT_NESTING):
        loaded = next((loaded[key] for key in STATE_DICT_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    nested = {
        str(key): dict(value) for key, value in loaded.items() if isinstance(value, Mapping) and _is_tensor_dict(value)
    }
    direct = {key: tensor for key, tensor in loaded.items() if isinstance(key, str) and isinstance(tensor, Tensor)}
    if len(nested) > 1:
        raise ModelError(f"{path} holds several sets of weights ({_format_names(nested)}); save the one you mean alone")
    largest = max([direct, *nested.values()], key=len)
    if not largest:
        raise ModelError(f"{path} holds no weights; its keys are: {_format_names(map(str, loaded)) or 'none'}")
    return largest


def _is_tensor_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())


def _without_wrapper_names(names: Iterable[str], strip_common: bool = False) -> dict[str, str]:
    """{name without wrappers' prefixes: name}; `shared` also drops wrapper names that all names begin with."""
    names = list(names)
    stripped = {".".join(part for part in name.split(".") if part not in INNER_WRAPPER_NAMES): name for name in names}
    stripped = stripped if len(stripped) == len(names) else {name: name for name in names}
    while (
        strip_common
        and len(first_parts := {name.partition(".")[0] for name in stripped}) == 1
        and first_parts <= WRAPPER_NAMES
    ):
        stripped = {name.partition(".")[2]: full_name for name, full_name in stripped.items()}
    return stripped


def _match_names(loaded: TensorDict, model_names: Mapping[str, str]) -> tuple[TensorDict, list[str]]:
    """The tensors by the model's names, and the file's names that match nothing.

    A prefix is removed if it consists of wrapper names, or if all names have it: names without it (a loss's weights, a
    metric's) are not the model's. Raises ModelError where two prefixes match equally well, with different values.
    """
    stripped = _without_wrapper_names(loaded)
    match_counts = Counter(
        candidate for name in stripped for candidate in _prefixes(name) if name[len(candidate) :] in model_names
    )
    allowed_prefixes = [
        p
        for p in match_counts
        if set(p.split(".")[:-1]) <= WRAPPER_NAMES or all(name.startswith(p) for name in stripped)
    ]
    prefix = max(allowed_prefixes, key=lambda p: (match_counts[p], -len(p)), default="")
    matched = _strip_prefix(stripped, prefix)
    for other_prefix in (
        p for p in allowed_prefixes if match_counts[p] == match_counts[prefix] and not p.startswith(prefix)
    ):
        other_matched = _strip_prefix(stripped, other_prefix)
        if any(
            not torch.equal(loaded[matched[key]], loaded[other_matched[key]])
            for key in {*matched} & {*other_matched} & {*model_names}
        ):
            raise ModelError(
                f"weights under {prefix}* and {other_prefix}* fit alike, and differ; save those you mean alone"
            )
    fitted = {model_names[name]: loaded[full_name] for name, full_name in matched.items() if name in model_names}
    return fitted, [real for name, real in matched.items() if name not in model_names]


def _strip_prefix(stripped: Mapping[str, str], prefix: str) -> dict[str, str]:
    """{name without a prefix: the file's name}, of those that have it."""
    return {name[len(prefix) :]: full_name for name, full_name in stripped.items() if name.startswith(prefix)}


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:n_parts]) for n_parts in range(len(parts))]


def _mismatches(fitted: TensorDict, unexpected: list[str], state: TensorDict) -> list[str]:
    loaded_storage = {_storage_key(state[name]) for name in fitted}
    missing = [
        name for name, tensor in state.items() if name not in fitted and not _is_optional(name, tensor, loaded_storage)
    ]
    wrong_shapes = [
        f"{name} is {tuple(h.shape)} in the file, {tuple(state[name].shape)} in the model"
        for name, h in fitted.items()
        if not is_lazy(state[name]) and h.shape != state[name].shape
    ]
    groups = (
        ("missing in the file", missing),
        ("unexpected in the file", unexpected),
        ("of another shape", wrong_shapes),
    )
    return [f"{len(names)} {problem}: {_format_names(names)}" for problem, names in groups if names]


def _is_optional(name: str, tensor: Tensor, loaded_storage: set[tuple[Any, ...]]) -> bool:
    """Whether a name may be missing: a counter that old checkpoints lack, a tied weight's second name."""
    return name.endswith("num_batches_tracked") or (_storage_key(tensor) in loaded_storage and tensor.numel() > 0)


def _storage_key(tensor: Tensor) -> tuple[Any, ...]:
    return () if is_lazy(tensor) else (tensor.data_ptr(), tensor.shape, tensor.stride())


def _format_names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_NAMES_LISTED]) + (
        f" and {len(names) - MAX_NAMES_LISTED} more" if len(names) > MAX_NAMES_LISTED else ""
    )
