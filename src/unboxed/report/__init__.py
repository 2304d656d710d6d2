"""The report: a page that opens a model, made of sections. A later family adds its own by one line in `SECTIONS`.

A section is a file here, in two halves: `find` calls the families and returns a `Finding`, `show` makes blocks of it.
What a section computes moves into a family, what it draws into `plots`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..argument_names import naming_arguments
from ..atomic_write import encode_utf8
from ..box import Box
from ..checks.control_boxes import sharing_control_boxes
from ..checks.verdict_cache import VerdictCache
from ..errors import InputError, UnboxedError, UnboxedWarning, WriteError, warn
from ..inputs.pixels import Pixels
from ..plots.views import display_in_notebook, has_screen
from ..validation import check_int, suggestion_text, valid_seed
from . import (
    activations,
    adversarial,
    attribution,
    change,
    channels,
    checks,
    compare,
    concepts,
    detectors,
    dream,
    groups,
    influence,
    inversion,
    map,
    overview,
    parts,
    probes,
    reproduce,
    synthesis,
    texts,
    units,
)
from .blocks import Block, Caution
from .column_ranges import with_ranges_of_rows
from .context import ReportContext, Section
from .finding import Finding, NotApplicable
from .folder import PAGE_FILE_NAME, REPORT_JSON_FILE, ReportFolder
from .followed import FollowedExample, followed_examples
from .interrupts import sigterm_as_keyboard_interrupt
from .pictures import PageImageStore
from .render import RenderedSection, render_blocks, render_figures, render_page
from .skipped import skipped_note
from .source import ReportData
from .survey import collect_outputs_and_labels
from .words import error_sentence

LOG = logging.getLogger("unboxed")

__all__ = ["SECTIONS", "Finding", "NotApplicable", "Report", "Section", "report"]

SECTIONS: list[Section[Any]] = [
    overview.SECTION,
    attribution.SECTION,
    texts.WORDS_SECTION,
    groups.SECTION,
    synthesis.SECTION,
    change.SECTION,
    channels.SECTION,
    dream.SECTION,
    adversarial.SECTION,
    texts.SWAPS_SECTION,
    checks.SECTION,
    map.SECTION,
    texts.LAYERS_SECTION,
    units.SECTION,
    probes.SECTION,
    concepts.SECTION,
    parts.SECTION,
    detectors.SECTION,
    activations.SECTION,
    inversion.SECTION,
    compare.SECTION,
    influence.SECTION,
    reproduce.SECTION,
]


VERDICTS_FILE = "verdicts.json"
INTERRUPTED_TEXT = "not run: the work was interrupted"
SMALL_MODEL_MIN_AUTO_BATCH_ROWS = 256  # examples; a model whose automatic batch is as large runs on one thread


@dataclass(frozen=True)
class Report:
    """A written report: the path of its page, {slug: error} of the sections that failed, and what was left out."""

    path: Path
    failures: dict[str, str]
    skipped: str = ""  # a sentence about files that could not be read

    def show(self) -> None:
        """Show a link to the page in the cell of a notebook, else open the page in the browser."""
        if display_in_notebook(self):
            return
        if not (has_screen() and webbrowser.open(self.path.resolve().as_uri())):
            warn(f"there is no screen to open the page on: it is saved as {self.path}")

    def _repr_html_(self) -> str:
        """A link to the page and what is missing from it, for notebooks."""
        link = f'Report: <a href="{escape(self.path.as_posix())}" target="_blank">{escape(str(self.path))}</a>'
        return "<br>".join([link, *(escape(f"section {name} failed: {why}") for name, why in self.failures.items())])


@dataclass
class _ReportInProgress:
    """A report while it is made: the sections so far."""

    context: ReportContext
    pictures: PageImageStore
    sections: list[RenderedSection] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # {slug: finding}, for report.json
    title: str = ""
    headline: list[str] = field(default_factory=list)
    interrupted: bool = False

    @cached_property
    def followed(self) -> list[FollowedExample]:
        """The examples that a reader can follow."""
        return followed_examples(self.context, self.pictures)

    def add(self, slug: str, finding: Finding) -> None:
        """Keep what the page's top and report.json take from a finding; its tensors are freed."""
        self.facts[slug] = finding.to_dict()
        self.title = self.title or finding.title
        self.headline += finding.headline
        self.interrupted = finding.interrupted


