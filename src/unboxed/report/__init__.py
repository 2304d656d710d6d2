"""The main job: a page that opens a model, made of sections. A later family adds its own by one line in `SECTIONS`.

A section is a file here; what it computes moves into a family, what it draws into `plots`.
"""

from __future__ import annotations

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
from ..atomic_write import encode_utf8
from ..box import Box
from ..checks.verdict_cache import VerdictCache
from ..errors import InputError, UnboxedError, UnboxedWarning, WriteError
from ..validation import check_seed, suggest
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
from .context import ReportContext, Section
from .folder import FACTS_FILE, PAGE_FILE, ReportFolder
from .pictures import PictureStore
from .render import SectionResult, render_page
from .skipped import skipped_text
from .source import ReportData
from .survey import run_survey
from .words import error_sentence

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


VERDICTS_FILE = "verdicts.json"
SINGLE_THREAD_BATCH = 256  # examples whose activations fit in one automatic batch


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
    max_examples: int | None = None,
) -> Report:
    """Write a self-contained page about the model to `out`/index.html, with report.json and the pictures beside it.

    `data`: a Dataset of (input, label), or tensors (x, y); without labels there is everything but accuracy. At most
    `most` examples are looked at (by default about as many as a minute allows). `judge`: another, robust model that
    names the class images. `sections`: slugs, or sections of one's own. A section that fails is told in the page and in
    `failures`; the others are written. Raises WriteError, DataError, InputError and OutputError before anything is
    written.
    """
    selected, seed = _select_sections(sections), check_seed(seed)
    with ReportFolder(out) as folder, _single_thread_if_small(box):
        source = ReportData(data, box)
        with tqdm(total=len(selected) + 1, desc="Asking the model", disable=quiet, file=sys.stderr, leave=False) as bar:
            results = run_survey(box, source, max_examples)
            bar.update()
            context = ReportContext(
                box, source, results, PictureStore(folder), judge, seed, command, verdict_cache=_load_verdicts(folder)
            )
            parts = [_build_part(context, section, bar) for section in selected]
        failures = {p.slug: p.failure for p in parts if p.failure}
        folder.stage(PAGE_FILE, encode_utf8(render_page(context, parts)))
        folder.stage(VERDICTS_FILE, context.verdict_cache.to_json())
        folder.stage(FACTS_FILE, _facts_json(context, folder, failures))
        published = Report(folder.publish(), failures)
    if (skipped_note := skipped_text(source, results)) and not quiet:
        print(f"{source.name}: {skipped_note}; the page lists them.", file=sys.stderr)
    return published


@contextmanager
def _single_thread_if_small(box: Box) -> Iterator[None]:
    """Small models run on one thread: several, waiting for one another on busy cores, took up to eight times as
    long."""
    n_threads = torch.get_num_threads()
    if box.batch_limit >= SINGLE_THREAD_BATCH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _select_sections(sections: Sequence[str | Section] | None) -> list[Section]:
    by_slug = {s.slug: s for s in SECTIONS}
    selected = []
    for section in SECTIONS if sections is None else sections:
        if isinstance(section, str) and section not in by_slug:
            raise InputError(f"the report has no section {section!r}; {suggest(section, by_slug, len(by_slug))}")
        selected.append(by_slug[section] if isinstance(section, str) else section)
    return selected


def _build_part(context: ReportContext, section: Section, bar: tqdm[Any]) -> SectionResult:
    """One section, come what may."""
    bar.set_description(section.title)
    try:
        if context.interrupted:
            return SectionResult(section.title, section.slug, [], "not made: the work was interrupted")
        if reason := section.reason_unfit(context):
            return SectionResult(section.title, section.slug, [], reason_unfit=reason)
        blocks = _build_blocks(context, section)
        return SectionResult(section.title, section.slug, blocks, "interrupted: only a part" * context.interrupted)
    except KeyboardInterrupt:
        context.interrupted = True
        return SectionResult(section.title, section.slug, [], "not made: the work was interrupted")
    except WriteError:  # no other section could be written either
        raise
    except Exception as error:  # one section that fails is no reason to lose the others
        LOG.warning("the section %r failed", section.title, exc_info=not isinstance(error, UnboxedError))
        return SectionResult(section.title, section.slug, [], error_sentence(error))
    finally:
        bar.update()


def _build_blocks(context: ReportContext, section: Section) -> list[Block]:
    """The section's blocks; what its methods warn of stands above the pictures, where their reader finds it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnboxedWarning)
        blocks = list(section.build(context))
    for warning in [w for w in caught if not issubclass(w.category, UnboxedWarning)]:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    notes = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UnboxedWarning))
    return [*(Note(f"Note: {note}.") for note in notes), *blocks]


def _load_verdicts(folder: ReportFolder) -> VerdictCache:
    """The verdicts that an earlier report in this folder found."""
    with suppress(OSError):
        return VerdictCache((folder.out / VERDICTS_FILE).read_bytes())
    return VerdictCache()


def _facts_json(context: ReportContext, folder: ReportFolder, failures: dict[str, str]) -> bytes:
    facts = {
        "unboxed": __version__,
        "model": type(context.box.model).__name__,
        "data": context.data.name,
        "classes": list(context.survey.classes),
        "answer": context.title_text,
        "headline": context.headline,
        **context.facts,
        "failures": failures,
        "files": [name for name in folder.files if name not in (PAGE_FILE, FACTS_FILE, VERDICTS_FILE)],
    }
    without_nan = json.loads(json.dumps(facts, default=str), parse_constant=lambda word: None)  # JSON has no NaN
    return encode_utf8(json.dumps(without_nan, indent=1, ensure_ascii=False))


class _CallableModule(ModuleType):
    """`unboxed.report` is this module once it has been imported, and is called all the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
