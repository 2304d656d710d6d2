"""A sentence about files of the data that could not be read."""

from __future__ import annotations

from .source import ReportData
from .survey import Survey
from .words import count_noun


def skipped_text(source: ReportData, survey: Survey) -> str:
    """Like "1 image is broken and 2 files are not images"; "" where everything could be read."""
    n_files = len(source.skipped)
    n_broken = min(survey.n_broken, n_files)
    n_other = n_files - n_broken
    only_not_images = sum(why == "not an image" for _, why in source.skipped) >= n_other
    state = ("is not an image", "are not images") if only_not_images else ("is skipped", "are skipped")
    words = [_count_with_verb(n_broken, "image", "is broken", "are broken"), _count_with_verb(n_other, "file", *state)]
    return " and ".join(filter(None, words))


def skipped_note(source: ReportData, survey: Survey) -> str:
    """For the command line; "" where everything could be read."""
    text = skipped_text(source, survey)
    return f"note: {source.name}: {text} (left out); the page lists them." if text else ""


def left_out_sentence(source: ReportData, survey: Survey) -> str:
    """For the top of the page: files that could not be read, and examples without a label; "" where there are none."""
    n_unlabeled = survey.n_unlabeled + source.n_unlabeled
    unlabeled = _count_with_verb(n_unlabeled, "example", "has no label", "have no label")
    texts = [text for text in (skipped_text(source, survey), unlabeled) if text]
    return f"Left out: {'; '.join(texts)}." if texts else ""


def _count_with_verb(n: int, noun: str, singular: str, plural: str) -> str:
    return "" if n == 0 else f"{count_noun(n, noun)} {singular if n == 1 else plural}"
