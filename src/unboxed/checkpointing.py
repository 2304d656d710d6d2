"""Checkpoints of long work: after a crash or kill it resumes, with the same result as without."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .atomic_write import write_bytes
from .errors import ModelError

RESTART_HINT = "Give another file, or remove this one to start again"
CHANGED_MODEL_MESSAGE = (
    "the model's {} have changed, although its weights have not: it computes something else than before"
)


class Digest(str):
    """A digest of tensors, compared in place of tensors too large for a checkpoint."""


def tensor_digest(*values: Tensor) -> Digest:
    """Equal only for equal tensors in the same order: dtype, shape and every bit."""
    sha256 = hashlib.sha256()
    for value in values:
        flat = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)  # expanded: stride 0
        sha256.update(str((value.dtype, tuple(value.shape))).encode())
        sha256.update(flat.view(torch.uint8).numpy().data)
    return Digest(sha256.hexdigest())


def weights_digest(model: nn.Module) -> Digest:
    """The digest of all parameters and buffers in a state dict."""
    return tensor_digest(*(h for h in model.state_dict().values() if isinstance(h, Tensor)))


def cast_for_comparison(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Outputs of a model that computes in `dtype`, to be compared between runs."""
    return values.detach().cpu().to(dtype if dtype.is_floating_point else torch.float32)


def is_equal_up_to_rounding(saved: object, current: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, which differs between machines and numbers of threads.

    The tolerance is the square root of the machine epsilon, relative to the largest value: 3e-4 in float32.
    """
    if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (current.shape, current.dtype):
        return False
    a, b = saved.double(), current.double()
    scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=0, atol=math.sqrt(torch.finfo(current.dtype).eps) * scale, equal_nan=True)


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint file of one task with its settings.

    An error names the first setting that differs, so that settings which determine others come first.
    """

    path: Path
    task: str  # "training", "attack"
    settings: dict[str, Any]  # plain values, digests, and outputs of the model

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the state and the settings, atomically. Raises WriteError."""
        buffer = BytesIO()
        torch.save(
            {"work": self.task, "settings": _digests_to_plain_strings(self.settings), "state": dict(state)}, buffer
        )
        write_bytes(self.path, buffer.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state in the file, None without a file. Raises ModelError for one of another task or settings."""
        if not self.path.exists():
            return None
        content = _load_checkpoint(self.path)
        if not isinstance(content, dict) or content.get("work") != self.task:
            raise ModelError(f"{self.path} is not a checkpoint of this task ({self.task}). {RESTART_HINT}")
        if difference := _first_different_setting_text(content["settings"], self.settings):
            raise self.mismatch_error(difference)
        state: dict[str, Any] = content["state"]
        return state

    def mismatch_error(self, difference: str) -> ModelError:
        return ModelError(f"{self.path} is a checkpoint of other settings ({self.task}): {difference}. {RESTART_HINT}")


def _digests_to_plain_strings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that `weights_only` can load: a digest as a plain str."""
    return {name: str(value) if isinstance(value, Digest) else value for name, value in settings.items()}


def _load_checkpoint(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"can't read the checkpoint {path}: {message}. {RESTART_HINT}") from error


def _first_different_setting_text(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """The first setting that differs, in words; None if there is none."""
    for name in dict.fromkeys([*current, *saved]):
        saved_value, current_value = saved.get(name), current.get(name)
        if isinstance(current_value, Tensor):
            if not is_equal_up_to_rounding(saved_value, current_value):
                return CHANGED_MODEL_MESSAGE.format(name)
        elif saved_value != current_value and isinstance(current_value, Digest):
            return f"its {name} differ from the current ones, in values or order"
        elif saved_value != current_value:
            return (
                f"{name} was {saved_value}, and is now {current_value}"
                if len(f"{saved_value}{current_value}") < 600
                else f"its {name} differ"
            )
    return None
