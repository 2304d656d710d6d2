"""Reading files of weights: safetensors, `torch.save` files of tensors and plain values, and shards by their index.

Nothing in a file is ever executed. What is no file of weights is refused by a sentence of its own.
"""

from __future__ import annotations

import json
import pickle
import re
import shlex
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .errors import ModelError
from .validation import missing_path_text

TensorDict = dict[str, Tensor]
SHARD_INDEX_SUFFIX = ".index.json"
WEIGHT_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")  # of a folder, one file or its shards, in this order
SHARD_PATTERN = re.compile(r"-(\d+)-of-(\d+)\.\w+$")
ADAPTER_FILE_NAMES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
ADAPTER_REFUSED_TEXT = (
    "is an adapter alone (LoRA or its like): changes of a base model, and no model. Merge them in the script that made "
    "them (peft: model.merge_and_unload()) and save the whole model"
)
CONVERT_WEIGHTS_CODE = (
    "import sys, torch; f = lambda c: f(c.state_dict()) if hasattr(c, 'state_dict') else "
    "{str(k): f(v) for k, v in c.items()} if isinstance(c, dict) else [f(v) for v in c] if isinstance(c, (list, tuple))"
    " else c if isinstance(c, torch.Tensor) else None; "
    "torch.save(f(torch.load(sys.argv[1], map_location='cpu', weights_only=False)), sys.argv[2])"
)
"""Keeps the tensors of a checkpoint, wherever they are in it, and the state dicts of its objects."""
UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX = {
    ".npz": "is an archive of NumPy arrays (.npz), not of torch tensors",
    ".npy": "is a NumPy array (.npy), not a checkpoint of torch",
    ".h5": "holds weights of Keras (.h5), not of torch",
    ".keras": "is a model of Keras, not weights of torch",
    ".msgpack": "holds weights of Flax (.msgpack), not of torch",
    ".onnx": "is an ONNX graph, not weights of torch",
    ".tflite": "is a TensorFlow Lite model, not weights of torch",
    ".gguf": "is a GGUF file of a quantized model, not weights of torch",
    ".distcp": "is a part of a distributed checkpoint: give its folder",
}
OTHER_FORMAT_TEXT_BY_FIRST_BYTES = {
    b"\x89HDF": UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX[".h5"],
    b"GGUF": UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX[".gguf"],
    b"\x93NUMPY": UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX[".npy"],
}
NO_DOWNLOAD_TEXT_BY_FIRST_BYTES = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file: fetch that by `git lfs pull` in its repository",
    b"<!doctype html": "is a web page, not weights: download the file itself, not the page that links to it",
    b"<html": "is a web page, not weights: download the file itself, not the page that links to it",
}
WANTED_FILE_TEXT = "wanted a file that torch.save or safetensors wrote"
OTHER_FORMAT_ADVICE = (
    "save the state dict of the torch model that it belongs to: torch.save(model.state_dict(), 'weights.pt')"
)


def read_weights(path: Path) -> Any:
    """What a file or a folder of weights holds: tensors and plain values, however they are nested. Raises ModelError.

    A folder is one that `save_pretrained` wrote: `model.safetensors`, or its shards by their index.
    """
    if path.is_dir():
        return read_weights(_find_weights_file_in_folder(path))
    if not path.is_file():
        raise ModelError(missing_path_text(path, "weights file"))
    if path.name.endswith(SHARD_INDEX_SUFFIX):
        return _read_shards(path)
    if path.suffix.lower() in UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX or _is_numpy_archive(path):
        raise ModelError(
            f"{path} "
            f"{UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX.get(path.suffix.lower(), UNSUPPORTED_FORMAT_TEXT_BY_SUFFIX['.npz'])}; "
            f"{OTHER_FORMAT_ADVICE}"
        )
    if path.name in ADAPTER_FILE_NAMES:
        raise ModelError(f"{path} {ADAPTER_REFUSED_TEXT}")
    _check_not_single_shard(path)
    return _read_weights_file(path)


