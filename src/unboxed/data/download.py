"""Files from the network: checked, resumed after a cut, and whole or not there at all."""

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

TIMEOUT = 15.0  # seconds without a byte
CUTS = 5  # how often one mirror may cut the connection
CHUNK = 1 << 16
LIMIT = 1 << 28  # bytes; the largest file known here has 26 MB, and a server may send without end


class Unreachable(Exception):
    """No mirror gave the file; says why, mirror by mirror."""


class _Cut(Exception):
    """The connection ended before the file did."""


def fetch(urls: Sequence[str], path: Path, md5: str, *, quiet: bool = False) -> None:
    """Download `path` from the first mirror that gives it, with a progress bar on stderr.

    What came stays in `path.part` until it is whole and its checksum fits; the next call goes on from there.
    Raises Unreachable, or WriteError where the folder can't be written.
    """
    part = path.with_name(f"{path.name}.part")
    why = []
    for url in urls:
        try:
            _whole(url, part, md5, quiet)
            with _writing(path):
                os.replace(part, path)
            return
        except (Unreachable, _Cut, FileNotFoundError) as error:
            if path.is_file() and checksum(path) == md5:  # another process was faster, and took the part
                return
            why.append(f"{url}: {error}")
    raise Unreachable("; ".join(why))


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _whole(url: str, part: Path, md5: str, quiet: bool) -> None:
    """Bring the part to its end; one whose checksum is wrong goes, and is tried once more if it was resumed."""
    resumed = _size(part) > 0
    _to_the_end(url, part, quiet)
    got = checksum(part)
    if got == md5:
        return
    part.unlink()
    if not resumed:
        raise Unreachable(f"wrong checksum: wanted md5 {md5}, got {got}")
    _whole(url, part, md5, quiet)


def _to_the_end(url: str, part: Path, quiet: bool) -> None:
    """Ask again, from where it stopped, as long as the connection is cut on the way."""
    for _ in range(CUTS):
        with contextlib.suppress(_Cut):
            return _get(url, part, quiet)
    raise _Cut(f"the connection was cut {CUTS} times")


def _get(url: str, part: Path, quiet: bool) -> None:
    have = _size(part)
    headers = {"User-Agent": "unboxed"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as reply:
            _keep(reply, part, have if reply.status == http.HTTPStatus.PARTIAL_CONTENT else 0, quiet)
    except WriteError:
        raise
    except HTTPError as error:
        error.close()
        if not have or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # it may be whole already
            raise Unreachable(f"the server says {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _keep(reply: http.client.HTTPResponse, part: Path, start: int, quiet: bool) -> None:
    """Append the reply to the part, from `start` on."""
    length = reply.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    name = part.name.removesuffix(".part")
    with _writing(part), part.open("ab") as file:
        file.truncate(start)
    with (
        part.open("ab") as file,
        tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=quiet, leave=False) as bar,
    ):
        for chunk in _chunks(reply):
            _write(file, chunk, part)
            bar.update(len(chunk))
    size = _size(part)
    if size > LIMIT:
        part.unlink()
        raise Unreachable(f"the file is larger than {LIMIT} bytes")
    if total is not None and size < total:
        raise _Cut(f"cut after {size} of {total} bytes")


def _chunks(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """The reply, piece by piece, as far as it comes."""
    taken = 0
    try:
        while taken <= LIMIT and (chunk := reply.read(CHUNK)):
            taken += len(chunk)
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or type(error).__name__) from None


def _write(file: IO[bytes], chunk: bytes, part: Path) -> None:
    with _writing(part):
        file.write(chunk)
        file.flush()  # a full disk is noticed here, not when the file is closed


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"can't write {path}: {error.strerror or error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
