"""A check of many cases in one test: all that fail are named, not the first alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def check_each(cases: Iterable[Any], check: Callable[..., Any]) -> None:
    """Run a check on each case (a tuple holds its arguments); the traceback is that of the first that fails."""
    errors = dict[str, BaseException]()
    for case in cases:
        arguments = case if isinstance(case, tuple) else (case,)
        try:
            check(*arguments)
        except (Exception, pytest.fail.Exception) as error:
            errors[", ".join(map(case_name, arguments))] = error
    if errors:
        texts = [f"{name}: {type(error).__name__}: {error}" for name, error in errors.items()]
        raise AssertionError(f"{len(errors)} fail:\n" + "\n".join(texts)) from next(iter(errors.values()))


def case_name(argument: Any) -> str:
    return str(getattr(argument, "__name__", argument))


def each(cases: Iterable[Any]) -> Callable[[Callable[..., None]], Any]:
    """Makes a check of one case the test of all; the check of one stays reachable, as `check` of the test."""

    cases = list(cases)

    def decorate(check: Callable[..., None]) -> Any:
        def test() -> None:
            check_each(cases, check)

        test.__doc__, test.check = check.__doc__, check  # type: ignore[attr-defined]
        return test

    return decorate
