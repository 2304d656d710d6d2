"""Which pairs of methods and awkward models the contract tests try: all of them, or a covering set."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

from contracts.common import CARDS, MODELS, REFUSED
from unboxed.testing import contracts, covering

Pair = tuple[str, str]
ALL = [(name, model) for name in CARDS for model in MODELS if (name, model) not in REFUSED]


@cache
def chosen() -> tuple[Pair, ...]:
    return tuple(covering.covering_method_model_pairs(CARDS.values(), MODELS, REFUSED))


def failures(name: str, model: str) -> Collection[str]:
    """Where the model fails under a method: each place on some of its models, all of them where it takes few."""
    tried = [other for method, other in chosen() if method == name]
    every = contracts.FAILURES
    return every if len(tried) < len(every) or model not in tried else [every[tried.index(model) % len(every)]]


def each(some: list[str], check: object) -> Iterator[str]:
    """The messages of all that fail, not of the first alone."""
    for one in some:
        try:
            check(one)  # type: ignore[operator]
        except AssertionError as error:
            yield str(error)