def _check_first_bytes(path: Path, first: bytes) -> None:
    """Raise ModelError for what is known to be no file of weights of torch, whatever it is called."""
    for start, text in NO_DOWNLOAD_TEXT_BY_FIRST_BYTES.items():
        if first.lstrip().lower().startswith(start):
            raise ModelError(f"{path} {text}")
    for start, text in OTHER_FORMAT_TEXT_BY_FIRST_BYTES.items():
        if first.startswith(start):
            raise ModelError(f"{path} {text}; {OTHER_FORMAT_ADVICE}")


def _read_weights_file(path: Path) -> Any:
    with path.open("rb") as file:
        first = file.read(64)
    _check_first_bytes(path, first)
    is_safetensors = first[8:10] == b'{"' or (path.suffix == ".safetensors" and first[:2] != b"PK")  # no zip of torch
    try:
        if is_safetensors:
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(), path.open("rb") as file:  # of a path torch goes by its suffix
            warnings.simplefilter("ignore", UserWarning)  # torch names its storage classes
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if _is_text(first):
            raise ModelError(f"{path} is a file of text, not weights; {WANTED_FILE_TEXT}") from error
        if isinstance(error, pickle.UnpicklingError):
            raise ModelError(_unsafe_pickle_text(path, str(error))) from error
        if isinstance(error, (LookupError, EOFError, struct.error)):  # the unpickler, lost in what is no pickle
            raise ModelError(f"{path} can't be read, it is truncated or no checkpoint; {WANTED_FILE_TEXT}") from error
        message = " ".join(str(error).split())[:200] or "the file ends too early"
        raise ModelError(f"{path} can't be read, it is truncated or no checkpoint: {message}") from error


def _is_text(first: bytes) -> bool:
    """Whether a file that is no checkpoint starts as text does, and not as a torch file (a zip) that was cut."""
    text = first.decode("utf-8", errors="ignore")  # may be cut within a character
    return (
        not b"PK\3\4".startswith(first[:4])
        and len(text.encode()) > len(first) - 4
        and bool(text)
        and all(c.isprintable() or c.isspace() for c in text)
    )


def _unsafe_pickle_text(path: Path, error_text: str) -> str:
    names = re.findall(r"GLOBAL (\S+)", error_text)
    if not names:
        return f"{path} can't be read: it is damaged, or no checkpoint at all"
    files = shlex.join([str(path), str(path.with_name(f"{path.stem}-weights.pt"))])
    reason = f"holds more than tensors ({names[0]}): unpickling it can run any code, so Unboxed never does"
    return f'{path} {reason}. If you trust its maker, convert it once: python -c "{CONVERT_WEIGHTS_CODE}" {files}'


