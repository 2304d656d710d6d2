"""The names of a package: what `dir` shows, without the files that it is made of, and other names that people know."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .validation import nearest_names, suggestion_text


def dir_of_exports(package: str, *modules: str) -> Callable[[], list[str]]:
    """The `__dir__` of a package: its public functions, classes and values, and these of its modules.

    >>> import unboxed as ub
    >>> "gradient" in dir(ub.attribution), "grad_cam_plus_plus" in dir(ub.attribution), "_data" in dir(ub.concepts)
    (True, True, False)
    """

    def list_names() -> list[str]:
        names = vars(sys.modules[package])
        exported = [n for n, value in names.items() if not n.startswith("_") and not isinstance(value, ModuleType)]
        exported = [n for n in exported if n not in (dir_of_exports.__name__, getattr_by_alias.__name__)]
        return sorted({*names.get("__all__", exported), *modules})

    return list_names


def getattr_by_alias(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: methods of a family by other names, else an error with the right name.

    >>> import unboxed as ub
    >>> ub.attribution.saliency is ub.attribution.gradient, ub.attribution.GradCAM is ub.attribution.grad_cam
    (True, True)
    >>> ub.attribution.pgd
    Traceback (most recent call last):
    ...
    AttributeError: unboxed.attribution has no 'pgd'; did you mean unboxed.adversarial.pgd?
    """

    def get_by_alias(name: str) -> Any:
        if name.startswith("_") or find_spec(f"{package}.{name}") is not None:  # of a file that is being imported
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        cards = import_module("unboxed.cards")
        if card := cards.find_card_or_none(name, cards.registered_cards(package.rpartition(".")[2])):
            return card.method
        raise AttributeError(_unknown_name_message(package, name))

    return get_by_alias


def import_submodule(package: str, name: str) -> ModuleType:
    """A module of a package that is imported when it is first asked for, else an error with the right name."""
    if find_spec(f"{package}.{name}") is None:
        raise AttributeError(_unknown_name_message(package, name))
    return import_module(f"{package}.{name}")


def _unknown_name_message(package: str, name: str) -> str:
    return f"{package} has no {name!r}; {suggested_name_text(package, name)}"


def suggested_name_text(package: str, name: str) -> str:
    """The end of an error about a name that a package does not have: the method of that name, or the nearest names."""
    cards = import_module("unboxed.cards")
    if card := cards.find_card_or_none(name, cards.cards()):
        return f"did you mean {_full_name_of_method(card)}?"
    if name in dir(sys.modules["unboxed"]):
        return f"did you mean unboxed.{name}?"
    aliases = {alias: c.key for c in cards.registered_cards(package.rpartition(".")[2]) for alias in c.aliases}
    if nearest := nearest_names(name, [*dir(sys.modules[package]), *aliases]):
        return f"did you mean {' or '.join(dict.fromkeys(repr(aliases.get(n, n)) for n in nearest))}?"
    return suggestion_text(name, dir(sys.modules[package]))


def _full_name_of_method(card: Any) -> str:
    is_public = getattr(sys.modules.get(f"unboxed.{card.family}"), card.key, None) is card.method
    return f"unboxed.{card.family}.{card.key}" if is_public else f"{card.method.__module__}.{card.key}"
