"""Values of every method on every awkward model are those on the plain one, and split batches give the same.

Of a method whose values may differ (exempt from "awkward") only the covering set runs, where batches are split.

A file of its own, so that it runs beside `test_contracts.py`.
"""

from __future__ import annotations

import pytest
import torch

from contracts.common import CARDS, MODELS, make_case
from contracts.pairs import ALL, chosen, each
from contracts.trace import changes, snapshot
from unboxed.testing import contracts


@pytest.mark.parametrize("model", MODELS)
def test_values(model: str, request: pytest.FixtureRequest) -> None:
    """All methods on one box, as a user has it, and together they leave no trace."""
    split = set(ALL) if request.config.getoption("--all-pairs") else set(chosen())
    names = [name for name, other in ALL if other == model]
    some = [n for n in names if "awkward" not in CARDS[n].exempt or (n, model) in split]
    c = make_case(model, torch.float64)

    def check(name: str) -> None:
        contracts.check_double_precision_contracts(CARDS[name], model, c, batches=(name, model) in split)

    before = snapshot(c.box.model, c.x, c.y)
    assert list(each(some, check)) == []
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == []
