"""Verdicts as the page prints them."""

from __future__ import annotations

from ..checks.verdict import GRADES, Verdict
from .finding import CheckNote

TONE_BY_GRADE = dict(zip(GRADES, ("good", "fair", "bad", ""), strict=True))


def check_note_from_verdict(verdict: Verdict) -> CheckNote:
    return CheckNote(f"{verdict.badge.capitalize()}. {verdict.sentence}", TONE_BY_GRADE[verdict.grade])
