"""The contracts for a method of your own, in one line."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from ..cards import Card
from ..errors import InputError, UnboxedError
from . import contracts, covering, models, rows
from .cases import call_example, make_case, method_name


def check_method(
    method: Callable[..., Any], *, example: Callable[..., Any] | None = None, on: Collection[str] | None = None
) -> None:
    """Check that a method of your own keeps the contracts that every method of Unboxed keeps.

    Use it in a test of your own: it runs the method on small awkward models (in-place ReLUs, modules called twice,
    dict outputs, BatchNorm in train mode, dropout left on, bfloat16, scripted, compiled, ...) and checks what it
    leaves behind (also when the model fails half-way), seeds, types, bounds, warnings, batches and values. A model that
    the method refuses by a clear `UnboxedError` is no fault.

    Two contracts are about the method's own inputs. "rows": each input alone gets the row that it gets among others,
    in results with one row per input (with `seed`, the first input alone). "target": of a method that takes `target`,
    maps of different classes differ; whether a map is right for its class is not checked.

    Args:
        method: A function whose first parameter is a box, with a card (`from unboxed.cards import card`) or without.
            `batch_size`, `seed` and `target`, where it takes them, are tried. A card's `exempt={"contract": "why"}`
            switches a contract off.
        example: `example(method, box, x, y)`, its smallest useful call, for images x (N, C, H, W) and classes y (N,),
            3 of them or 1. None takes the card's, or `method(box, x)`.
        on: Names of models of `unboxed.testing.models.MODELS`; None takes some of each kind.

    Raises:
        AssertionError: names every contract that is broken, on which model, and how; also where the method raises
            another error than an `UnboxedError`.
        InputError: when `method` or `example` can't be called so, or `on` is empty or names an unknown model.

    Example:
        >>> from unboxed.testing import check_method
        >>> def brightness(box, x, *, batch_size="auto"):
        ...     return box.read(x, ["input"], batch_size=batch_size)["input"]
        >>> check_method(brightness, on=["plain", "dict_output"])
    """
    card = _card_or_default(method, example)
    names = (
        _check_model_names(on)
        if on is not None
        else [name for _, name in covering.covering_method_model_pairs([card], list(models.MODELS))]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the contracts see warnings for themselves
        errors = [error for name in names for error in _contract_errors(card, name)]
    if errors:
        cause = next((error.__cause__ for error in errors if error.__cause__), None)
        raise contracts.ContractError("\n".join(map(str, errors))) from cause


def _card_or_default(method: Callable[..., Any], example: Callable[..., Any] | None) -> Card:
    card = getattr(method, "card", None)
    if example is not None and not callable(example):
        raise InputError(f"example is a function, example(method, box, x, y); got {example!r}")
    if isinstance(card, Card):
        return card if example is None else replace(card, example=example)
    if not callable(method):
        raise InputError(f"check_method takes a function whose first parameter is a box; got {method!r}")
    name = getattr(method, "__name__", type(method).__name__)
    if example is None and not _accepts_box_and_inputs(method):
        raise InputError(f"{name} can't be called as {name}(box, x): give example=, its smallest useful call")
    return Card(method, "own", name, "", "", "", example or (lambda method, box, x, y: method(box, x)))


def _accepts_box_and_inputs(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(method).bind(None, None)
    except TypeError:
        return False
    return True


def _check_model_names(on: Collection[str]) -> list[str]:
    """The models to test on. Raises InputError."""
    if isinstance(on, str) or not isinstance(on, Collection):
        raise InputError(f"on is a list of names of models, such as ['plain']; got {on!r}")
    if not on:
        raise InputError("on names no model, so nothing would be checked; None takes some of each kind")
    if unknown := [name for name in on if name not in [*models.MODELS]]:
        raise InputError(f"there is no model {unknown[0]!r} to test on; choose among {', '.join(models.MODELS)}")
    return list(on)


def _contract_errors(card: Card, model: str) -> Iterator[contracts.ContractError]:
    """The broken contracts on a model, check by check; after an error of the method itself, no more checks are run."""
    try:
        for check in _applicable_contract_checks(card, model):
            try:
                check(card, model)
            except contracts.ContractError as error:
                yield error
    except Exception as error:
        error_text = f"{type(error).__name__}: {str(error)[:200]}".removesuffix(": ")
        contract_error = contracts.ContractError(f"{method_name(card)} on {model} raises {error_text}")
        contract_error.__cause__ = error
        yield contract_error


def _applicable_contract_checks(card: Card, model: str) -> list[Callable[[Card, str], None]]:
    try:
        call_example(card, make_case(model))
    except UnboxedError:
        return [contracts.check_refusal]
    target_checks = [rows.check_maps_depend_on_target] if model == "plain" else []
    return [contracts.check_run_contracts, contracts.check_double_precision_contracts, rows.check_rows, *target_checks]
