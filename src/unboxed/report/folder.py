"""The folder of a report: files are staged, then renamed into place, the page last: a page never lacks its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import WriteError

PAGE_FILE_NAME, REPORT_JSON_FILE, IMAGES_DIR_NAME = "index.html", "report.json", "pictures"
STAGING_FOLDER_PREFIX = ".unboxed-"
STALE_STAGING_FOLDER_SECONDS = (
    24 * 3600
)  # a staging folder that nothing was written to for so long is of a run that was killed


class ReportFolder:
    """A context: a report in `out` stays whole until `publish`; without one, `publish_so_far` shows what is made.

    `page` is what a person opens, `facts` the JSON that lists the files: other results may be in the same folder.
    Entering it raises WriteError where `out` cannot be written, before any work is done.
    """

    def __init__(self, out: str | os.PathLike[str], page: str = PAGE_FILE_NAME, facts: str = REPORT_JSON_FILE) -> None:
        self.out, self.page, self.facts = Path(out), page, facts
        self._new = not self.out.exists()
        self._files: list[str] = []

    def __enter__(self) -> ReportFolder:
        if self.out.exists() and not self.out.is_dir():
            raise WriteError(f"{self.out} is a file; a report needs a folder (which is made if need be)")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            _remove_stale_staging_folders(self.out)
            self._has_earlier = (self.out / self.facts).exists()
            self._stage = Path(tempfile.mkdtemp(prefix=f"{STAGING_FOLDER_PREFIX}{os.getpid()}-", dir=self.out))
        except OSError as error:
            raise _to_write_error(self.out, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)
        if self._new and error is not None:
            with suppress(OSError):
                self.out.rmdir()

    def stage(self, name: str, content: bytes) -> str:
        """Stage a file under its path relative to the folder. Returns that path. Raises WriteError.

        An image that would take the place of another one of an earlier report gets a name of its own, so that the
        earlier page keeps its images until the new one is there.
        """
        name = self._non_overwriting_image_name(name, content)
        path = self._stage / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise _to_write_error(self.out, error) from error
        if name not in self._files:
            self._files.append(name)
        return name

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self._files)

    def publish_so_far(self, page: bytes) -> None:
        """Show an unfinished page with its files, unless a whole report is there. Raises WriteError."""
        if not self._has_earlier:
            self.stage(self.page, page)
            try:
                self._move_staged_files()
            except OSError as error:
                raise _to_write_error(self.out, error) from error

    def publish(self) -> Path:
        """Move the staged files into place, the page last, and remove images that only an earlier report had."""
        stale = self._image_files_of_previous_report() - set(self._files)
        try:
            self._move_staged_files()
            for name in stale:
                (self.out / name).unlink(missing_ok=True)
        except OSError as error:
            raise _to_write_error(self.out, error) from error
        return self.out / self.page

    def _move_staged_files(self) -> None:
        for name in sorted(self._files, key=lambda f: (f == self.page, f == self.facts)):
            target, staged = self.out / name, self._stage / name
            if staged.exists():
                target.parent.mkdir(exist_ok=True)
                os.replace(staged, target)

    def _non_overwriting_image_name(self, name: str, content: bytes) -> str:
        path, earlier = Path(name), self.out / name
        if path.parent.name != IMAGES_DIR_NAME or not self._has_earlier or not earlier.is_file():
            return name
        if earlier.read_bytes() == content:
            return name
        return f"{path.parent}/{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}{path.suffix}"

    def _image_files_of_previous_report(self) -> set[str]:
        """The images that an earlier report lists as its own: plain names in its subfolder, nothing else."""
        try:
            names = json.loads((self.out / self.facts).read_text(encoding="utf-8"))["files"]
            paths = [Path(name) for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return {p.as_posix() for p in paths if p.parts == (IMAGES_DIR_NAME, p.name) and p.name not in ("", ".", "..")}


def _remove_stale_staging_folders(out: Path) -> None:
    """Remove the staging folders of runs that were killed."""
    for stage in out.glob(f"{STAGING_FOLDER_PREFIX}*"):
        with suppress(OSError):
            if stage.is_dir() and (
                _is_staging_process_dead(stage.name) or _seconds_untouched(stage) > STALE_STAGING_FOLDER_SECONDS
            ):
                shutil.rmtree(stage, ignore_errors=True)


def _is_staging_process_dead(stage_name: str) -> bool:
    """Whether the process that a staging folder names has ended; not asked on Windows, where asking would end it."""
    pid = stage_name.removeprefix(STAGING_FOLDER_PREFIX).partition("-")[0]
    if os.name != "posix" or not pid.isdigit() or int(pid) == 0:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _seconds_untouched(stage: Path) -> float:
    return time.time() - max(path.stat().st_mtime for path in (stage, *stage.iterdir()))


def _to_write_error(out: Path, error: OSError) -> WriteError:
    reason = error.strerror or error
    return WriteError(f"cannot write the report to {out}: {reason}. Choose a folder that you may write to")
