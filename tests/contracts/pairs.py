"""Which pairs of methods and awkward models the contract tests try: all of them, or a covering set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from contracts.common import CARDS, MODELS, REFUSED
from unboxed.testing import covering

Pair = tuple[str, str]
ALL = [(name, model) for name in CARDS for model in MODELS if (name, model) not in REFUSED]


@cache
def chosen() -> tuple[Pair, ...]:
    return tuple(covering.covering_method_model_pairs(CARDS.values(), MODELS, REFUSED))


def each(some: list[str], check: object) -> Iterator[str]:
    """The messages of all that fail, not of the first alone."""
    for one in some:
        try:
            check(one)  # type: ignore[operator]
        except AssertionError as error:
            yield str(error)
