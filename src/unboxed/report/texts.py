"""The page of a text classifier: how good it is, which words its answers come from, which few words flip them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..adversarial import WordSwaps, hotflip
from ..atomic_write import encode_utf8
from ..box import Box
from ..checkpointing import weights_digest
from ..checks.ranking import candidates
from ..checks.verdict import NOT_APPLICABLE, PASS
from ..checks.verdict_cache import VerdictCache
from ..data.texts import Texts
from ..engine.read.edits import resolve_target
from ..engine.results import nonfinite_to_none
from ..errors import DataError, LayerError, UnboxedError
from ..language import head_ablation, logit_lens
from ..plots.figures import figures
from ..validation import check_int, valid_seed
from .blocks import Block, Code, ConfusionMatrix, Figure, FigureGrid, Heading, Paragraph, RankedMethods, Table
from .finding import NotApplicable
from .folder import PAGE_FILE_NAME, REPORT_JSON_FILE, ReportFolder
from .pictures import PageImage, PageImageStore
from .render import RenderedSection, render_blocks, render_page
from .reproduce import installed_package_versions
from .text_explanations import TextExplanations, explain_texts
from .text_page import colored_words, ranked_text_methods
from .words import count_noun, error_sentence, format_named_prob

LOG = logging.getLogger("unboxed")
MAX_TEXTS, N_JUDGED_TEXTS, N_SWAPPED_TEXTS, N_LISTED_TEXTS, MAX_MAPS_PER_TEXT = 10_000, 12, 100, 6, 2
MAX_SWAPS, MAX_CONFUSION_CLASSES = 3, 12
VERDICTS_FILE = "verdicts.json"

SectionContent = tuple[str, list[Block], dict[str, Any]]
"""What a section says in one sentence, its blocks, and its numbers for report.json."""


@dataclass
class TextReportContext:
    """The model, the texts, and what sections share."""

    box: Box
    data: Texts
    seed: int
    command: str | None
    verdict_cache: VerdictCache = field(default_factory=VerdictCache)

    @cached_property
    def logits(self) -> Tensor:
        return self.box(self.data.texts)

    @cached_property
    def probs(self) -> Tensor:
        return self.box.probs_from_logits(self.logits)

    @cached_property
    def labels(self) -> Tensor | None:
        """(N,) classes; None without labels."""
        return None if -1 in self.data.labels else torch.tensor(self.data.labels, device=self.probs.device)

    @cached_property
    def judged(self) -> list[int]:
        """The most confident error, the least certain answer, then others from all over the data."""
        sure = self.probs.amax(1)
        errors = [] if self.labels is None else (self.probs.argmax(1) != self.labels).nonzero().flatten().tolist()
        first = [*sorted(errors, key=lambda i: -float(sure[i]))[:2], int(sure.argmin())]
        spread = torch.linspace(0, len(self.data) - 1, min(len(self.data), 2 * N_JUDGED_TEXTS)).round().long().tolist()
        return list(dict.fromkeys([*first, *spread]))[:N_JUDGED_TEXTS]

    @cached_property
    def explanations(self) -> TextExplanations:
        texts = [self.data.texts[i] for i in self.judged]
        return explain_texts(self.box, texts, candidates(self.box), seed=self.seed, verdict_cache=self.verdict_cache)


def write_text_report(
    box: Box,
    data: Any,
    out: Any,
    *,
    seed: int = 0,
    command: str | None = None,
    max_examples: int | None = None,
) -> tuple[Path, dict[str, str]]:
    """Write the page of a model of texts. Returns its path, and the errors of sections that failed."""
    box.require_class_scores("a report on texts", exclusive=True)
    limit = MAX_TEXTS if max_examples is None else check_int("max_examples", max_examples, minimum=1)
    texts = _as_texts(data, limit)
    with ReportFolder(out) as folder:
        cache = VerdictCache.read(folder.out / VERDICTS_FILE)
        context = TextReportContext(box, texts, valid_seed(seed), command, cache)
        pictures, facts = PageImageStore(folder), dict[str, Any]()
        sections = [_render(context, pictures, facts, *section) for section in SECTIONS]
        failures = {s.slug: s.failure for s in sections if s.failure}
        title, headline = _top(context, facts)
        subject = f"{type(box.model).__name__} on {texts.name}"
        folder.stage(PAGE_FILE_NAME, encode_utf8(render_page(subject, title, headline, "", sections)))
        folder.stage(VERDICTS_FILE, cache.to_json())
        content: dict[str, Any] = {
            "unboxed": __version__,
            "model": type(box.model).__name__,
            "data": texts.name,
            "title": title,
        }
        content |= {"classes": list(box.classes), "headline": headline, "findings": facts, "failures": failures}
        json_text = json.dumps(nonfinite_to_none(content), indent=1, ensure_ascii=False)
        folder.stage(REPORT_JSON_FILE, encode_utf8(json_text))
        return folder.publish(), failures


def _as_texts(data: Any, limit: int) -> Texts:
    """The first texts of `Texts`, of (texts, labels), or of texts alone. Raises DataError."""
    if not isinstance(data, Texts):
        is_pair = isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str)
        texts, labels = data if is_pair else (data, None)
        if not isinstance(texts, Sequence) or isinstance(texts, str):
            raise DataError(
                f"wanted texts: ub.data.texts(path), a list of str, or (texts, labels); got {type(data).__name__}"
            )
        numbers = None if labels is None else torch.as_tensor(labels).tolist()
        data = Texts(list(texts), numbers)
    if not len(data):
        raise DataError("there are no texts to report on")
    return Texts(data.texts[:limit], data.labels[:limit], data.classes, data.name)


def _render(
    context: TextReportContext, pictures: PageImageStore, facts: dict[str, Any], title: str, slug: str,
    make: Callable[[TextReportContext], SectionContent],
) -> RenderedSection:  # fmt: skip
    """One section; what it raises becomes its failure, and costs no other one."""
    try:
        answer, blocks, numbers = make(context)
        facts[slug] = {"answer": answer, **numbers}
        return RenderedSection(title, slug, render_blocks(blocks, pictures), answer)
    except NotApplicable as reason:
        return RenderedSection(title, slug, not_applicable=str(reason))
    except Exception as error:  # one section that fails is no reason to lose the others
        LOG.warning("the section %r failed", title, exc_info=not isinstance(error, UnboxedError))
        return RenderedSection(title, slug, failure=error_sentence(error))


def _top(context: TextReportContext, facts: dict[str, Any]) -> tuple[str, list[str]]:
    title = str(facts.get("overview", {}).get("answer", "")) or "A model of texts"
    return title, [facts[slug]["answer"] for slug in ("words", "swaps") if slug in facts]


# -- the sections ------------------------------------------------------------------------------------------------------


def overview(context: TextReportContext) -> SectionContent:
    """How good it is, what it confuses, and where it is surely wrong."""
    names, predicted, n = context.box.classes, context.probs.argmax(1), len(context.data)
    if context.labels is None:
        counts = torch.bincount(predicted, minlength=len(names)).tolist()
        rows = [(name, f"{count:,}") for name, count in zip(names, counts, strict=True) if count]
        answer = f"{count_noun(n, 'text')} without labels."
        return answer, [Table(("predicted", "texts"), rows, frozenset({1}))], {"predicted": counts}
    is_right = predicted == context.labels
    answer = f"It classifies {int(is_right.sum()):,} of {n:,} texts correctly."
    blocks: list[Block] = [_confusion(context, predicted)] if len(names) <= MAX_CONFUSION_CLASSES else []
    sure = context.probs.amax(1)
    wrong = sorted((~is_right).nonzero().flatten().tolist(), key=lambda i: -float(sure[i]))[:N_LISTED_TEXTS]
    listed = [
        (context.data.texts[i], names[int(predicted[i])], format_named_prob(float(sure[i])),
         names[context.data.labels[i]])
        for i in wrong
    ]  # fmt: skip
    if listed:
        lead = Paragraph("Misclassified, the most confident first:")
        blocks += [lead, Table(("text", "predicted", "", "label"), listed)]
    return answer, blocks, {"correct": int(is_right.sum()), "texts": n}


def _confusion(context: TextReportContext, predicted: Tensor) -> Block:
    k, labels = len(context.box.classes), torch.tensor(context.data.labels, device=predicted.device)
    counts = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
    tint = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return ConfusionMatrix(context.box.classes, counts.tolist(), tint.tolist(), "Rows: labels; columns: predictions.")


def words(context: TextReportContext) -> SectionContent:
    """The words colored by the most trustworthy maps, and the verdicts on all methods."""
    made = context.explanations
    grades = [v.grade for v in made.verdicts.values() if v.grade != NOT_APPLICABLE]
    n_pass, judged = grades.count(PASS), count_noun(len(made.tokens), "text")
    answer = (
        f"{n_pass} of {len(grades)} ways to explain its answers pass, judged on {judged}."
        if n_pass
        else f"No map of its words is believable, judged on {judged}."
    )
    shown = list[Block]()
    for i in range(min(N_LISTED_TEXTS, len(made.tokens))):
        effect = Paragraph(made.effects.sentence(i), "soft")
        shown += [Heading(f"Predicted {made.predictions[i]}"), effect]
        shown += [colored_words(made, name, i) for name in made.drawn[:MAX_MAPS_PER_TEXT]]
    lead = Paragraph(
        "Red words raise the score of the predicted class, blue words lower it. A map that does not pass says nothing "
        "about this model."
    )
    return (
        answer,
        [lead, *shown, RankedMethods(ranked_text_methods(made))],
        {"verdicts": {name: v.to_dict() for name, v in made.verdicts.items()}},
    )


def swaps(context: TextReportContext) -> SectionContent:
    """Which few words flip its right answers."""
    chosen = list(range(min(N_SWAPPED_TEXTS, len(context.data))))
    texts = [context.data.texts[i] for i in chosen]
    labels = context.labels if context.labels is not None else context.probs.argmax(1)
    made: WordSwaps = hotflip(context.box, texts, labels[: len(chosen)], max_swaps=MAX_SWAPS)
    right = ~made.initially_misclassified
    if not bool(right.any()):
        raise NotApplicable("There is no right answer to flip.")
    n_flipped, n_right = int(made.success[right].sum()), int(right.sum())
    answer = f"{n_flipped:,} of {n_right:,} right answers flip when at most {MAX_SWAPS} words are swapped."
    shown = [i for i in chosen if bool(made.success[i]) and bool(right[i])][:N_LISTED_TEXTS]
    rows = [(texts[i], ", ".join(f"{old} → {new}" for _, old, new in made.swaps[i])) for i in shown]
    lead = Paragraph("HotFlip swaps words by the gradient's estimate; swaps need not keep the meaning.")
    return answer, [lead, Table(("text", "swaps"), rows)], {"right": n_right, "flipped": n_flipped}


def inside(context: TextReportContext) -> SectionContent:
    """After which layer the answer is there, and which heads it needs."""
    texts = [context.data.texts[i] for i in context.judged]
    try:
        lens = logit_lens(context.box, texts)
        heads = head_ablation(
            context.box, texts, resolve_target(context.box, None, context.box.validate_inputs(texts), "auto")
        )
    except LayerError as error:
        raise NotApplicable(error_sentence(error)) from error
    same = (lens.probs.argmax(2) == lens.probs[:, -1:].argmax(2)).double().mean(0).tolist()
    first = next(i for i, share in enumerate(same) if share >= 0.9)
    when = "before the first block" if first == 0 else f"after block {first} of {len(lens.layers) - 1}"
    drawn = {**{k: v for k, v in figures(lens).items() if k == "kl"}, **figures(heads)}
    names = {"kl": "how far each layer is from the answer", "heads": "the score without each attention head"}
    grid = FigureGrid([Figure(PageImage(image, names[name], None), "") for name, image in drawn.items()])
    answer = f"For 9 of 10 texts, its answer is there {when}."
    return answer, [grid], {"same answer after each layer": same, "layers": list(lens.layers)}


def reproduce(context: TextReportContext) -> SectionContent:
    """How to make the page again."""
    rows = [
        ("model", type(context.box.model).__name__),
        ("weights (SHA-256)", weights_digest(context.box.model)[:16]),
        ("inputs", str(context.box.inputs)),
        ("data", f"{context.data.name}, {count_noun(len(context.data), 'text')}"),
        ("seed", str(context.seed)),
        *installed_package_versions().items(),
    ]
    call = f'import unboxed as ub\n\nub.report(box, texts, "out/", seed={context.seed})'
    answer = "The command, the seed, the versions, and a digest of the weights."
    return answer, [Code(context.command or call), Table(("what", "value"), rows)], {"what": dict(rows)}


SECTIONS: list[tuple[str, str, Callable[[TextReportContext], SectionContent]]] = [
    ("How good is it?", "overview", overview),
    ("Which words does its answer come from?", "words", words),
    ("Which few words flip it?", "swaps", swaps),
    ("Where inside is the answer?", "inside", inside),
    ("How to reproduce it", "reproduce", reproduce),
]
