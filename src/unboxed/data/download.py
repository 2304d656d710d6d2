"""Downloads by pooch: only whole files with the right checksum are kept, and failures are said in our words."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import WriteError

STALL_TIMEOUT_SECONDS = 15.0  # without data
DOWNLOAD_CHUNK_BYTES = 1 << 16
MAX_DOWNLOAD_BYTES = 1 << 28  # the largest file here has 26 MB; a server could send without end


class DownloadError(Exception):
    """No mirror could deliver the file; the message has the reason of each."""


def download_from_first_mirror(urls: Sequence[str], path: Path, md5: str, *, quiet: bool = False) -> None:
    """Download `path` from the first mirror that works, with a progress bar on stderr.

    What is cut or wrong is not kept. Raises DownloadError, or WriteError where the folder cannot be written.
    """
    failures = []
    for url in urls:
        try:
            return _download_with_pooch(url, path, md5, quiet)
        except DownloadError as error:
            failures.append(f"{url}: {error}")
    raise DownloadError("; ".join(failures))


def cache_folder() -> Path:
    """The folder of the user's cache for downloads."""
    import pooch  # here and below: most calls need none of it, and it takes a tenth of a second

    return Path(pooch.os_cache("unboxed"))


def md5_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _SizeLimitedProgressBar(tqdm):  # type: ignore[type-arg]
    """Ends the download of a file that grows too large."""

    def __bool__(self) -> bool:  # pooch shows a bar that is true, and tqdm's is not where no length is known
        return True

    def update(self, n: float | None = 1) -> bool | None:
        self.n_received = getattr(self, "n_received", 0) + (n or 0)
        if self.n_received > MAX_DOWNLOAD_BYTES:
            raise DownloadError(f"the file is larger than {MAX_DOWNLOAD_BYTES} bytes")
        return super().update(n)

    def reset(self, total: float | None = None) -> None:
        self.n_received = 0
        super().reset(total)


def _download_with_pooch(url: str, path: Path, md5: str, quiet: bool) -> None:
    import pooch
    from requests.exceptions import RequestException

    with (
        _SizeLimitedProgressBar(desc=path.name, unit="B", unit_scale=True, disable=quiet, leave=False) as bar,
        _silencing_pooch(),
    ):
        downloader = pooch.HTTPDownloader(
            bar, DOWNLOAD_CHUNK_BYTES, timeout=STALL_TIMEOUT_SECONDS, hooks={"response": _disable_content_decoding},
            headers={"User-Agent": "unboxed", "Accept-Encoding": "identity"},
        )  # fmt: skip
        try:
            pooch.retrieve(url, f"md5:{md5}", path.name, path.parent, downloader=downloader)
        except RequestException as error:
            raise DownloadError(_failure_reason(error)) from None
        except ValueError as error:
            actual_md5 = str(error).partition("but got ")[2].partition(".")[0]
            raise DownloadError(f"wrong checksum: wanted md5 {md5}, got {actual_md5}") from None
        except OSError as error:
            raise WriteError(f"can't write {path}: {error.strerror or error}") from error


def _disable_content_decoding(response: Any, *args: Any, **kwargs: Any) -> None:
    """A packed file is kept as it is, also where the server calls its packing an encoding of the transfer."""
    response.raw.headers.pop("Content-Encoding", None)


def _failure_reason(error: Exception) -> str:
    """Why a request failed: what the server says, or what the system says of the connection."""
    from requests.exceptions import ChunkedEncodingError, Timeout

    if (response := getattr(error, "response", None)) is not None:
        return f"the server says {response.status_code} {response.reason}"
    if isinstance(error, Timeout):
        return f"no answer within {STALL_TIMEOUT_SECONDS:g} seconds"
    if isinstance(error, ChunkedEncodingError):
        return "the connection was cut"
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    return f"no connection: {getattr(first, 'strerror', None) or first}"


@contextmanager
def _silencing_pooch() -> Iterator[None]:
    """Without pooch's lines about what it downloads, and where to."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
