"""Cards: what each method says of itself. They feed the command line, the report, the docs and the law tests."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import InputError

Method = TypeVar("Method", bound=Callable[..., Any])
FAMILIES = ("activations", "synthesis", "attribution", "adversarial", "robustness")


@dataclass(frozen=True)
class Card:
    """A method's own words. `example(method, box, x, y)` is its smallest useful call."""

    method: Callable[..., Any]
    family: str
    name: str
    source: str
    tells: str
    not_tells: str
    example: Callable[..., Any]
    needs: tuple[str, ...] = ()  # of NEEDS
    exempt: Mapping[str, str] = field(default_factory=dict)
    laws: tuple[str, ...] = ()  # of attribution, that it keeps exactly: see LAWS
    norms: tuple[str, ...] = ()  # that an attack takes; none: all


NEEDS = {
    "pixels": "inputs that are images alone (Pixels)",
    "images": "one image among the inputs",
    "relu": "ReLUs",
    "attention": "attention layers",
}


LAWS = {
    "contribution": "on a linear model, exactly w * (x - baseline)",
    "completeness": "sums to score(x) - score(baseline)",
    "dummy": "what the model ignores gets exactly zero",
    "symmetry": "what plays the same part with the same value gets the same share",
}


def card(
    *,
    name: str,
    source: str,
    tells: str,
    not_tells: str,
    example: Callable[..., Any],
    needs: tuple[str, ...] = (),
    exempt: Mapping[str, str] | None = None,
    laws: tuple[str, ...] = (),
    norms: tuple[str, ...] = (),
) -> Callable[[Method], Method]:
    """Attach a card to a method and return the method unchanged. `exempt={"law": "why"}` switches one law off.

    Its family is the package that the method lies in, and "own" for a method of one's own, in a script or a module.
    Raises InputError for needs that there are not.
    """

    def attach(method: Method) -> Method:
        if unknown := sorted({*needs} - {*NEEDS}):
            raise InputError(f"a card's needs are of {', '.join(NEEDS)}; got {', '.join(unknown)}")
        package, _, module = str(method.__module__).partition(".")  # None where code was executed without a module
        family = module.partition(".")[0] if package == "unboxed" and module else "own"
        own = Card(method, family, name, source, tells, not_tells, example, needs, dict(exempt or {}), laws, norms)
        method.card = own  # type: ignore[attr-defined]
        return method

    return attach


def cards() -> tuple[Card, ...]:
    """Every method's card, family by family, in the order of the families' own namespaces."""
    found: dict[str, Card] = {}
    for family in FAMILIES:
        room = importlib.import_module(f"unboxed.{family}")
        for value in vars(room).values():
            own = getattr(value, "card", None)
            if isinstance(own, Card):
                found.setdefault(f"{family}.{own.method.__name__}", own)
    return tuple(found.values())
