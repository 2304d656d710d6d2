"""Which inputs and norms an attack takes: checked before an evaluation runs, and on its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..box import Box
from ..cards import Card, card_of, cards
from ..engine.optimize.constraints import BALL_BY_NORM
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..inputs.pixels import Pixels

AttacksByName = Mapping[str, Callable[..., Any]]


def compatible_attacks(attacks: AttacksByName, box: Box, norm: str) -> dict[str, Callable[..., Any]]:
    """Those of the attacks that take the box's inputs and the norm."""
    return {
        name: attack
        for name, attack in attacks.items()
        if _accepts_inputs(card_of(attack), box) and _accepts_norm(card_of(attack), norm)
    }


def first_common_norm(attacks: AttacksByName) -> str:
    """The first of linf, l2 and l1 that all of the attacks take; linf where there is none."""
    return next(
        (
            candidate
            for candidate in BALL_BY_NORM
            if all(_accepts_norm(card_of(attack), candidate) for attack in attacks.values())
        ),
        "linf",
    )


def _accepts_inputs(card: Card | None, box: Box) -> bool:
    return card is None or "pixels" not in card.needs or isinstance(box.inputs, Pixels)


def _accepts_norm(card: Card | None, norm: str) -> bool:
    return card is None or not card.norms or norm.lower() in card.norms


def check_attacks_accept_inputs(attacks: AttacksByName, box: Box) -> None:
    """Raise InputError for attacks that take only images, where the box takes other inputs."""
    for name, attack in attacks.items():
        if not _accepts_inputs(card_of(attack), box):
            require_images(box, f"the attack {name}")


def _names_of_attacks_with_all_norms() -> list[str]:
    return [card.key for card in cards() if card.returns == "adversarial" and {*BALL_BY_NORM} <= {*card.norms}]


def check_attacks_accept_norm(attacks: Mapping[str, Callable[..., Any] | None], norm: str) -> None:
    """Raise InputError for attacks that do not take the norm."""
    for name, attack in attacks.items():
        card = card_of(attack)
        if card is not None and not _accepts_norm(card, norm):
            allowed_norms = " or ".join(f'norm="{allowed}"' for allowed in card.norms)
            method_name = card.method.__name__
            attack_label = name if name == method_name else f"{name} ({method_name})"
            raise InputError(
                f'{attack_label} takes {allowed_norms}, and the evaluation is in norm="{norm}": give that norm, leave '
                f"it out, or give another attack in its place "
                f"({', '.join(_names_of_attacks_with_all_norms())} take all norms)"
            )


def check_attack_norm(name: str, attack_norm: str, required_norm: str) -> None:
    """Raise InputError for an attack that measured in another norm, having no `norm` or a fixed one."""
    if attack_norm != required_norm.lower():
        raise InputError(
            f"{name} measures distances in {attack_norm}, and the evaluation is in {required_norm}: leave it out, or "
            f'evaluate with norm="{attack_norm}"'
        )
