"""Random generators that a model keeps for itself, as attributes of its modules: a run leaves them where they were."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from torch import nn

PrivateRng: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
PRIVATE_RNG_TYPES = get_args(PrivateRng)  # asked of every attribute: a union takes longer
TYPES_WITHOUT_RNGS = frozenset({bool, int, float, str, type(None)})  # of most attributes
NAMES_OF_MODULE_ITSELF = frozenset(vars(nn.Module()))  # what torch keeps of each module: parameters, hooks, ...


def private_rngs(modules: Iterable[nn.Module]) -> tuple[PrivateRng, ...]:
    """The generators among the attributes of modules, alone or in lists, tuples and dicts; each once."""
    values = (
        value
        for module in modules
        for name, value in vars(module).items()
        if type(value) not in TYPES_WITHOUT_RNGS and name not in NAMES_OF_MODULE_ITSELF
    )
    return tuple({id(rng): rng for value in values for rng in _rngs_in(value)}.values())


def _rngs_in(value: Any) -> Iterator[PrivateRng]:
    if isinstance(value, PRIVATE_RNG_TYPES):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, Mapping) else value:
            if isinstance(part, PRIVATE_RNG_TYPES):
                yield part


def private_rng_states(rngs: Iterable[PrivateRng]) -> list[object]:
    """Their states, to compare."""
    return [_comparable(_get_state(rng)) for rng in rngs]


def _comparable(state: Any) -> Any:
    """A state with its arrays as bytes."""
    if isinstance(state, (torch.Tensor, np.ndarray)):
        return np.asarray(state).tobytes()
    if isinstance(state, Mapping):
        return [(key, _comparable(value)) for key, value in state.items()]
    return [_comparable(part) for part in state] if isinstance(state, tuple) else state


@contextmanager
def preserving_private_rngs(rngs: Sequence[PrivateRng]) -> Iterator[None]:
    """Put the states back on exit."""
    states = [_get_state(rng) for rng in rngs]
    try:
        yield
    finally:
        for rng, saved in zip(rngs, states, strict=True):
            _set_state(rng, saved)


def _get_state(rng: PrivateRng) -> Any:
    if isinstance(rng, np.random.Generator):
        return rng.bit_generator.state
    return rng.getstate() if isinstance(rng, random.Random) else rng.get_state()


def _set_state(rng: PrivateRng, saved: Any) -> None:
    if isinstance(rng, np.random.Generator):
        rng.bit_generator.state = saved
    elif isinstance(rng, random.Random):
        rng.setstate(saved)
    else:
        rng.set_state(saved)
