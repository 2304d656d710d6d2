"""Weights from a file into a model: safetensors, or what `torch.save` wrote, if that is tensors and plain values."""

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

Tensors = dict[str, Tensor]
CAP = 8  # names told of each kind of mismatch
DEPTH = 4  # how deep a checkpoint may wrap its state dict
INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")  # in this order
INNER = {"module", "_orig_mod"}  # what DataParallel and torch.compile put anywhere in a name
WRAPPERS = {"model", "net", "network", *INNER}  # and what Lightning modules and such put in front
CONVERT = (
    "import torch; c = torch.load('OLD', weights_only=False); "
    "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c['state_dict'], 'NEW')"
)


def weights(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Put the weights in a file (or a state dict) into the model; names that a wrapper has prefixed are recognized.

    Raises ModelError, with the names that don't fit; the model is then as it was.
    """
    path = Path("the state dict") if isinstance(source, Mapping) else Path(source)
    loaded = source if isinstance(source, Mapping) else _read(path)
    state = {name: h for name, h in model.state_dict().items() if isinstance(h, Tensor)}
    fitted, unexpected = _fitted(_tensors(loaded, path), _bare(state, shared=True))
    if told := _mismatches(fitted, unexpected, state):
        advice = "the model is as it was. Give the model that these weights were saved from"
        raise ModelError(f"{path} doesn't fit {type(model).__name__}: {'; '.join(told)}; {advice}")
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
            warnings.simplefilter("ignore", UserWarning)  # torch talks of its own storage classes
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_unsafe(path, str(error))) from error
    except Exception as error:
        said = " ".join(str(error).split())[:200] or "the file ends too early"
        raise ModelError(f"{path} can't be read, it is truncated or no checkpoint: {said}") from error


def _unsafe(path: Path, said: str) -> str:
    names = re.findall(r"GLOBAL (\S+)", said)
    if not names:
        return f"{path} can't be read: it is damaged, or no checkpoint at all"
    recipe = CONVERT.replace("OLD", path.name).replace("NEW", f"{path.stem}-weights.pt")
    why = f"holds more than tensors ({names[0]}): unpickling it can run any code, so Unboxed never does"
    return f'{path} {why}. If you trust its maker, convert it once: python -c "{recipe}"'


def _tensors(loaded: Any, path: Path) -> Tensors:
    """The state dict in what a checkpoint holds: under one of the usual keys, or itself, or its only set of tensors."""
    if not isinstance(loaded, Mapping):
        wanted = "wanted a dict of tensors by name, as model.state_dict() gives"
        raise ModelError(f"{path} holds a {type(loaded).__name__}; {wanted}")
    for _ in range(DEPTH):
        loaded = next((loaded[key] for key in INSIDE if isinstance(loaded.get(key), Mapping)), loaded)
    nested = {str(key): dict(v) for key, v in loaded.items() if isinstance(v, Mapping) and _all_tensors(v)}
    own = {key: h for key, h in loaded.items() if isinstance(key, str) and isinstance(h, Tensor)}
    if len(nested) > 1:
        raise ModelError(f"{path} holds several sets of weights ({_some(nested)}); save the one you mean alone")
    best = max([own, *nested.values()], key=len)
    if not best:
        raise ModelError(f"{path} holds no weights; its keys are: {_some(map(str, loaded)) or 'none'}")
    return best


def _all_tensors(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(h, Tensor) for k, h in value.items())


def _bare(names: Iterable[str], shared: bool = False) -> dict[str, str]:
    """{name without what wrappers add: name}; `shared` also drops wrappers' words that all names begin with."""
    names = list(names)
    bare = {".".join(p for p in name.split(".") if p not in INNER): name for name in names}
    bare = bare if len(bare) == len(names) else {name: name for name in names}
    while shared and len(heads := {name.partition(".")[0] for name in bare}) == 1 and heads <= WRAPPERS:
        bare = {name.partition(".")[2]: real for name, real in bare.items()}
    return bare


def _fitted(found: Tensors, wanted: Mapping[str, str]) -> tuple[Tensors, list[str]]:
    """The tensors by the model's names, and the file's names that fit nothing.

    A prefix is taken off if it consists of wrappers' words, or if all names have it: what then lies beside it (a
    loss's weights, a metric's) is not the model's. Raises ModelError where two prefixes fit alike, with other values.
    """
    bare = _bare(found)
    hits = Counter(p for name in bare for p in _prefixes(name) if name[len(p) :] in wanted)
    fair = [p for p in hits if set(p.split(".")[:-1]) <= WRAPPERS or all(name.startswith(p) for name in bare)]
    prefix = max(fair, key=lambda p: (hits[p], -len(p)), default="")
    inside = _inside(bare, prefix)
    for rival in (p for p in fair if hits[p] == hits[prefix] and not p.startswith(prefix)):
        theirs = _inside(bare, rival)
        if any(not torch.equal(found[inside[k]], found[theirs[k]]) for k in {*inside} & {*theirs} & {*wanted}):
            raise ModelError(f"weights under {prefix}* and {rival}* fit alike, and differ; save those you mean alone")
    fitted = {wanted[name]: found[real] for name, real in inside.items() if name in wanted}
    return fitted, [real for name, real in inside.items() if name not in wanted]


def _inside(bare: Mapping[str, str], prefix: str) -> dict[str, str]:
    """{name behind a prefix: the file's name}, of those that have it."""
    return {name[len(prefix) :]: real for name, real in bare.items() if name.startswith(prefix)}


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return ["".join(f"{p}." for p in parts[:i]) for i in range(len(parts))]


def _mismatches(fitted: Tensors, unexpected: list[str], state: Tensors) -> list[str]:
    held = {_place(state[name]) for name in fitted}
    missing = [name for name, h in state.items() if name not in fitted and not _optional(name, h, held)]
    other = [
        f"{name} is {tuple(h.shape)} in the file, {tuple(state[name].shape)} in the model"
        for name, h in fitted.items()
        if not is_lazy(state[name]) and h.shape != state[name].shape
    ]
    kinds = (("missing in the file", missing), ("unexpected in the file", unexpected), ("of another shape", other))
    return [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]


def _optional(name: str, h: Tensor, held: set[tuple[Any, ...]]) -> bool:
    """Whether a model may keep its own: a counter that old checkpoints lack, a tied weight's second name."""
    return name.endswith("num_batches_tracked") or (_place(h) in held and h.numel() > 0)


def _place(h: Tensor) -> tuple[Any, ...]:
    return () if is_lazy(h) else (h.data_ptr(), h.shape, h.stride())


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:CAP]) + (f" and {len(names) - CAP} more" if len(names) > CAP else "")
