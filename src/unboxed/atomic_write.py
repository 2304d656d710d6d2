"""Atomic writes: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import WriteError


def encode_utf8(text: str) -> bytes:
    """UTF-8 of any text. Lone surrogates, from file names that are not UTF-8, are written as \\udce9."""
    return text.encode("utf-8", "backslashreplace")


def to_printable(text: str) -> str:
    """A name that can be printed and rendered, whatever its bytes are."""
    return encode_utf8(text).decode("utf-8")


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a complete file or none. Raises WriteError; the temporary file is then removed."""
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"can't write {path}: {error.strerror or error}. Choose a folder you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path
