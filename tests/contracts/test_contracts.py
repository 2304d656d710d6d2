"""The contracts for every method on every awkward model: few runs, many observers (`unboxed.testing.contracts`).

Values are compared on all pairs; what a method leaves behind, its seed, types, bounds, warnings and batches on a
covering set of pairs (`unboxed.testing.covering`), and on all of them with `--all-pairs` (`make contracts`).
"""

from __future__ import annotations

import pytest

from contracts.common import CARDS, MODELS, REFUSED, make_case
from contracts.pairs import ALL, chosen, each, failures
from unboxed.testing import contracts, covering, models


@pytest.mark.parametrize("model", MODELS)
def test_run(model: str, request: pytest.FixtureRequest) -> None:
    """Every method runs and fails on a box on which others did, and gives what it gives on a fresh one."""
    every = request.config.getoption("--all-pairs")
    c = make_case(model)

    def check(name: str) -> None:
        planted = contracts.FAILURES if every else failures(name, model)
        contracts.check_run_contracts(CARDS[name], model, c, failures=planted)

    some = [name for name, other in (ALL if every else chosen()) if other == model]
    assert list(each(some, check)) == []


@pytest.mark.parametrize("model", MODELS)
def test_refusals(model: str) -> None:
    c = make_case(model)
    some = [name for name, other in REFUSED if other == model]

    def check(name: str) -> None:
        contracts.check_refusal(CARDS[name], model, REFUSED[name, model], c)

    assert list(each(some, check)) == []


def test_the_covering_set_covers() -> None:
    """Every method on each kind of model that it takes, every model under each mechanism; far fewer than all."""
    some = set(chosen())
    assert some <= set(ALL)
    assert len(some) < len(ALL) / 7

    def kinds(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
        return {(name, models.kind_of_model(model)) for name, model in pairs}

    def mechanisms(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
        return {(model, mechanism) for name, model in pairs for mechanism in covering.mechanisms(CARDS[name])}

    assert kinds(some) >= {(name, kind) for name, kind in kinds(set(ALL)) if kind != covering.PLAIN_KIND}
    assert mechanisms(some) == mechanisms(set(ALL))
    planted = {(name, at) for name, model in some for at in failures(name, model)}
    assert planted == {(name, at) for name, _ in ALL for at in contracts.FAILURES}
