"""Files are written whole: under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import WriteError


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all. Raises WriteError, and then leaves nothing behind."""
    part = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise WriteError(f"can't write {path}: {error.strerror or error}. Choose a folder you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path
