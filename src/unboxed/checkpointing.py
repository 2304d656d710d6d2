"""Where a long work stands, in a file: after an end that nobody chose, it goes on as if there had been none."""

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

RESTART_HINT = "Give another file, or remove this one to start anew"
CHANGED_MODEL_MESSAGE = (
    "the model's {} are others now, with the same weights: it computes something else than it did then"
)


class Digest(str):
    """Of tensors too large to be written into a checkpoint, and compared all the same."""


def tensor_digest(*values: Tensor) -> Digest:
    """Equal only for equal tensors, in the same order: dtype, shape and every bit count."""
    sha256 = hashlib.sha256()
    for value in values:
        sha256.update(str((value.dtype, tuple(value.shape))).encode())
        sha256.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return Digest(sha256.hexdigest())


def weights_digest(model: nn.Module) -> Digest:
    """Of all parameters and buffers that a model saves."""
    return tensor_digest(*(h for h in model.state_dict().values() if isinstance(h, Tensor)))


def cast_for_comparison(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a model that computes in `dtype` gives, to be compared with what it gives in another run."""
    return values.detach().cpu().to(dtype if dtype.is_floating_point else torch.float32)


def is_close(saved: object, current: Tensor) -> bool:
    """Whether these are the same but for rounding, which is another on other machines and numbers of threads.

    They may differ by the root of their precision, as a share of the largest: 3e-4 in single.
    """
    if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (current.shape, current.dtype):
        return False
    a, b = saved.double(), current.double()
    scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=0, atol=math.sqrt(torch.finfo(current.dtype).eps) * scale, equal_nan=True)


@dataclass(frozen=True)
class CheckpointFile:
    """The file of one work ("training", "attack") with these settings: plain values, digests, and what a model answers.

    The first setting that differs is named in the refusal: causes come before what follows from them.
    """

    path: Path
    task: str
    settings: dict[str, Any]

    def write(self, state: Mapping[str, Any]) -> None:
        """All of it under a temporary name, then renamed. Raises WriteError."""
        buffer = BytesIO()
        torch.save({"work": self.task, "settings": _to_plain(self.settings), "state": dict(state)}, buffer)
        write_bytes(self.path, buffer.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state in the file, None where there is no file. Raises ModelError for one of another work."""
        if not self.path.exists():
            return None
        content = _load_checkpoint(self.path)
        if not isinstance(content, dict) or content.get("work") != self.task:
            raise ModelError(f"{self.path} is no checkpoint of this work ({self.task}). {RESTART_HINT}")
        if difference := _first_difference(content["settings"], self.settings):
            raise self.mismatch_error(difference)
        state: dict[str, Any] = content["state"]
        return state

    def mismatch_error(self, difference: str) -> ModelError:
        return ModelError(
            f"{self.path} is the checkpoint of other settings ({self.task}): {difference}. {RESTART_HINT}"
        )


def _to_plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `weights_only` loads again: a digest as the text that it is."""
    return {name: str(value) if isinstance(value, Digest) else value for name, value in settings.items()}


def _load_checkpoint(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"can't read the checkpoint {path}: {message}. {RESTART_HINT}") from error


def _first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """The first setting that is not the same."""
    for name in dict.fromkeys([*current, *saved]):
        saved_value, current_value = saved.get(name), current.get(name)
        if isinstance(current_value, Tensor):
            if not is_close(saved_value, current_value):
                return CHANGED_MODEL_MESSAGE.format(name)
        elif saved_value != current_value and isinstance(current_value, Digest):
            return f"its {name} differ from those given now, in values or in order"
        elif saved_value != current_value:
            return (
                f"{name} was {saved_value}, and is {current_value}"
                if len(f"{saved_value}{current_value}") < 300
                else f"its {name} are others"
            )
    return None
