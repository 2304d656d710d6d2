"""The folder of a report: files are staged, then renamed into place together, the page last."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import WriteError

PAGE_FILE_NAME, REPORT_JSON_FILE, IMAGES_DIR_NAME = "index.html", "report.json", "pictures"


class ReportFolder:
    """A context: nothing appears in `out` before `publish`, and nothing unfinished remains after a failure.

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
            self._stage = Path(tempfile.mkdtemp(prefix=".unboxed-", dir=self.out))
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
        """Stage a file under its path relative to the folder. Returns that path. Raises WriteError."""
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

    def publish(self) -> Path:
        """Move the staged files into place, the page last, and remove images that only an earlier report had."""
        stale = self._image_files_of_previous_report() - set(self._files)
        try:
            for name in sorted(self._files, key=lambda f: (f == self.page, f == self.facts)):
                target = self.out / name
                target.parent.mkdir(exist_ok=True)
                os.replace(self._stage / name, target)
            for name in stale:
                (self.out / name).unlink(missing_ok=True)
        except OSError as error:
            raise _to_write_error(self.out, error) from error
        return self.out / self.page

    def _image_files_of_previous_report(self) -> set[str]:
        """The images that an earlier report lists as its own: plain names in its subfolder, nothing else."""
        try:
            names = json.loads((self.out / self.facts).read_text(encoding="utf-8"))["files"]
            paths = [Path(name) for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return {p.as_posix() for p in paths if p.parts == (IMAGES_DIR_NAME, p.name) and p.name not in ("", ".", "..")}


def _to_write_error(out: Path, error: OSError) -> WriteError:
    reason = error.strerror or error
    return WriteError(f"cannot write the report to {out}: {reason}. Choose a folder that you may write to")
