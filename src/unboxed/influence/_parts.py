"""Files of a store: parts of a fixed number of rows, each written whole, and a manifest that is written last."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic_write import write_bytes
from ..checkpointing import is_equal_up_to_rounding
from ..errors import DataError, ModelError, WriteError

LOG = logging.getLogger("unboxed")
MANIFEST_FILE_NAME = "manifest.json"
START_AGAIN_HINT = "Give another folder, or remove this one to start again"
MISMATCH_TEXT_BY_SETTING = {
    "weights": "its weights are others",
    "parameter names": "it is of other layers",
    "losses of noise": "with the same weights its losses are others: by another normalization of the inputs, other "
    "modules without weights, or another loss",
}  # what an error says of settings that say nothing to a reader


@dataclass(frozen=True, eq=False)
class GradientStoreFiles:
    """Parts of a store in a folder, and the settings that all of them must have been made with.

    An error names the first setting that differs, so that settings which determine others come first.
    """

    folder: Path
    settings: Mapping[str, Any]  # plain values

    def path(self, k: int) -> Path:
        return self.folder / f"part-{k:05d}.safetensors"

    def write(self, k: int, tensors: Mapping[str, Tensor], digest: str) -> None:
        """Write part k, atomically. Raises WriteError."""
        about = {"digest": digest, "settings": dict(self.settings)}  # under one key: several come in any order
        write_bytes(self.path(k), safetensors.torch.save(dict(tensors), {"part": json.dumps(about)}))

    def digest(self, k: int) -> str | None:
        """The digest of the data of part k; None where it is not written. Raises ModelError for other settings."""
        if not self.path(k).exists():
            return None
        with self._open(k) as file:
            about = json.loads((file.metadata() or {}).get("part", "{}"))
        self.check(about.get("settings", {}))
        return str(about.get("digest"))

    def read(self, k: int, name: str) -> Tensor:
        """One tensor of part k, mapped into memory: rows are read from the disk when they are needed."""
        with self._open(k) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def write_manifest(self, n_rows: int, digests: list[str]) -> None:
        """Write the manifest: the store is complete. Raises WriteError."""
        content = {"settings": dict(self.settings), "rows": n_rows, "digests": digests}
        write_bytes(self.folder / MANIFEST_FILE_NAME, json.dumps(content, indent=1).encode())

    def manifest(self) -> dict[str, Any] | None:
        """What `write_manifest` wrote; None for a store that is not complete. Raises ModelError."""
        path = self.folder / MANIFEST_FILE_NAME
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["rows"], content["digests"], content["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} is no manifest of a store. {START_AGAIN_HINT}") from error
        self.check(content["settings"])
        return dict(content)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ModelError where settings in the folder are others."""
        for name, wanted in self.settings.items():
            if not _is_equal_store_setting(found := settings.get(name), wanted):
                what = MISMATCH_TEXT_BY_SETTING.get(name, f"it was made with {name} {found}, this is {wanted}")
                raise ModelError(
                    f"{self.folder} is a store of another model or of other settings: {what}. {START_AGAIN_HINT}"
                )

    def check_no_extra_parts(self, n_parts: int) -> None:
        """Raise DataError where the folder has parts beyond those of the data."""
        if self.path(n_parts).exists():
            raise DataError(f"{self.folder} is a store of more training examples than these. {START_AGAIN_HINT}")

    def _open(self, k: int) -> Any:
        try:
            return safe_open(self.path(k), framework="pt")
        except Exception as error:  # a broken file can raise anything
            raise ModelError(f"can't read {self.path(k)}, a part of a store: {error}. {START_AGAIN_HINT}") from error


def _is_equal_store_setting(found: Any, wanted: Any) -> bool:
    """Whether two settings are equal; numbers that a model gave, up to rounding."""
    if isinstance(wanted, list) and isinstance(found, list):
        return is_equal_up_to_rounding(torch.tensor(found), torch.tensor(wanted))
    return bool(found == wanted)


def require_same_part_data(folder: Path, found: str, digest: str, rows: range) -> None:
    """Raise DataError where the data of a part are not those that it was made of."""
    if found != digest:
        raise DataError(
            f"training examples {rows.start} to {rows.stop - 1} are not those that {folder} was made of: they have "
            f"changed, or come in another order. Give them in the same order, without shuffling. {START_AGAIN_HINT}"
        )


def count_examples(data: Any) -> int | None:
    """How many examples data hold, where that is known without reading them."""
    examples = data[0] if isinstance(data, tuple) else getattr(data, "dataset", data)
    try:
        return len(examples)
    except TypeError:
        return None


def check_disk_space_and_log_size(folder: Path, n: int | None, bytes_per_row: int) -> None:
    """State how large a store will be, before it is made. Raises WriteError where the disk has not enough space."""
    if n is None:
        LOG.info("store %s: %d bytes per training example", folder, bytes_per_row)
        return
    size = n * bytes_per_row
    LOG.info("store %s of %d training examples: %.1f MB", folder, n, size / 1e6)
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    missing = size - sum(path.stat().st_size for path in folder.glob("part-*.safetensors"))
    if (free := shutil.disk_usage(existing).free) < missing:
        raise WriteError(
            f"the store needs {missing / 1e6:.1f} MB, the disk of {existing} has {free / 1e6:.1f} MB; choose another "
            "folder, a smaller dim, or fewer layers"
        )
