"""Sections of a model of texts: which words its answers come from, which flip them, and where inside they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..adversarial import WordSwaps, hotflip
from ..checks.verdict import NOT_APPLICABLE, PASS, Verdict
from ..errors import InputError, LayerError
from ..language import HeadAblation, Lens, head_ablation, logit_lens
from ..plots.figures import figures
from . import chapters
from .blocks import Block, Figure, FigureGrid, Heading, Paragraph, PerExample, Table
from .checks import maps_by_most_trusted_methods, verdicts_and_unaffordable_methods
from .context import TEXTS_NEED, ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Finding, NotApplicable
from .pictures import PageImage
from .text_explanations import TextExplanations, make_text_explanations
from .text_page import colored_words
from .word_effects import WordEffects, require_text_inputs, word_effects
from .words import count_noun

N_SWAPPED_TEXTS, N_LISTED_TEXTS, MAX_MAPS_PER_TEXT = 100, 6, 2
MAX_SWAPS_PER_TEXT = 3
MIN_AGREEMENT = 0.9  # of the texts, from which a layer's answer counts as the model's
NEEDS = (TEXTS_NEED, "classes", "exclusive classes")
COLORS_TEXT = (
    "Red words raise the score of the predicted class, blue words lower it. A map that fails its checks says "
    "nothing about this model."
)


# -- which words does its answer come from? ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class WordsFinding(Finding):
    """The words of some texts by the most trustworthy methods."""

    texts: list[int]  # their indices in the data
    n_followed: int  # of the texts, the first
    verdicts: dict[str, Verdict]
    made: TextExplanations = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)

    def followed_blocks(self, place: int) -> Sequence[Block]:
        """The words of the text by the most trustworthy method; without a map, what they change in the answer."""
        if place >= self.n_followed:
            return []
        maps = [colored_words(self.made, name, place) for name in self.made.drawn[:1]]
        return maps or [Paragraph(self.made.effects.sentence(place))]


def find_words(context: ReportContext) -> WordsFinding:
    """The maps are those of the methods with the best verdicts; the section on these lists them all."""
    judged, _ = verdicts_and_unaffordable_methods(context)
    verdicts = {name: judged[name] for name in sorted(judged, key=lambda n: judged[n].rank)}
    indices = list(dict.fromkeys([*context.followed_indices, *context.verdict_indices]))[:N_LISTED_TEXTS]
    x = context.box.validate_inputs(context.inputs(indices))
    classes = context.survey.predicted[indices].to(x.device)
    effects = word_effects(context.box, require_text_inputs(context.box), x, classes)
    maps = maps_by_most_trusted_methods(context, x, classes, MAX_MAPS_PER_TEXT)
    return WordsFinding(
        answer=" ".join(
            filter(
                None,
                (
                    _negligible_words_sentence(effects, len(indices)),
                    _trust_sentence([v.grade for v in verdicts.values()], len(context.verdict_indices)),
                ),
            )
        ),
        texts=[context.survey.rows[i] for i in indices],
        n_followed=min(len(indices), len(context.followed_indices)),
        verdicts=verdicts,
        made=make_text_explanations(context.box, x, classes, verdicts, maps, effects),
    )


def _negligible_words_sentence(effects: WordEffects, n_texts: int) -> str:
    """In how many of the texts shown no word counts, whatever the verdict on the methods is; "" where that is none."""
    n = sum(effects.is_negligible(i) for i in range(n_texts))
    if not n:
        return ""
    return (f"In {n} of the {count_noun(n_texts, 'text')} shown the answer does not need the words: it stays with all "
            f"of them replaced by {effects.fill}, so none is colored.")  # fmt: skip


def _trust_sentence(grades: Sequence[str], n_texts: int) -> str:
    grades = [grade for grade in grades if grade != NOT_APPLICABLE]
    on = f"checked on {count_noun(n_texts, 'text')}"
    n_pass = grades.count(PASS)
    if not n_pass:
        return f"No way to explain its answers passes its checks ({on})."
    return f"{n_pass} of {len(grades)} ways to explain its answers pass their checks ({on})."


def show_words(finding: WordsFinding) -> list[Block]:
    texts = [block for i in range(len(finding.texts)) for block in _text_blocks(finding, i, MAX_MAPS_PER_TEXT)]
    return [*_colors_legend(finding, len(finding.texts)), *texts]


def best_words(finding: WordsFinding) -> list[Block]:
    """The words of the followed text by the most trustworthy method."""
    texts = PerExample([_text_blocks(finding, i, 1) for i in range(finding.n_followed)])
    return [texts, *_colors_legend(finding, finding.n_followed)]


def _colors_legend(finding: WordsFinding, n_texts: int) -> list[Block]:
    """What the colors are, where a word of the first texts has one."""
    is_colored = any(not finding.made.effects.is_negligible(i) for i in range(n_texts))
    return [Paragraph(COLORS_TEXT, "soft")] if is_colored else []


def _text_blocks(finding: WordsFinding, i: int, n_maps: int) -> list[Block]:
    made = finding.made
    maps = [colored_words(made, name, i) for name in made.drawn[:n_maps]]
    effect = Paragraph(made.effects.sentence(i), "soft")
    return [Heading(f"Example {finding.texts[i]}: predicted {made.predictions[i]}"), effect, *maps]


# -- which few words flip it? ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class SwapsFinding(Finding):
    """Texts whose right answer a few swapped words flip."""

    right: int
    flipped: int
    flipped_by_new_words: int  # whose answer stays where all words are replaced by nothing
    followed: tuple[str, ...]  # what swaps do to each followed text
    swaps: list[tuple[str, str, str]] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # text, swaps, answers

    def followed_blocks(self, place: int) -> Sequence[Block]:
        return [Paragraph(text) for text in self.followed[place : place + 1]]


def find_swaps(context: ReportContext) -> SwapsFinding:
    s = context.survey
    indices = list(dict.fromkeys([*range(len(s.rows))[:N_SWAPPED_TEXTS], *context.followed_indices]))
    labels = (s.predicted if s.labels is None else s.labels)[indices]
    x = context.inputs(indices)
    made: WordSwaps = hotflip(context.box, x, labels, max_swaps=MAX_SWAPS_PER_TEXT)
    texts, after = context.data.texts([s.rows[i] for i in indices]), context.box.predict(made.images).cpu()
    changes = [_swap_text(context, swaps, int(k)) for swaps, k in zip(made.swaps, after, strict=True)]
    right, flips = ~made.initially_misclassified[:N_SWAPPED_TEXTS], made.success[:N_SWAPPED_TEXTS]
    if not bool(right.any()):
        raise NotApplicable("There is no right answer to flip.")
    flipped = (flips & right).cpu()
    shown = flipped.nonzero().flatten().tolist()
    n_flipped, n_right, n_new = len(shown), int(right.sum()), 0
    answer = f"{n_flipped:,} of {n_right:,} right answers flip when at most {MAX_SWAPS_PER_TEXT} words are swapped."
    if shown:
        inputs = require_text_inputs(context.box)
        filled = inputs.fill_tokens(context.box.validate_inputs(x[shown]), inputs.default_fill_kind)
        n_new = int((context.box.predict(filled).cpu() == labels[shown]).sum())
    if n_new:
        answer += (f" {n_new:,} of these {n_flipped:,} answers stay when all words are masked: it is the new word that "
                   "flips them, not the loss of the old one.")  # fmt: skip
    return SwapsFinding(
        answer=answer, headline=(answer,), right=n_right, flipped=n_flipped, flipped_by_new_words=n_new,
        followed=tuple(_followed_swap_text(made, i, changes[i]) for i in map(indices.index, context.followed_indices)),
        swaps=[(texts[i], *changes[i]) for i in shown[:N_LISTED_TEXTS]],
    )  # fmt: skip


def _swap_text(context: ReportContext, swaps: Sequence[tuple[int, str, str]], after: int) -> tuple[str, str]:
    return ", ".join(f"{old} → {new}" for _, old, new in swaps), context.class_name(after)


def _followed_swap_text(made: WordSwaps, i: int, change: tuple[str, str]) -> str:
    if bool(made.initially_misclassified[i]):
        return "It is wrong already: nothing needs to be swapped."
    if not bool(made.success[i]):
        return f"No {MAX_SWAPS_PER_TEXT} swapped words that were tried change the answer."
    return f"{change[0]}: the model answers {change[1]}."


def show_swaps(finding: SwapsFinding) -> list[Block]:
    lead = Paragraph(
        "Words are swapped where the gradient says that it helps most (HotFlip); swaps need not keep the meaning."
    )
    return [lead, *best_swaps(finding)]


def best_swaps(finding: SwapsFinding) -> list[Block]:
    return [Table(("text", "words swapped", "predicted then"), finding.swaps)] if finding.swaps else []


# -- where inside is the answer? ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class LayersFinding(Finding):
    """After which layer the answer is there, and which heads it needs."""

    layers: list[str]
    agreement: list[float]  # the share of texts whose answer after each layer is the last one
    lens: Lens = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    heads: HeadAblation = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)


def find_layers(context: ReportContext) -> LayersFinding:
    x, classes = context.verdict_inputs, context.survey.predicted[context.verdict_indices]
    try:
        lens, heads = logit_lens(context.box, x), head_ablation(context.box, x, classes)
    except (LayerError, InputError) as error:  # no attention, or texts of several lengths without a mask
        raise NotApplicable(str(error)) from error
    agreement = (lens.probs.argmax(2) == lens.probs[:, -1:].argmax(2)).double().mean(0).tolist()
    first = next(i for i, share in enumerate(agreement) if share >= MIN_AGREEMENT)
    when = "before the first block" if first == 0 else f"after block {first} of {len(lens.layers) - 1}"
    answer = f"For 9 of 10 texts, its answer can already be read {when}."
    return LayersFinding(answer=answer, layers=list(lens.layers), agreement=agreement, lens=lens, heads=heads)


def show_layers(finding: LayersFinding) -> list[Block]:
    alts = {"kl": "how far each layer is from the answer", "heads": "the score without each attention head"}
    drawn = {**figures(finding.lens), **figures(finding.heads)}
    return [FigureGrid([Figure(PageImage.of_chart(drawn[name], alt)) for name, alt in alts.items()])]


WORDS_SECTION = Section(
    "Which words does its answer come from?",
    "words",
    find_words,
    show_words,
    needs=NEEDS,
    chapter=chapters.MISTAKES,
    best=best_words,
)
SWAPS_SECTION = Section(
    "Which few words flip it?",
    "swaps",
    find_swaps,
    show_swaps,
    needs=NEEDS,
    chapter=chapters.FOOLED,
    best=best_swaps,
)
LAYERS_SECTION = Section(
    "Where inside is the answer?",
    "inside",
    find_layers,
    show_layers,
    needs=NEEDS,
    chapter=chapters.KNOWLEDGE,
)
