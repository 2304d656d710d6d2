"""Checkpoints of a training: state dicts, or files of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from ..box import Box
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.example_gradients.losses import ExampleLoss
from ..errors import InputError, ModelError
from ..settings import ValueRole
from ..validation import suggestion_text
from ..weight_files import read_weights

Checkpoint = Mapping[str, Tensor] | str | os.PathLike[str] | Box | nn.Module
Checkpoints = Annotated[
    Sequence[Checkpoint],
    ValueRole("checkpoints"),
    "Checkpoints of the training: state dicts, or paths of files that hold them.",
]
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")  # the weights, in files of a whole training
MAX_LISTED_NAMES = 3  # that an error lists


class CheckpointStates:
    """State dicts of the checkpoints of a model, or of boxes and modules; a file is read when its turn comes.

    Raises InputError where there is no checkpoint; `setting` is the name under which they were given.
    """

    def __init__(self, box: Box, checkpoints: Iterable[Checkpoint], setting: str = "checkpoints") -> None:
        is_one = isinstance(checkpoints, (str, os.PathLike, Mapping, Box, nn.Module))
        listed = [] if is_one or not isinstance(checkpoints, Iterable) else checkpoints
        listed = listed if isinstance(listed, Sequence) else list(listed)
        if not listed:
            raise InputError(f"{setting} must be a list of state dicts or of paths, at least one")
        self._wanted, self._checkpoints, self._setting = box.model.state_dict(), listed, setting

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __getitem__(self, k: int) -> Mapping[str, Tensor]:
        """The state dict of checkpoint k. Raises ModelError for one of another architecture, InputError for none."""
        checkpoint = self._checkpoints[k]
        module = checkpoint.model if isinstance(checkpoint, Box) else checkpoint
        checkpoint = module.state_dict() if isinstance(module, nn.Module) else module
        if not isinstance(checkpoint, (str, os.PathLike, Mapping)):
            got = type(checkpoint).__name__
            raise InputError(f"{self._setting} must be state dicts, or paths of files that hold them; got {got} as the "
                             f"one of index {k}")  # fmt: skip
        name = f"checkpoint {k}" if isinstance(checkpoint, Mapping) else f"checkpoint {k} ({checkpoint})"
        state = checkpoint if isinstance(checkpoint, Mapping) else _read_state_dict(Path(checkpoint))
        if problem := _architecture_difference_text(self._wanted, state):
            raise ModelError(f"{name} is one of another architecture: {problem}. Give checkpoints of this model")
        return state


class CheckpointGradients:
    """Per-example gradients at the checkpoints of a model; each is opened when its turn comes, anew in every pass."""

    def __init__(
        self, box: Box, states: CheckpointStates, layers: Sequence[str] | str | None, loss: ExampleLoss | None,
        chosen: range | None = None,
    ) -> None:  # fmt: skip
        self._box, self._states, self._layers, self._loss = box, states, layers, loss
        self._chosen = range(len(states)) if chosen is None else chosen

    def __iter__(self) -> Iterator[ExampleGradients]:
        return (ExampleGradients(self._box, self._layers, self._loss, self._states[k]) for k in self._chosen)

    def of_checkpoint_range(self, start: int, end: int) -> CheckpointGradients:
        """Those of checkpoints `start` to `end` - 1."""
        return CheckpointGradients(self._box, self._states, self._layers, self._loss, self._chosen[start:end])


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The weights in a file; nothing in it is executed. Raises ModelError."""
    content = read_weights(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(h, Tensor) for h in content.values()):
        raise ModelError(f"{path} holds no state dict; save model.state_dict(), or give the state dict itself")
    return content


def _architecture_difference_text(wanted: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """The first difference between two architectures in words; "" where there is none."""
    for name, value in wanted.items():
        if name in weights and isinstance(value, Tensor) and weights[name].shape != value.shape:
            return f"its {name} is {tuple(weights[name].shape)}, the model's is {tuple(value.shape)}"
    if missing := [name for name in wanted if name not in weights]:
        return f"it has no {', '.join(missing[:MAX_LISTED_NAMES])}{_similar_names_hint(missing[0], weights)}"
    extra = [name for name in weights if name not in wanted]
    return f"the model has no {', '.join(extra[:MAX_LISTED_NAMES])}" if extra else ""


def _similar_names_hint(name: str, weights: Mapping[str, Tensor]) -> str:
    return f"; {suggestion_text(name, weights, MAX_LISTED_NAMES)}" if weights else ""