@naming_arguments
def report(
    box: Box,
    data: Any,
    out: str | os.PathLike[str],
    *,
    judge: Box | None = None,
    training: Any = None,
    sections: Sequence[str | Section[Any]] | None = None,
    seed: int = 0,
    quiet: bool = False,
    command: str | None = None,
    max_examples: int | None = None,
    example: int | str | None = None,
) -> Report:
    """Write a self-contained page about a model: how good it is, what it sees, why it predicts so, what fools it.

    The first thing to do with a model. The page is `out`/index.html; beside it are report.json (every number of the
    page) and the images. A section that fails is reported in the page and costs no other one. In a new folder the page
    can be read while sections are made; Ctrl-C and SIGTERM keep what is made. For the figures of one
    method call the method; for one image and all attribution methods use `unboxed explain`.

    Args:
        box: The model.
        data: A Dataset of (input, label) with a length, or tensors (x, y) or x. Without labels there is no accuracy.
            Of a model of texts `ub.data.texts(path)`, a list of str or (texts, labels); its page has sections of its
            own.
        out: Folder, made if need be. A report that is already there is replaced, and its verdicts are used again.
        judge: A second, robust model of the same classes that classifies the generated images.
        training: The training data, labeled, for which examples taught the model its answers: (x, y) or a Dataset; or
            the `ub.influence.ModelTraining` that made the model. None leaves that section out.
        sections: Slugs of `SECTIONS`, or sections of your own; None writes all.
        seed: Seed of all random draws: same seed, same result.
        quiet: No progress bar and no messages.
        command: The command that reproduces the page, printed in its last section.
        max_examples: Use at most this many of the examples, evenly spread; None: 10,000, fewer for large inputs.
        example: The example that is followed through the page: its index in the data, or the name of its file; None:
            the most confident error, or where there is none the lowest margin.

    Returns:
        The path of the page, and the errors of sections that failed.

    Raises:
        WriteError: `out` is a file or cannot be written.
        DataError: The data are no data set, are empty, or have labels that the model has no class for.
        InputError: A section of that name or the example does not exist, or a row does not fit the model's inputs.
        OutputError: The model outputs NaN.

    Example:
        >>> import tempfile
        >>> import unboxed as ub
        >>> box, digits = ub.load("zoo:digits-cnn"), ub.data.digits("test").first(8)
        >>> written = ub.report(box, digits, tempfile.mkdtemp(), sections=["overview"], quiet=True)
        >>> written.path.name, written.failures
        ('index.html', {})
    """
    selected, seed = _select_sections(sections, box, has_training=training is not None), valid_seed(seed)
    if isinstance(box.inputs, Pixels) and box.inputs.n_axes != 2:  # sections show signals and volumes as images
        box = box.with_model(box.model, box.inputs.as_image_pixels())
    with sigterm_as_keyboard_interrupt(), ReportFolder(out) as folder, _with_few_threads(box):
        source = ReportData(data, box)
        with tqdm(
            total=len(selected) + 1, desc="Running the model", disable=quiet, file=sys.stderr, leave=False
        ) as bar:
            followed = _row_of_example(example, source)
            survey = collect_outputs_and_labels(box, source, max_examples, followed)
            bar.update()
            verdicts = VerdictCache.read(folder.out / VERDICTS_FILE)
            ranged = with_ranges_of_rows(box, source, survey.rows, training)
            context = ReportContext(ranged, source, survey, judge, seed, command, training, verdicts, followed)
            context.has_ranges_of_data = ranged is not box
            work = _ReportInProgress(context, PageImageStore(folder))
            _make_sections(work, selected, folder, bar)
        failures = {s.slug: s.failure for s in work.sections if s.failure}
        folder.stage(PAGE_FILE_NAME, encode_utf8(_page_html(work)))
        folder.stage(VERDICTS_FILE, context.verdict_cache.to_json())
        folder.stage(REPORT_JSON_FILE, _report_json(work, folder, failures))
        published = Report(folder.publish(), failures, skipped_note(source, survey))
    if published.skipped and not quiet:
        print(published.skipped, file=sys.stderr)
    return published


def _make_sections(
    work: _ReportInProgress, selected: Sequence[Section[Any]], folder: ReportFolder, bar: tqdm[Any]
) -> None:
    """Control models are made once for all."""
    with sharing_control_boxes(work.context.box):
        for section in selected:
            bar.set_description(section.title)
            work.sections.append(_render_section(work, section))
            _publish_page_so_far(work, folder, len(selected))
            bar.update()


def _publish_page_so_far(work: _ReportInProgress, folder: ReportFolder, n_selected: int) -> None:
    """Write the page so far, so that a reader can begin."""
    n_made = len(work.sections)
    if n_made < n_selected:
        text = f"This page is being made: {n_made} of {n_selected} sections are done. It reloads by itself."
        try:
            folder.publish_so_far(encode_utf8(_page_html(work, text)))
        except KeyboardInterrupt:
            work.interrupted = True


