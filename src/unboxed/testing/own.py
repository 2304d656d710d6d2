"""The contracts for a method of your own, in one line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..cards import Card
from ..errors import InputError, UnboxedError
from . import contracts, covering, models
from .cases import call, case


def check_method(
    method: Callable[..., Any], *, example: Callable[..., Any] | None = None, on: Collection[str] | None = None
) -> None:
    """Check that a method of your own keeps the contracts that every method of Unboxed keeps.

    Use it in a test of your own: it runs the method on small awkward models (in-place ReLUs, modules called twice,
    dict outputs, BatchNorm in train mode, dropout left on, bfloat16, scripted, compiled, ...) and looks at what it
    leaves behind (also when the model fails half-way), at seeds, types, bounds, warnings, batches and values. A model
    that the method refuses by a clear `UnboxedError` is no fault.

    Args:
        method: a function whose first parameter is a box, with a card (`@unboxed.card`) or without. `batch_size` and
            `seed`, where it takes them, are tried.
        example: `example(method, box, x, y)`, its smallest useful call, for images x (3, C, H, W) and classes y (3,).
            None takes the card's, or `method(box, x)`.
        on: names of models of `unboxed.testing.models.NETS`; None takes some of each kind.

    Raises:
        AssertionError: names every contract that is broken, on which model, and how.
        InputError: `on` names a model that there is not.

    Example:
        >>> from unboxed.testing import check_method
        >>> def brightness(box, x, *, batch_size="auto"):
        ...     return box.read(x, ["input"], batch_size=batch_size)["input"]
        >>> check_method(brightness, on=["plain", "dict_output"])
    """
    card = _card(method, example)
    if unknown := sorted({*(on or ())} - {*models.NETS}):
        raise InputError(f"there is no model {unknown[0]!r} to test on; choose among {', '.join(models.NETS)}")
    names = on if on is not None else [name for _, name in covering.covering([card], list(models.NETS))]
    broken = [message for name in names for message in _broken(card, name)]
    if broken:
        raise AssertionError("\n".join(broken))


def _card(method: Callable[..., Any], example: Callable[..., Any] | None) -> Card:
    own = getattr(method, "card", None)
    if isinstance(own, Card):
        return own
    name = getattr(method, "__name__", type(method).__name__)
    return Card(method, "own", name, "", "", "", example or (lambda method, box, x, y: method(box, x)))


def _broken(card: Card, model: str) -> list[str]:
    try:
        call(card, case(model))
    except UnboxedError:
        checks: list[Callable[[Card, str], None]] = [contracts.check_refusal]
    else:
        checks = [contracts.check_run, contracts.check_values]
    found = []
    for check in checks:
        try:
            check(card, model)
        except AssertionError as error:
            found.append(str(error))
    return found
