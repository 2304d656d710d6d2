"""Which norms an attack takes: asked before an evaluation runs, and of what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..cards import Card
from ..errors import InputError


def check_norms(attacks: Mapping[str, Callable[..., Any] | None], norm: str) -> None:
    """Refuse attacks whose cards leave the norm out, before any of them runs. Raises InputError."""
    for name, attack in attacks.items():
        card = getattr(attack.func if isinstance(attack, partial) else attack, "card", None)
        if isinstance(card, Card) and card.norms and norm.lower() not in card.norms:
            known = " or ".join(f'"{n}"' for n in card.norms)
            raise InputError(
                f'{name} ({card.method.__name__}) takes norm {known}, and the evaluation is in "{norm}": leave it out, '
                "or give another attack in its place (pgd, fab and fmn take all norms)"
            )


def same_norm(name: str, measured: str, wanted: str) -> None:
    """Raise InputError for an attack that measures in another norm: it has no `norm`, or one of its own was given."""
    if measured != wanted.lower():
        raise InputError(
            f"{name} measures distances in {measured}, and the evaluation is in {wanted}: leave it out, or evaluate "
            f'with norm="{measured}"'
        )
