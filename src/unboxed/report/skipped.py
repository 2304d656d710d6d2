"""Files of the data that could not be read, in words."""

from __future__ import annotations

from .source import Source
from .survey import Survey


def skipped(source: Source, survey: Survey) -> str:
    """Like "1 image is broken and 2 files are no images"; nothing, where everything could be read."""
    files = len(source.skipped)
    broken = min(survey.broken, files)
    rest = files - broken
    plain = sum(why == "not an image" for _, why in source.skipped) >= rest
    state = ("no image" if rest == 1 else "no images") if plain else "passed over"
    words = [_are(broken, "image", "broken"), _are(rest, "file", state)]
    return " and ".join(filter(None, words))


def _are(n: int, what: str, state: str) -> str:
    return "" if n == 0 else f"1 {what} is {state}" if n == 1 else f"{n:,} {what}s are {state}"
