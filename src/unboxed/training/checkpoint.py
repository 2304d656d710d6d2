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

from ..atomic_write import write_bytes
from ..checkpointing import CheckpointFile, Digest
from ..engine.stable_repr import checkpoint_repr
from ..inputs.examples import OpenedDataset
from ..model import state

N_DATA_DIGEST_EXAMPLES = 8  # examples of a data set


def open_training_checkpoint(path: Path, settings: dict[str, Any]) -> CheckpointFile:
    """The file of a training, seen to be writable before the long work. Raises WriteError."""
    write_bytes(path.with_name(f".{path.name[:80]}.{os.getpid()}.try"), b"").unlink()
    return CheckpointFile(path, "training", settings)


def model_structure_text(model: nn.Module) -> str:
    """A model's modules and the shapes of its tensors; not its weights, which the checkpoint holds."""
    shapes = {name: list(h.shape) for name, h in (*model.named_parameters(), *model.named_buffers())}
    return f"{re.sub(' at 0x[0-9a-f]+', '', repr(model))} {shapes}"


def setting_checkpoint_repr(name: str, setting: object) -> str:
    """A setting with all that it is made of. Raises InputError."""
    return checkpoint_repr(f"{name}=", setting, "make it of plain values")


def data_digest(data: OpenedDataset | list[Any], device: torch.device) -> Digest:
    """Some examples, evenly spread; where a second look shows others, only that it does.

    The global RNGs are left as they were.
    """
    passes = list[str]()
    for _ in range(2):
        with state.forking_rngs(0, device):
            n_examples = len(data)
            passes.append(
                setting_checkpoint_repr(
                    "the data", [data[i * n_examples // N_DATA_DIGEST_EXAMPLES] for i in range(N_DATA_DIGEST_EXAMPLES)]
                )
            )
    return Digest(passes[0] if passes[0] == passes[1] else "others at each look")


def rng_states(device: torch.device) -> dict[str, Any]:
    """Every RNG that a training may draw from, in types that a file of weights can hold."""
    torch_state, device_state, (generator_name, numpy_keys, *numpy_rest), python_state = state.rng_states(device)
    numpy_state = [generator_name, torch.from_numpy(numpy_keys.astype(np.int64)), *numpy_rest]
    return {
        "torch": torch_state,
        "device": device_state,
        "numpy": numpy_state,
        "python": [python_state[0], list(python_state[1]), python_state[2]],
    }


def restore_rng_states(states: Mapping[str, Any], device: torch.device) -> None:
    generator_name, numpy_keys, *numpy_rest = states["numpy"]
    python_version, python_values, next_gaussian = states["python"]
    numpy_state = (generator_name, numpy_keys.numpy().astype(np.uint32), *numpy_rest)
    state.restore_rng_states(
        (states["torch"], states["device"], numpy_state, (python_version, tuple(python_values), next_gaussian)), device
    )
