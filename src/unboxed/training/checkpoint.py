"""What a training's checkpoint holds beside tensors: its settings in words, and the RNGs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from inspect import getclosurevars, isfunction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.saved import Saved
from ..net import quiet
from ..writing import write_bytes


def saved(path: Path, settings: dict[str, Any]) -> Saved:
    """The file of a training, seen to be writable before the long work. Raises WriteError."""
    write_bytes(path.with_name(f".{path.name[:80]}.{os.getpid()}.try"), b"").unlink()
    return Saved(path, "training", settings)


def told(setting: object) -> str:
    """A setting in words that are the same in another process; for a function, its name and what it was made with."""
    if not callable(setting) or is_dataclass(setting):
        return repr(setting)
    made_with: Mapping[str, Any] = getclosurevars(setting).nonlocals if isfunction(setting) else {}
    plain = {name: v for name, v in sorted(made_with.items()) if isinstance(v, (int, float, str, type(None)))}
    return f"{getattr(setting, '__qualname__', type(setting).__qualname__)} {plain or ''}".strip()


def rng_states(device: torch.device) -> dict[str, Any]:
    """Every RNG that a training may draw from, in types that a file of weights can hold."""
    torch_own, of_device, (kind, keys, *rest), python = quiet.rng_states(device)
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"torch": torch_own, "device": of_device, "numpy": numpy, "python": [python[0], list(python[1]), python[2]]}


def put_rng_states(states: Mapping[str, Any], device: torch.device) -> None:
    kind, keys, *rest = states["numpy"]
    version, values, gauss = states["python"]
    numpy = (kind, keys.numpy().astype(np.uint32), *rest)
    quiet.put_rng_states((states["torch"], states["device"], numpy, (version, tuple(values), gauss)), device)
