"""Where names don't fit, the model is asked: a copy of it loads the file by its own code, hooks and conversions."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..model.state import forking_rngs_with_lock
from ..weight_files import TensorDict
from .weight_sets import (
    WeightSet,
    dotted_prefixes,
    has_same_tensor_kind,
    missing_tensor_names,
    state_tensors,
    strip_wrapper_names,
)

LOG = logging.getLogger("unboxed")
MAX_CANDIDATE_PREFIXES = 12  # parts of a file that a model is asked to load
NO_INCOMPATIBLE_KEYS = _IncompatibleKeys([], [])


@dataclass(frozen=True)
class _LoadedStateDict:
    """A model's state dict after its own loading, the names that it did not use, and those that it missed."""

    tensors: TensorDict
    unused: frozenset[str]
    missing: tuple[str, ...]


def weight_sets_by_model_loading_code(
    model: nn.Module, flat: TensorDict, state: TensorDict
) -> tuple[list[WeightSet], tuple[str, ...]]:
    """The sets of tensors in a file that the model's own loading takes, under the model's names of today.

    `load_state_dict` on a copy, with its hooks (old weight norm, `_load_from_state_dict`); for a model of transformers
    its `from_pretrained`, which translates the names of files. Where there is none, what the closest lacks.
    """
    names = strip_wrapper_names(flat)
    sets: list[WeightSet] = []
    missing = tuple(state)
    for prefix in _candidate_prefixes(names, state)[:MAX_CANDIDATE_PREFIXES]:
        part = {name[len(prefix) :]: flat[real] for name, real in names.items() if name.startswith(prefix)}
        if not all(has_same_tensor_kind(tensor, state[name]) for name, tensor in part.items() if name in state):
            continue  # torch would copy the integers of quantized weights without their scale
        attempts = (_load_on_copy(model, part, state), _load_pretrained(model, part, state))
        loaded = min(filter(None, attempts), key=lambda a: len(a.missing), default=None)
        if loaded is None:
            continue
        missing = min(missing, loaded.missing, key=len)
        if not loaded.missing and len(loaded.unused) < len(part):
            used = frozenset(names[prefix + name] for name in part if name not in loaded.unused)
            sets.append(WeightSet(prefix.rstrip("."), loaded.tensors, used, is_own_choice=True))
    return sets, missing


def _candidate_prefixes(names: dict[str, str], state: TensorDict) -> list[str]:
    """The prefixes that may hold a model's weights: those of most names first, and of these the longest."""
    counts = Counter(prefix for name in names for prefix in dotted_prefixes(name))
    own_parts = {name.partition(".")[0] for name in state}
    outside = [p for p in counts if not own_parts & {*p.split(".")[:-1]}]
    return sorted(outside, key=lambda p: (-counts[p], -len(p)))


def _none_on_any_error(load: Callable[..., _LoadedStateDict]) -> Callable[..., _LoadedStateDict | None]:
    """The function, silent and without a trace in random number generators; None where it raises anything."""

    def run_silently_or_none(*args: Any) -> _LoadedStateDict | None:
        try:
            with warnings.catch_warnings(), forking_rngs_with_lock(0, torch.device("cpu")):
                warnings.simplefilter("ignore")
                return load(*args)
        except Exception:  # a model may refuse by any error; the names that don't fit are then reported
            LOG.debug("the model's own loading failed", exc_info=True)
            return None

    return run_silently_or_none


@_none_on_any_error
def _load_on_copy(model: nn.Module, part: TensorDict, state: TensorDict) -> _LoadedStateDict:
    clone = copy.deepcopy(model)
    try:
        report = clone.load_state_dict(dict(part)) or NO_INCOMPATIBLE_KEYS  # an override may return nothing
    except RuntimeError:  # names are missing or unexpected; wrong shapes raise again
        report = clone.load_state_dict(dict(part), strict=False)
    lost = {*report.missing_keys}
    missing = missing_tensor_names({name: tensor for name, tensor in state.items() if name not in lost}, state)
    return _LoadedStateDict(state_tensors(clone), frozenset(report.unexpected_keys), tuple(missing))


@_none_on_any_error
def _load_pretrained(model: nn.Module, part: TensorDict, state: TensorDict) -> _LoadedStateDict:
    """A model of transformers, or a module around one: that one is made again from its own config and these tensors.

    Nothing is imported or fetched. Names outside of it must be the module's own.
    """
    prefix, inner = next(
        (f"{path}." if path else "", m) for path, m in model.named_modules() if hasattr(m, "from_pretrained")
    )
    inside = {name[len(prefix) :]: tensor for name, tensor in part.items() if name.startswith(prefix)}
    outside = {name: tensor for name, tensor in part.items() if not name.startswith(prefix)}
    if not inside:  # saved without the module around it
        inside, outside = part, {}
    loaded, unused, missing = _from_pretrained(inner, inside)
    tensors = outside | {f"{prefix}{name}": tensor for name, tensor in loaded.items()}
    names_in_part = {f"{prefix}{name}" if f"{prefix}{name}" in part else name for name in unused}
    beside = names_in_part | {name for name in outside if name not in state}
    fitted = {name: tensor for name, tensor in tensors.items() if name in state}
    lost = [*(f"{prefix}{name}" for name in missing), *missing_tensor_names(fitted, state)]
    return _LoadedStateDict(fitted, frozenset(beside), tuple(dict.fromkeys(lost)))


def _from_pretrained(model: nn.Module, part: TensorDict) -> tuple[TensorDict, set[str], set[str]]:
    """What transformers makes of some tensors: a state dict, the names it did not use, and those it missed."""
    config: Any = copy.deepcopy(model.config)
    for name in ("dtype", "torch_dtype"):
        if hasattr(config, name):
            setattr(config, name, next(model.parameters()).dtype)
    with silencing_transformers():
        loaded, report = type(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=config, state_dict=dict(part), output_loading_info=True
        )
    return state_tensors(loaded), {*report["unexpected_keys"]}, {*report["missing_keys"], *report["mismatched_keys"]}


@contextmanager
def silencing_transformers() -> Iterator[None]:
    """Without the progress bars and the load reports of transformers, where it is in use."""
    library = sys.modules.get("transformers")
    if library is None:
        yield
        return
    log = library.utils.logging
    with ExitStack() as stack:
        stack.callback(log.set_verbosity, log.get_verbosity())
        log.set_verbosity_error()
        if getattr(log, "is_progress_bar_enabled", lambda: True)():
            stack.callback(log.enable_progress_bar)
            log.disable_progress_bar()
        yield
