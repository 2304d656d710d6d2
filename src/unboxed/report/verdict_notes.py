"""Verdicts as the page prints them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..cards import Card
from ..checks.verdict import (
    FAIL,
    GRADES,
    INCONCLUSIVE,
    NOT_APPLICABLE,
    PASS,
    Verdict,
    capitalize_and_end_with_period,
)
from ..diagnosis import REPORT_BUG_TEXT
from ..errors import UnboxedError
from .blocks import RankedMethod
from .finding import CheckNote
from .words import error_sentence

LOG = logging.getLogger("unboxed")

MAP_LEGEND = "Red raises the score of that class, blue lowers it."
TONE_BY_GRADE = dict(zip(GRADES, ("good", "fair", "bad", ""), strict=True))


def check_note_from_verdict(verdict: Verdict) -> CheckNote:
    return CheckNote(f"{verdict.badge.capitalize()}. {verdict.sentence}", TONE_BY_GRADE[verdict.grade])


def trusted_method_text(name: str, verdict: Verdict) -> str:
    """The method that a page trusts most, and how far, to end a sentence."""
    how_far = {
        PASS: "the method that the checks on this model trust most",
        INCONCLUSIVE: "the best method here, though its checks on this model are inconclusive",
        FAIL: "but no method passes its checks on this model: don't rely on it",
    }
    return f"{name}, {how_far.get(verdict.grade, 'which could not be checked on this model')}"


def checks_text(verdict: Verdict) -> str:
    """How the checks on this model went, for a caption."""
    words = {PASS: "passes its checks", INCONCLUSIVE: "checks inconclusive", FAIL: "fails its checks"}
    return words.get(verdict.grade, "not checked")


def ranked_method(verdict: Verdict, card: Card | None, more: str = "") -> RankedMethod:
    """A method with its verdict, `more` words on it, and what its maps show where it has a card."""
    shows, does_not_show = (card.shows, card.does_not_show) if card else ("", "")
    sentence = verdict.sentence + more
    return RankedMethod(verdict.method, verdict.badge, sentence, shows, does_not_show, TONE_BY_GRADE[verdict.grade])


def verdict_or_failure(judge: Callable[[], Verdict], method: str, n_examples: int) -> Verdict:
    """The verdict, or of a method with a bug one that says so: it is no reason to lose the verdicts on the others."""
    try:
        return judge()
    except UnboxedError:
        raise
    except Exception as error:
        LOG.warning("the method %r failed", method, exc_info=True)
        sentence = capitalize_and_end_with_period(f"{error_sentence(error)}; {REPORT_BUG_TEXT}")
        return Verdict(method, NOT_APPLICABLE, "fails on this model", sentence, (), n_examples)
