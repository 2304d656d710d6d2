"""What a shell completes: the names of methods, read from their cards when the shell asks; and attacks in `--help`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


def complete_methods(incomplete: str) -> list[tuple[str, str]]:
    """The methods whose names begin so, with what they show."""
    from ..cards import cards

    return [(card.key, card.shows) for card in cards() if card.key.startswith(incomplete)]


def complete_attributions(incomplete: str) -> list[tuple[str, str]]:
    """The methods that `unboxed explain` can run."""
    from ..checks.ranking import attribution_cards

    return [(name, card.shows) for name, card in attribution_cards().items() if name.startswith(incomplete)]


def complete_sections(incomplete: str) -> list[tuple[str, str]]:
    """The sections of a report."""
    from ..report import SECTIONS

    return [(section.slug, section.title) for section in SECTIONS if section.slug.startswith(incomplete)]


def complete_attacks(incomplete: str) -> list[tuple[str, str]]:
    """The attacks that `unboxed attack` can run."""
    from .attack import attack_cards

    return [(card.key, card.shows) for card in attack_cards() if card.key.startswith(incomplete)]


class AttackListingCommand(TyperCommand):
    """A command whose help lists the attacks: read from their cards when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from .attack import attack_cards

        cards = attack_cards()
        within, minimal = (", ".join(c.key for c in cards if c.minimal is m) for m in (False, True))
        self.epilog = f"Attacks within eps: {within}. Attacks that search for the smallest change: {minimal}."
        super().format_help(ctx, formatter)