def _is_numpy_archive(path: Path) -> bool:
    """Whether a file is an .npz under another name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


# -- folders and shards ------------------------------------------------------------------------------------------------


def _find_weights_file_in_folder(folder: Path) -> Path:
    """The file, or the index of the shards, of the weights in a folder. Raises ModelError."""
    for name in WEIGHT_FILE_NAMES:
        for path in (folder / name, folder / f"{name}{SHARD_INDEX_SUFFIX}"):
            if path.is_file():
                return path
    if len(indices := sorted(folder.glob(f"*{SHARD_INDEX_SUFFIX}"))) == 1:
        return indices[0]
    raise ModelError(f"{folder} {_no_weights_in_folder_text(folder)}")


def _no_weights_in_folder_text(folder: Path) -> str:
    if any((folder / name).is_file() for name in ADAPTER_FILE_NAMES):
        return ADAPTER_REFUSED_TEXT
    if any(folder.glob("*.distcp")):
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(folder))} w.pt"
        return f"is a distributed checkpoint; if you trust its maker, join it once: {command}"
    if (folder / "zero_to_fp32.py").is_file():
        return "is a checkpoint of DeepSpeed; join it once by the zero_to_fp32.py in it, if you trust its maker"
    files = f"{' or '.join(WEIGHT_FILE_NAMES)}, or the {SHARD_INDEX_SUFFIX} of its shards"
    return f"is a folder without {files}; else give one file (.safetensors, .pt, .pth, .ckpt)"


def _check_not_single_shard(path: Path) -> None:
    match = SHARD_PATTERN.search(path.name)
    if match and int(match[2]) > 1:
        problem = f"{path} is shard {int(match[1])} of {int(match[2])}, a part of the weights"
        raise ModelError(f"{problem}; give the folder, or the index of the shards (*{SHARD_INDEX_SUFFIX})")


def _read_shards(index: Path) -> TensorDict:
    """The tensors of all shards that an index lists. Raises ModelError."""
    shard_by_name = _read_index(index)
    shards = {shard: _read_weights_file(_shard_path(index, shard)) for shard in sorted({*shard_by_name.values()})}
    lost = [name for name, shard in shard_by_name.items() if name not in shards[shard]]
    if lost:
        raise ModelError(f"the index {index} lists tensors that are not in their shards: {listed_names_text(lost)}")
    return {name: shards[shard][name] for name, shard in shard_by_name.items()}


def _read_index(index: Path) -> dict[str, str]:
    """{tensor name: file name of its shard}."""
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        is_valid = bool(table) and all(isinstance(text, str) for pair in table.items() for text in pair)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise ModelError(f"the index {index} is damaged; wanted JSON with a weight_map, {{tensor name: shard file}}")
    return dict(table)


def _shard_path(index: Path, shard: str) -> Path:
    """The path of a shard, which lies beside its index: an index from elsewhere can't name other files."""
    path = index.parent / shard
    if Path(shard).name != shard or not path.is_file():
        raise ModelError(f"the index {index} lists the shard {shard!r}, and there is no such file beside it; fetch it")
    return path


# -- nested checkpoints as flat names ----------------------------------------------------------------------------------

MAX_CHECKPOINT_NESTING = 6  # how deep a checkpoint may wrap its tensors
MAX_LISTED_TENSOR_NAMES = 8  # names of each kind in an error or a note


def flatten_checkpoint(loaded: Any, path: Path) -> TensorDict:
    """{dotted name: tensor} of all tensors in a checkpoint, dicts and lists in it taken as prefixes.

    Raises ModelError where there is none.
    """
    if not isinstance(loaded, Mapping):
        expected = "wanted a dict of tensors by name, as model.state_dict() gives"
        raise ModelError(f"{path} holds a {type(loaded).__name__}; {expected}")
    flat = dict(_iter_flat_items(loaded, "", MAX_CHECKPOINT_NESTING))
    if not flat and _contains_optimizer_state_dict(loaded, MAX_CHECKPOINT_NESTING):
        raise ModelError(f"{path} holds the state of an optimizer and no weights; {OTHER_FORMAT_ADVICE}")
    if not flat:
        raise ModelError(f"{path} holds no weights; its keys are: {listed_names_text(map(str, loaded)) or 'none'}")
    return flat


def _iter_flat_items(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if _is_optimizer_state_dict(value):
        return
    for key, child in _nested_items(value):
        if isinstance(child, Tensor):
            yield f"{prefix}{key}", child
        elif depth:
            yield from _iter_flat_items(child, f"{prefix}{key}.", depth - 1)


def _nested_items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _is_optimizer_state_dict(value: Any) -> bool:
    """Whether this is the state dict of an optimizer."""
    return isinstance(value, Mapping) and "param_groups" in value and "state" in value


def _contains_optimizer_state_dict(value: Any, depth: int) -> bool:
    return _is_optimizer_state_dict(value) or (
        depth > 0 and any(_contains_optimizer_state_dict(v, depth - 1) for _, v in _nested_items(value))
    )


def listed_names_text(names: Iterable[str], max_listed: int = MAX_LISTED_TENSOR_NAMES) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:max_listed]) + (f" and {len(names) - max_listed} more" if len(names) > max_listed else "")
