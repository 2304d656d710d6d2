"""The checkpoint of an evaluation: written after each task, with a file for what an attack saves within its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from ..box import Box
from ..checkpointing import CheckpointFile, tensor_digest
from ..engine.stable_repr import box_checkpoint_settings, cast_outputs_for_comparison, checkpoint_repr


class EvaluationCheckpoint:
    """How many tasks are finished, in memory and in the file, if there is one."""

    def __init__(self, path: str | os.PathLike[str] | None, task: str, settings: Callable[[], dict[str, Any]]) -> None:
        self.file = None if path is None else CheckpointFile(Path(path), task, settings())
        self.n_finished = 0

    def read(self) -> dict[str, Any] | None:
        """The state that was written last. Raises ModelError for a file of other settings, data or weights."""
        state = None if self.file is None else self.file.read()
        self.n_finished = 0 if state is None else state["n_finished"]
        return state

    def attack_kwargs(self, attack: Callable[..., Any]) -> dict[str, Any]:
        """`checkpoint` of the present task, for an attack that takes one and was not given one."""
        path, bound_kwargs = self._attack_path(), attack.keywords if isinstance(attack, partial) else {}
        takes_it = "checkpoint" in signature(attack).parameters and "checkpoint" not in bound_kwargs
        return {"checkpoint": path} if path is not None and takes_it else {}

    def finish_task(self, state: Mapping[str, Any]) -> None:
        """Write the state after a task, and remove the file of its attack."""
        attack_path = self._attack_path()
        self.n_finished += 1
        if self.file is not None and attack_path is not None:
            self.file.write({**state, "n_finished": self.n_finished})
            attack_path.unlink(missing_ok=True)

    def _attack_path(self) -> Path | None:
        return None if self.file is None else self.file.path.with_name(f"{self.file.path.name}.{self.n_finished}")


def evaluation_settings(
    box: Box, x: Tensor, y: Tensor, answers: Tensor, eps: tuple[float, ...], norm: str, seed: int,
    attacks: Mapping[str, Callable[..., Any]],
) -> dict[str, Any]:  # fmt: skip
    """What a resumed evaluation must share with the one that was stopped; `answers` are the model's, (N,)."""
    return box_checkpoint_settings(box) | {
        "examples": tensor_digest(x),
        "labels": tensor_digest(y),
        "eps": list(eps),
        "norm": norm,
        "seed": seed,
        "attacks": {name: attack_checkpoint_repr(name, attack) for name, attack in attacks.items()},
        "answers": cast_outputs_for_comparison(box, answers),
    }


def attack_checkpoint_repr(name: str, attack: Callable[..., Any] | None) -> str:
    """An attack with its code and settings, to be compared. Raises InputError."""
    advice = "give it as functools.partial of an attack with plain values, or leave the checkpoint out"
    return checkpoint_repr(f"the attack {name!r}", attack, advice)
