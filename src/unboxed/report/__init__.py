"""The main job: a page that opens a model, made of sections. A later family adds its own by one line in `SECTIONS`.

A section is a file here; what it computes moves into a family, what it draws into `plots`.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..atomic_write import encoded
from ..box import Box
from ..checks.remembered import Remembered
from ..errors import InputError, UnboxedError, UnboxedWarning, WriteError
from ..validation import check_seed
from . import (
    activations,
    adversarial,
    attribution,
    change,
    channels,
    checks,
    compare,
    dream,
    inversion,
    map,
    overview,
    reproduce,
    synthesis,
    units,
)
from .blocks import Block, Note
from .context import Context, Section
from .folder import FACTS, PAGE, Folder
from .pictures import Pictures
from .render import Part, page
from .skipped import skipped
from .source import Source
from .survey import survey
from .words import sentence

LOG = logging.getLogger("unboxed")

__all__ = ["SECTIONS", "Report", "Section", "report"]

SECTIONS: list[Section] = [
    overview.SECTION,
    activations.SECTION,
    units.SECTION,
    map.SECTION,
    synthesis.SECTION,
    channels.SECTION,
    inversion.SECTION,
    dream.SECTION,
    attribution.SECTION,
    checks.SECTION,
    adversarial.SECTION,
    change.SECTION,
    compare.SECTION,
    reproduce.SECTION,
]


VERDICTS = "verdicts.json"
SMALL = 256  # examples whose activations fit in one automatic batch


@dataclass(frozen=True)
class Report:
    path: Path  # of the page
    failures: dict[str, str]  # {section: what went wrong}


def report(
    box: Box,
    data: Any,
    out: str | os.PathLike[str],
    *,
    judge: Box | None = None,
    sections: Sequence[str | Section] | None = None,
    seed: int = 0,
    quiet: bool = False,
    command: str | None = None,
    most: int | None = None,
) -> Report:
    """Write a self-contained page about the model to `out`/index.html, with report.json and the pictures beside it.

    `data`: a Dataset of (input, label), or tensors (x, y); without labels there is everything but accuracy. At most
    `most` examples are looked at (by default about as many as a minute allows). `judge`: another, robust model that
    names the class images. `sections`: slugs, or sections of one's own. A section that fails is told in the page and in
    `failures`; the others are written. Raises WriteError, DataError, InputError and OutputError before anything is
    written.
    """
    chosen, seed = _chosen(sections), check_seed(seed)
    with Folder(out) as folder, _threads(box):
        source = Source(data, box)
        with tqdm(total=len(chosen) + 1, desc="Asking the model", disable=quiet, file=sys.stderr, leave=False) as bar:
            seen = survey(box, source, most)
            bar.update()
            context = Context(box, source, seen, Pictures(folder), judge, seed, command, remembered=_remembered(folder))
            parts = [_part(context, section, bar) for section in chosen]
        failures = {p.slug: p.failure for p in parts if p.failure}
        folder.put(PAGE, encoded(page(context, parts)))
        folder.put(VERDICTS, context.remembered.text())
        folder.put(FACTS, _facts(context, folder, failures))
        made = Report(folder.publish(), failures)
    if (told := skipped(source, seen)) and not quiet:
        print(f"{source.name}: {told}; the page lists them.", file=sys.stderr)
    return made


@contextmanager
def _threads(box: Box) -> Iterator[None]:
    """Small models run on one thread: several, waiting for one another on busy cores, took up to eight times as
    long."""
    before = torch.get_num_threads()
    if box.batch_limit >= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(sections: Sequence[str | Section] | None) -> list[Section]:
    known = {s.slug: s for s in SECTIONS}
    chosen = []
    for section in SECTIONS if sections is None else sections:
        if isinstance(section, str) and section not in known:
            near = difflib.get_close_matches(section, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"the report has no section {section!r}; {hint}there are {', '.join(known)}")
        chosen.append(known[section] if isinstance(section, str) else section)
    return chosen


def _part(context: Context, section: Section, bar: tqdm[Any]) -> Part:
    """One section, come what may."""
    bar.set_description(section.title)
    try:
        if context.interrupted:
            return Part(section.title, section.slug, [], "not made: the work was interrupted")
        if unfit := section.unfit(context):
            return Part(section.title, section.slug, [], unfit=unfit)
        blocks = _built(context, section)
        return Part(section.title, section.slug, blocks, "interrupted: only a part" * context.interrupted)
    except KeyboardInterrupt:
        context.interrupted = True
        return Part(section.title, section.slug, [], "not made: the work was interrupted")
    except WriteError:  # no other section could be written either
        raise
    except Exception as error:  # one section that fails is no reason to lose the others
        LOG.warning("the section %r failed", section.title, exc_info=not isinstance(error, UnboxedError))
        return Part(section.title, section.slug, [], sentence(error))
    finally:
        bar.update()


def _built(context: Context, section: Section) -> list[Block]:
    """The section's blocks; what its methods warn of stands above the pictures, where their reader finds it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UnboxedWarning)
        blocks = list(section.build(context))
    for other in [w for w in said if not issubclass(w.category, UnboxedWarning)]:
        warnings.showwarning(other.message, other.category, other.filename, other.lineno)
    notes = dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UnboxedWarning))
    return [*(Note(f"Note: {note}.") for note in notes), *blocks]


def _remembered(folder: Folder) -> Remembered:
    """The verdicts that an earlier report in this folder found."""
    with suppress(OSError):
        return Remembered((folder.out / VERDICTS).read_bytes())
    return Remembered()


def _facts(context: Context, folder: Folder, failures: dict[str, str]) -> bytes:
    facts = {
        "unboxed": __version__,
        "model": type(context.box.model).__name__,
        "data": context.source.name,
        "classes": list(context.survey.classes),
        "answer": context.answer,
        "headline": context.headline,
        **context.facts,
        "failures": failures,
        "files": [name for name in folder.files if name not in (PAGE, FACTS, VERDICTS)],
    }
    plain = json.loads(json.dumps(facts, default=str), parse_constant=lambda word: None)  # JSON has no NaN
    return encoded(json.dumps(plain, indent=1, ensure_ascii=False))


class _Callable(ModuleType):
    """`unboxed.report` is this module once it has been imported, and is called all the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
