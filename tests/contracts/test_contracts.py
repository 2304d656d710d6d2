"""The contracts for every method on every awkward model: few runs, many observers (`unboxed.testing.contracts`).

Values are compared on all pairs; what a method leaves behind, its seed, types, bounds, warnings and batches on a
covering set of pairs (`unboxed.testing.covering`), and on all of them with `--all-pairs` (`make contracts`).
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from contracts.common import CARDS, REFUSED
from contracts.pairs import ALL, Pair, chosen, each
from unboxed.testing import contracts, covering, models


def groups(pairs: Iterable[Pair]) -> list[tuple[str, str, list[str]]]:
    """(method, kind of model, the models): an item each."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, model in pairs:
        found.setdefault((name, models.kind_of_model(model)), []).append(model)
    return [(name, kind, some) for (name, kind), some in found.items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--all-pairs")
    if metafunc.function is test_run:
        found = groups(ALL if every else chosen())
    elif metafunc.function is test_refusals:
        found = groups(REFUSED)
    else:
        return
    metafunc.parametrize(("name", "kind", "some"), found, ids=[f"{name}-{kind}" for name, kind, _ in found])


def test_run(name: str, kind: str, some: list[str]) -> None:
    assert list(each(some, lambda model: contracts.check_run_contracts(CARDS[name], model))) == []


def test_refusals(name: str, kind: str, some: list[str]) -> None:
    assert list(each(some, lambda model: contracts.check_refusal(CARDS[name], model, REFUSED[name, model]))) == []


def test_the_covering_set_covers() -> None:
    """Every method on each kind of model that it takes, every model under each mechanism; far fewer than all."""
    some = set(chosen())
    assert some <= set(ALL)
    assert len(some) < len(ALL) / 4
    kinds = {(name, models.kind_of_model(model)) for name, model in some}
    under = {
        (model, mechanism) for name, model in some for mechanism in covering.engine_and_model_modules_used(CARDS[name])
    }
    assert kinds == {(name, models.kind_of_model(model)) for name, model in ALL}
    assert under == {
        (model, mechanism) for name, model in ALL for mechanism in covering.engine_and_model_modules_used(CARDS[name])
    }
