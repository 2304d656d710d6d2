"""What all tests share: few threads (the suite runs in parallel), deterministic torch, and where warnings point.

The process that hands out the tests runs none: what takes long to import is imported where it is used.
"""

import gc
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest


class PointsOutside:
    """`warnings`, as `errors.warn` sees it: what any test provokes names a line that is not in the package."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn_explicit(self, message: str, category: type[Warning], filename: str, *rest: Any) -> None:
        assert self.package not in Path(filename).parents, f"{message!r} points at {filename}"
        warnings.warn_explicit(message, category, filename, *rest)


@pytest.fixture(autouse=True, scope="session")
def _warnings_point_outside() -> Iterator[None]:
    from unboxed import errors

    outside = PointsOutside(Path(errors.__file__).parent)
    before, errors.warnings = errors.warnings, outside  # type: ignore[assignment]
    yield
    errors.warnings = before


@pytest.fixture(autouse=True, scope="session")
def _threads_of_pytest_run_no_model() -> Iterator[None]:
    """No box has to give the threads of pytest-xdist time to come out of a forward."""
    from unboxed.model import locks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "NEXT_MODULE_WAIT_SECONDS", 0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _commands_are_built_once() -> Iterator[None]:
    """Each call of a command line builds all of its commands, which takes longer than most that a test runs."""
    import typer.testing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def threads_run_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unboxed.model.locks.NEXT_MODULE_WAIT_SECONDS", 0.001)


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    from quick_reports import make_reports_quick

    make_reports_quick(monkeypatch)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-pairs", action="store_true", help="contracts on every pair of method and model")


gc.disable()  # until the tests are collected: what is imported for them, and they themselves, stay


def pytest_collection_finish() -> None:
    """Garbage collection passes over what was collected: 15,000 items, and the modules imported for them.

    A test leaves little in cycles: looking for it at every 700 objects costs more than it frees.
    """
    gc.freeze()
    gc.set_threshold(50_000, 10, 50)
    gc.enable()


# What is known to fail, with the reason: a line "test id: reason" each. It is mended there, and the line goes.
KNOWN_FAILURES = Path(__file__).parent / "known_failures.txt"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    torch.set_num_threads(1)
    lines = KNOWN_FAILURES.read_text(encoding="utf-8").splitlines() if KNOWN_FAILURES.is_file() else []
    reasons = dict(line.rsplit(": ", 1) for line in lines if line and not line.startswith("#"))
    for item in items:
        if reason := reasons.get(item.nodeid):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
