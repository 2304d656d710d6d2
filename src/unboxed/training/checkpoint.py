"""What a training's checkpoint holds beside tensors: its settings in words, and the RNGs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ..atomic_write import write_bytes
from ..checkpointing import Digest, CheckpointFile
from ..engine.stable_repr import checkpoint_repr
from ..model import state

LOOKED_AT = 8  # examples of a data set


def saved(path: Path, settings: dict[str, Any]) -> CheckpointFile:
    """The file of a training, seen to be writable before the long work. Raises WriteError."""
    write_bytes(path.with_name(f".{path.name[:80]}.{os.getpid()}.try"), b"").unlink()
    return CheckpointFile(path, "training", settings)


def structure(model: nn.Module) -> str:
    """A model's modules and the shapes of its tensors; not its weights, which the checkpoint holds."""
    shapes = {name: list(h.shape) for name, h in (*model.named_parameters(), *model.named_buffers())}
    return f"{re.sub(' at 0x[0-9a-f]+', '', repr(model))} {shapes}"


def compared(name: str, setting: object) -> str:
    """A setting with all that it is made of. Raises InputError."""
    return checkpoint_repr(f"{name}=", setting, "make it of plain values")


def looked_at(data: Dataset[Any], device: torch.device) -> Digest:
    """Some examples, evenly spread; where a second look shows others, only that it does.

    The global RNGs are left as they were.
    """
    looks = list[str]()
    for _ in range(2):
        with state.forked_rngs(0, device):
            n = len(data)  # type: ignore[arg-type]
            looks.append(compared("the data", [data[i * n // LOOKED_AT] for i in range(LOOKED_AT)]))
    return Digest(looks[0] if looks[0] == looks[1] else "others at each look")


def rng_states(device: torch.device) -> dict[str, Any]:
    """Every RNG that a training may draw from, in types that a file of weights can hold."""
    torch_own, of_device, (kind, keys, *rest), python = state.rng_states(device)
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"torch": torch_own, "device": of_device, "numpy": numpy, "python": [python[0], list(python[1]), python[2]]}


def put_rng_states(states: Mapping[str, Any], device: torch.device) -> None:
    kind, keys, *rest = states["numpy"]
    version, values, gauss = states["python"]
    numpy = (kind, keys.numpy().astype(np.uint32), *rest)
    state.restore_rng_states((states["torch"], states["device"], numpy, (version, tuple(values), gauss)), device)
