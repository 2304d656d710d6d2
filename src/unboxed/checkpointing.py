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

ELSE = "Give another file, or remove this one to start anew"
OTHERWISE = "the model's {} are others now, with the same weights: it computes something else than it did then"


class Digest(str):
    """Of tensors too large to be written into a checkpoint, and compared all the same."""


def digest(*values: Tensor) -> Digest:
    """Equal only for equal tensors, in the same order: dtype, shape and every bit count."""
    sums = hashlib.sha256()
    for value in values:
        sums.update(str((value.dtype, tuple(value.shape))).encode())
        sums.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return Digest(sums.hexdigest())


def weights_digest(model: nn.Module) -> Digest:
    """Of all parameters and buffers that a model saves."""
    return digest(*(h for h in model.state_dict().values() if isinstance(h, Tensor)))


def in_precision(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a model that computes in `dtype` gives, to be compared with what it gives in another run."""
    return values.detach().cpu().to(dtype if dtype.is_floating_point else torch.float32)


def alike(was: object, now: Tensor) -> bool:
    """Whether these are the same but for rounding, which is another on other machines and numbers of threads.

    They may differ by the root of their precision, as a share of the largest: 3e-4 in single.
    """
    if not isinstance(was, Tensor) or (was.shape, was.dtype) != (now.shape, now.dtype):
        return False
    a, b = was.double(), now.double()
    scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=0, atol=math.sqrt(torch.finfo(now.dtype).eps) * scale, equal_nan=True)


@dataclass(frozen=True)
class Saved:
    """The file of one work ("training", "attack") with these settings: plain values, digests, and what a model answers.

    The first setting that differs is named in the refusal: causes come before what follows from them.
    """

    path: Path
    work: str
    settings: dict[str, Any]

    def write(self, state: Mapping[str, Any]) -> None:
        """All of it under a temporary name, then renamed. Raises WriteError."""
        whole = BytesIO()
        torch.save({"work": self.work, "settings": _plain(self.settings), "state": dict(state)}, whole)
        write_bytes(self.path, whole.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state in the file, None where there is no file. Raises ModelError for one of another work."""
        if not self.path.exists():
            return None
        held = _load(self.path)
        if not isinstance(held, dict) or held.get("work") != self.work:
            raise ModelError(f"{self.path} is no checkpoint of this work ({self.work}). {ELSE}")
        if other := _difference(held["settings"], self.settings):
            raise self.refusal(other)
        state: dict[str, Any] = held["state"]
        return state

    def refusal(self, other: str) -> ModelError:
        return ModelError(f"{self.path} is the checkpoint of other settings ({self.work}): {other}. {ELSE}")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `weights_only` loads again: a digest as the text that it is."""
    return {name: str(value) if isinstance(value, Digest) else value for name, value in settings.items()}


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"can't read the checkpoint {path}: {said}. {ELSE}") from error


def _difference(held: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first setting that is not the same."""
    for name in dict.fromkeys([*asked, *held]):
        was, now = held.get(name), asked.get(name)
        if isinstance(now, Tensor):
            if not alike(was, now):
                return OTHERWISE.format(name)
        elif was != now and isinstance(now, Digest):
            return f"its {name} differ from those given now, in values or in order"
        elif was != now:
            return f"{name} was {was}, and is {now}" if len(f"{was}{now}") < 300 else f"its {name} are others"
    return None
