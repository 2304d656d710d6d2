"""Which inputs and norms an attack takes: asked before an evaluation runs, and of what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..box import Box
from ..cards import Card
from ..engine.optimize.constraints import NORMS
from ..engine.read.sizes import images_only
from ..errors import InputError
from ..inputs.pixels import Pixels

Attacks = Mapping[str, Callable[..., Any]]


def card_of(attack: Callable[..., Any] | None) -> Card | None:
    """The card of an attack, whatever settings were given with it; None for one without."""
    card = getattr(attack.func if isinstance(attack, partial) else attack, "card", None)
    return card if isinstance(card, Card) else None


def fitting(attacks: Attacks, box: Box, norm: str) -> dict[str, Callable[..., Any]]:
    """Those of the attacks that take the box's inputs and the norm."""
    return {name: a for name, a in attacks.items() if _takes_inputs(card_of(a), box) and _takes_norm(card_of(a), norm)}


def common_norm(attacks: Attacks) -> str:
    """The first of linf, l2 and l1 that all of the attacks take; linf where there is none."""
    return next((n for n in NORMS if all(_takes_norm(card_of(a), n) for a in attacks.values())), "linf")


def _takes_inputs(card: Card | None, box: Box) -> bool:
    return card is None or "pixels" not in card.needs or isinstance(box.inputs, Pixels)


def _takes_norm(card: Card | None, norm: str) -> bool:
    return card is None or not card.norms or norm.lower() in card.norms


def check_inputs(attacks: Attacks, box: Box) -> None:
    """Refuse attacks that take images alone, of a box that takes others, before any runs. Raises InputError."""
    for name, attack in attacks.items():
        if not _takes_inputs(card_of(attack), box):
            images_only(box, f"the attack {name}")


def check_norms(attacks: Mapping[str, Callable[..., Any] | None], norm: str) -> None:
    """Refuse attacks whose cards leave the norm out, before any of them runs. Raises InputError."""
    for name, attack in attacks.items():
        card = card_of(attack)
        if card is not None and not _takes_norm(card, norm):
            known = " or ".join(f'norm="{n}"' for n in card.norms)
            own = card.method.__name__
            who = name if name == own else f"{name} ({own})"
            raise InputError(
                f'{who} takes {known}, and the evaluation is in norm="{norm}": give that norm, leave it out, or give '
                "another attack in its place (pgd, fab and fmn take all norms)"
            )


def same_norm(name: str, measured: str, wanted: str) -> None:
    """Raise InputError for an attack that measures in another norm: it has no `norm`, or one of its own was given."""
    if measured != wanted.lower():
        raise InputError(
            f"{name} measures distances in {measured}, and the evaluation is in {wanted}: leave it out, or evaluate "
            f'with norm="{measured}"'
        )
