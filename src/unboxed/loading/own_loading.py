"""Where names don't fit, the model is asked: a copy of it loads the file by its own code, hooks and conversions."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..model.state import seeded_rngs
from .files import TensorDict
from .weight_sets import WeightSet, missing_names, prefixes, state_tensors, without_wrapper_names

LOG = logging.getLogger("unboxed")
MAX_ATTEMPTS = 12  # parts of a file that a model is asked to load
NOTHING_LEFT = _IncompatibleKeys([], [])
Converted = tuple[TensorDict, set[str]]  # the model's state dict after loading, and the names that were not used


def converted_sets(model: nn.Module, flat: TensorDict, state: TensorDict) -> list[WeightSet]:
    """The sets of tensors in a file that the model's own loading takes, under the model's names of today.

    `load_state_dict` on a copy, with its hooks (old weight norm, `_load_from_state_dict`); for a model of transformers
    its `from_pretrained`, which translates the names of files.
    """
    names = without_wrapper_names(flat)
    sets: list[WeightSet] = []
    for prefix in _parts(names, state)[:MAX_ATTEMPTS]:
        part = {name[len(prefix) :]: flat[real] for name, real in names.items() if name.startswith(prefix)}
        if (converted := _load_on_copy(model, part, state) or _load_pretrained(model, part)) is not None:
            tensors, unused = converted
            used = frozenset(names[prefix + name] for name in part if name not in unused)
            sets.append(WeightSet(prefix.rstrip("."), tensors, used, is_own_choice=True))
    return sets


def _parts(names: dict[str, str], state: TensorDict) -> list[str]:
    """The prefixes that may hold a model's weights: those of most names first, and of these the longest."""
    counts = Counter(prefix for name in names for prefix in prefixes(name))
    own_parts = {name.partition(".")[0] for name in state}
    outside = [p for p in counts if not own_parts & {*p.split(".")[:-1]}]
    return sorted(outside, key=lambda p: (-counts[p], -len(p)))


def _attempt(load: Callable[..., Converted | None]) -> Callable[..., Converted | None]:
    """The function, silent and without a trace in random number generators; None where it raises anything."""

    def attempt(*args: Any) -> Converted | None:
        try:
            with warnings.catch_warnings(), seeded_rngs(0, torch.device("cpu")):
                warnings.simplefilter("ignore")
                return load(*args)
        except Exception:  # a model may refuse by any error; the names that don't fit are then reported
            LOG.debug("the model's own loading failed", exc_info=True)
            return None

    return attempt


@_attempt
def _load_on_copy(model: nn.Module, part: TensorDict, state: TensorDict) -> Converted | None:
    clone = copy.deepcopy(model)
    try:
        report = clone.load_state_dict(dict(part)) or NOTHING_LEFT  # an override may return nothing
    except RuntimeError:  # names are missing or unexpected; wrong shapes raise again
        report = clone.load_state_dict(dict(part), strict=False)
    lost, unused = {*report.missing_keys}, {*report.unexpected_keys}
    is_complete = not missing_names({name: h for name, h in state.items() if name not in lost}, state)
    return (state_tensors(clone), unused) if is_complete and len(unused) < len(part) else None


@_attempt
def _load_pretrained(model: nn.Module, part: TensorDict) -> Converted | None:
    """A model of transformers, made again from its own config and these tensors; nothing is imported or fetched."""
    config = copy.deepcopy(model.config)
    for name in ("dtype", "torch_dtype"):
        if hasattr(config, name):
            setattr(config, name, next(model.parameters()).dtype)
    with silent_transformers():
        loaded, report = type(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=config, state_dict=dict(part), output_loading_info=True
        )
    is_complete = not (report["missing_keys"] or report["mismatched_keys"] or report.get("error_msgs"))
    return (state_tensors(loaded), {*report["unexpected_keys"]}) if is_complete else None


@contextmanager
def silent_transformers() -> Iterator[None]:
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
