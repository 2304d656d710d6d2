"""Where a training stands, in a file: after an end that nobody chose, it goes on as if there had been none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from inspect import getclosurevars, isfunction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError
from ..net import quiet
from ..writing import write_bytes

FORMAT = "unboxed training 1"
ELSE = "Give another file, or remove this one to start anew"


@dataclass(frozen=True)
class Saved:
    """The file of a training with these settings."""

    path: Path
    settings: dict[str, Any]

    def write(self, state: Mapping[str, Any]) -> None:
        """All of it under a temporary name, then renamed. Raises WriteError."""
        whole = BytesIO()
        torch.save({"format": FORMAT, "settings": self.settings, "state": dict(state)}, whole)
        write_bytes(self.path, whole.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state in the file, None where there is no file. Raises ModelError for one of another training."""
        if not self.path.exists():
            return None
        held = _load(self.path)
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ModelError(f"{self.path} is no checkpoint of a training. {ELSE}")
        if other := _difference(held["settings"], self.settings):
            raise ModelError(f"{self.path} is the checkpoint of another training: {other}. {ELSE}")
        state: dict[str, Any] = held["state"]
        return state


def told(setting: object) -> str:
    """A setting in words that are the same in another process; for a function, its name and what it was made with."""
    if not callable(setting) or is_dataclass(setting):
        return repr(setting)
    made_with: Mapping[str, Any] = getclosurevars(setting).nonlocals if isfunction(setting) else {}
    plain = {name: v for name, v in sorted(made_with.items()) if isinstance(v, (int, float, str, type(None)))}
    return f"{getattr(setting, '__qualname__', type(setting).__qualname__)} {plain or ''}".strip()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"can't read the checkpoint {path}: {said}. {ELSE}") from error


def _difference(held: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first setting that is not the same."""
    for name in sorted(held.keys() | asked.keys()):
        was, now = held.get(name), asked.get(name)
        if was != now:
            return f"{name} was {was}, and is {now}" if len(f"{was}{now}") < 300 else f"its {name} are others"
    return None


def rng_states(device: torch.device) -> dict[str, Any]:
    """Every RNG that a training may draw from, in types that a file of weights can hold."""
    torch_own, of_device, (kind, keys, *rest), python = quiet._states(device)
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"torch": torch_own, "device": of_device, "numpy": numpy, "python": [python[0], list(python[1]), python[2]]}


def put_rng_states(states: Mapping[str, Any], device: torch.device) -> None:
    kind, keys, *rest = states["numpy"]
    version, values, gauss = states["python"]
    numpy = (kind, keys.numpy().astype(np.uint32), *rest)
    quiet._put_back((states["torch"], states["device"], numpy, (version, tuple(values), gauss)), device)