@contextmanager
def _with_few_threads(box: Box) -> Iterator[None]:
    """Small models run on one thread: several, waiting for one another on busy cores, took up to 8 times as long."""
    n_threads = torch.get_num_threads()
    if box.batch_limit >= SMALL_MODEL_MIN_AUTO_BATCH_ROWS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _row_of_example(example: int | str | None, source: ReportData) -> int | None:
    if isinstance(example, str):
        row = source.row_of_file(example)
        if row is None:
            raise InputError(f"example must be the name of one file of {source.name}, or an index; got {example!r}")
        return row
    if example is None or check_int("example", example) < len(source):
        return example
    raise InputError(f"example must be from 0 to {len(source) - 1}, an index in the data; got {example}")


def _select_sections(
    sections: Sequence[str | Section[Any]] | None, box: Box, *, has_training: bool = False
) -> list[Section[Any]]:
    by_slug = {s.slug: s for s in SECTIONS}
    selected = []
    default = [s for s in SECTIONS if s.is_default_for(box, has_training=has_training)]
    for section in default if sections is None else sections:
        if isinstance(section, str) and section not in by_slug:
            raise InputError(
                f"the report has no section {section!r}; {suggestion_text(section, by_slug, len(by_slug))}"
            )
        selected.append(by_slug[section] if isinstance(section, str) else section)
    return selected


def _render_section(work: _ReportInProgress, section: Section[Any]) -> RenderedSection:
    """Find, show and render one section; what it raises becomes its failure."""
    rendered = partial(RenderedSection, section.title, section.slug, chapter=section.chapter)
    try:
        if work.interrupted:
            return rendered(failure=INTERRUPTED_TEXT)
        if unmet := section.reason_not_applicable_or_empty(work.context):
            return rendered(not_applicable=unmet)
        finding, blocks = _find_and_show_with_warnings(work.context, section)
        best = section.best(finding) if section.best else ()
        n_followed, best_html = len(work.context.followed_indices), render_blocks(best, work.pictures)
        followed = [_render_followed(finding, i, work.pictures) for i in range(n_followed)]
        html = render_blocks(blocks, work.pictures)
        work.add(section.slug, finding)
        failure = "interrupted: only a part" * work.interrupted
        return rendered(html, finding.answer, failure, headline=finding.headline, best=best_html, followed=followed)
    except NotApplicable as reason:
        return rendered(not_applicable=str(reason))
    except KeyboardInterrupt:
        work.interrupted = True
        return rendered(failure=INTERRUPTED_TEXT)
    except WriteError:  # no other section could be written either
        raise
    except Exception as error:  # one section that fails is no reason to lose the others
        LOG.warning("the section %r failed", section.title, exc_info=not isinstance(error, UnboxedError))
        return rendered(failure=error_sentence(error))


def _render_followed(finding: Finding, place: int, pictures: PageImageStore) -> str:
    """What a section shows of a followed example at the top of the page, "" where that is nothing."""
    blocks = finding.followed_blocks(place)
    return render_blocks(blocks, pictures) if blocks else render_figures(finding.cover(place), pictures)


def _find_and_show_with_warnings(context: ReportContext, section: Section[Any]) -> tuple[Finding, list[Block]]:
    """The finding and the blocks; what methods warn of comes first, where a reader sees it before the figures."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnboxedWarning)
        finding = section.find(context)
        blocks = list(section.show(finding))
    for warning in [w for w in caught if not issubclass(w.category, UnboxedWarning)]:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    notes = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UnboxedWarning))
    return finding, [*(Caution(f"Note: {note}.") for note in notes), *blocks]


def _page_html(work: _ReportInProgress, progress: str = "") -> str:
    context = work.context
    subject = f"{type(context.box.model).__name__}{context.data.prefixed_name_or_empty(' on ')}"
    return render_page(subject, work.title, work.headline, "", work.sections, work.followed, progress)


def _report_json(work: _ReportInProgress, folder: ReportFolder, failures: dict[str, str]) -> bytes:
    context = work.context
    facts = {
        "unboxed": __version__,
        "model": type(context.box.model).__name__,
        "data": context.data.name,
        "classes": list(context.survey.classes),
        "title": work.title,
        "headline": work.headline,
        "findings": work.facts,
        "failures": failures,
        "files": [name for name in folder.files if name not in (PAGE_FILE_NAME, REPORT_JSON_FILE, VERDICTS_FILE)],
    }
    without_nan = json.loads(json.dumps(facts, default=str), parse_constant=lambda word: None)  # JSON has no NaN
    return encode_utf8(json.dumps(without_nan, indent=1, ensure_ascii=False))


class _CallableModule(ModuleType):
    """`unboxed.report` is this module once it has been imported, and is called all the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
