"""Verdicts as the page prints them."""

from __future__ import annotations

from ..cards import Card
from ..checks.verdict import GRADES, Verdict
from .blocks import RankedMethod
from .finding import CheckNote

TONE_BY_GRADE = dict(zip(GRADES, ("good", "fair", "bad", ""), strict=True))


def check_note_from_verdict(verdict: Verdict) -> CheckNote:
    return CheckNote(f"{verdict.badge.capitalize()}. {verdict.sentence}", TONE_BY_GRADE[verdict.grade])


def ranked_method(verdict: Verdict, card: Card | None, more: str = "") -> RankedMethod:
    """A method with its verdict, `more` words on it, and what its maps show where it has a card."""
    shows, does_not_show = (card.shows, card.does_not_show) if card else ("", "")
    sentence = verdict.sentence + more
    return RankedMethod(verdict.method, verdict.badge, sentence, shows, does_not_show, TONE_BY_GRADE[verdict.grade])
