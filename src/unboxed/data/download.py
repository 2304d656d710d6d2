"""Downloads: checksums are verified, interrupted downloads resumed, and files written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from ..errors import WriteError

TIMEOUT_SECONDS = 15.0  # without data
MAX_DISCONNECTS = 5  # per mirror
CHUNK_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 28  # the largest file here has 26 MB; a server could send without end


class DownloadError(Exception):
    """No mirror could deliver the file; the message has the reason of each."""


class _Disconnected(Exception):
    """The connection ended before the end of the file."""


def fetch(urls: Sequence[str], path: Path, md5: str, *, quiet: bool = False) -> None:
    """Download `path` from the first mirror that works, with a progress bar on stderr.

    Data is stored in `path.part` until it is complete and its checksum correct; the next call resumes it. Raises
    DownloadError, or WriteError where the folder cannot be written.
    """
    part_path = path.with_name(f"{path.name}.part")
    failures = []
    for url in urls:
        try:
            _download_verified(url, part_path, md5, quiet)
            with _wrap_write_errors(path):
                os.replace(part_path, path)
            return
        except (DownloadError, _Disconnected, FileNotFoundError) as error:
            if path.is_file() and md5_checksum(path) == md5:  # another process finished it
                return
            failures.append(f"{url}: {error}")
    raise DownloadError("; ".join(failures))


def md5_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download_verified(url: str, part_path: Path, md5: str, quiet: bool) -> None:
    """Complete the part; with a wrong checksum it is deleted, and downloaded again if it was resumed."""
    was_resumed = _file_size(part_path) > 0
    _download_with_retries(url, part_path, quiet)
    actual_md5 = md5_checksum(part_path)
    if actual_md5 == md5:
        return
    part_path.unlink()
    if not was_resumed:
        raise DownloadError(f"wrong checksum: wanted md5 {md5}, got {actual_md5}")
    _download_verified(url, part_path, md5, quiet)


def _download_with_retries(url: str, part_path: Path, quiet: bool) -> None:
    """Resume as long as the connection is cut, up to MAX_DISCONNECTS times."""
    for _ in range(MAX_DISCONNECTS):
        with contextlib.suppress(_Disconnected):
            return _request(url, part_path, quiet)
    raise _Disconnected(f"the connection was cut {MAX_DISCONNECTS} times")


def _request(url: str, part_path: Path, quiet: bool) -> None:
    n_downloaded = _file_size(part_path)
    headers = {"User-Agent": "unboxed"} | ({"Range": f"bytes={n_downloaded}-"} if n_downloaded else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as reply:
            _append_reply(
                reply, part_path, n_downloaded if reply.status == http.HTTPStatus.PARTIAL_CONTENT else 0, quiet
            )
    except WriteError:
        raise
    except HTTPError as error:
        error.close()
        if (
            not n_downloaded or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        ):  # it may be complete already
            raise DownloadError(f"the server says {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _append_reply(reply: http.client.HTTPResponse, part_path: Path, offset: int, quiet: bool) -> None:
    """Append the reply to the part, from `offset` on."""
    length = reply.headers.get("Content-Length", "")
    total = offset + int(length) if length.isdigit() else None
    name = part_path.name.removesuffix(".part")
    with _wrap_write_errors(part_path), part_path.open("ab") as file:
        file.truncate(offset)
    with (
        part_path.open("ab") as file,
        tqdm(total=total, initial=offset, desc=name, unit="B", unit_scale=True, disable=quiet, leave=False) as bar,
    ):
        for chunk in _read_chunks(reply):
            _write_chunk(file, chunk, part_path)
            bar.update(len(chunk))
    size = _file_size(part_path)
    if size > MAX_FILE_BYTES:
        part_path.unlink()
        raise DownloadError(f"the file is larger than {MAX_FILE_BYTES} bytes")
    if total is not None and size < total:
        raise _Disconnected(f"cut after {size} of {total} bytes")


def _read_chunks(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """The reply in chunks, until it ends or the connection does."""
    n_bytes = 0
    try:
        while n_bytes <= MAX_FILE_BYTES and (chunk := reply.read(CHUNK_BYTES)):
            n_bytes += len(chunk)
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Disconnected(str(error) or type(error).__name__) from None


def _write_chunk(file: IO[bytes], chunk: bytes, part_path: Path) -> None:
    with _wrap_write_errors(part_path):
        file.write(chunk)
        file.flush()  # a full disk is noticed here, not when the file is closed


@contextlib.contextmanager
def _wrap_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"can't write {path}: {error.strerror or error}") from error


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
