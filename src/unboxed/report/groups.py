"""Does it fail on a group, or use a shortcut? Groups with more errors, patches that decide answers, prototypes."""

from __future__ import annotations

from dataclasses import dataclass

from .. import concepts
from ..checks.verdict import capitalize_and_end_with_period
from ..concepts import ErrorSlices, Prototypes, Shortcuts
from ..concepts.prototypes import ClassPrototypes
from ..concepts.shortcuts import MIN_EXPLAINED_EXAMPLES, ExplanationCluster
from ..concepts.slices import ErrorSlice
from ..engine.rows import evenly_spaced_indices
from ..plots.results.common import image_tiles
from ..plots.results.concepts_groups import cluster_tiles, error_slice_tiles
from ..plots.sheet import Tile
from . import chapters
from .blocks import Block, ExampleWithFigures, Figure, Heading, MethodInterpretation, Paragraph
from .context import ReportContext, Section
from .finding import Finding, NotApplicable
from .pictures import PageImage
from .words import count_noun, layer_display_name, quoted

MAX_GROUPED_EXAMPLES, MIN_EXAMPLES_FOR_ERROR_SLICES = (
    1000,
    100,
)  # evenly spread; fewer make no groups that could be tested
N_EXPLAINED_EXAMPLES_PER_CLASS, N_PASTES_PER_CLUSTER, MAX_CLUSTERS_PER_CLASS = (
    60,
    50,
    4,
)  # examples and pastes per class and cluster
MAX_TOTAL_FORWARD_FLOPS = 1e12  # of all forward passes of a part, above which it is left out
N_SHOWN_CLUSTERS, N_SHOWN_ERROR_SLICES = 3, 3
N_PROTOTYPE_CLASSES, MIN_PROTOTYPE_EXAMPLES_PER_CLASS = 2, 20
TILE_SIDE_PIXELS = 84


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupsFinding(Finding):
    """Error slices, shortcuts and prototypes, each with its test; None where it was not searched for."""

    slices: ErrorSlices | None
    shortcuts: Shortcuts | None
    prototypes: Prototypes | None = None


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> GroupsFinding:
    rows = evenly_spaced_indices(len(context.survey.rows), MAX_GROUPED_EXAMPLES)
    slices, shortcuts = _find_error_slices(context, rows), _find_shortcuts(context, rows)
    if slices is None and shortcuts is None:
        raise NotApplicable(
            f"Groups of errors need {MIN_EXAMPLES_FOR_ERROR_SLICES} labeled examples, shortcuts "
            f"{MIN_EXPLAINED_EXAMPLES} images that are "
            "predicted as one class, and a model that is not too large for so many passes."
        )
    prototypes = _find_prototypes(context, rows)
    answer, headline = _groups_answer_text(slices, shortcuts), _groups_headline(slices, shortcuts)
    return GroupsFinding(
        answer=answer, headline=headline, slices=slices, shortcuts=shortcuts, prototypes=prototypes
    )  # fmt: skip


def _find_error_slices(context: ReportContext, rows: list[int]) -> ErrorSlices | None:
    labels = context.survey.labels
    if (
        labels is None
        or len(rows) < MIN_EXAMPLES_FOR_ERROR_SLICES
        or context.forward_flops(2 * len(rows)) > MAX_TOTAL_FORWARD_FLOPS
    ):
        return None
    x = context.box.restore_structure(context.inputs(rows))
    return concepts.error_slices(context.box, (x, labels[rows]), seed=context.seed)


def _find_shortcuts(context: ReportContext, rows: list[int]) -> Shortcuts | None:
    counts = context.survey.predicted[rows].bincount()
    classes = (counts >= MIN_EXPLAINED_EXAMPLES).nonzero().flatten()
    n_passes = len(rows) + len(classes) * (
        3 * N_EXPLAINED_EXAMPLES_PER_CLASS + 2 * MAX_CLUSTERS_PER_CLASS * N_PASTES_PER_CLUSTER
    )
    if not context.has_images or not len(classes) or context.forward_flops(n_passes) > MAX_TOTAL_FORWARD_FLOPS:
        return None
    x = context.box.restore_structure(context.inputs(rows))
    return concepts.shortcuts(
        context.box,
        x,
        classes,
        n_explained=N_EXPLAINED_EXAMPLES_PER_CLASS,
        n_pastes=N_PASTES_PER_CLUSTER,
        max_clusters=MAX_CLUSTERS_PER_CLASS,
        seed=context.seed,
    )


def _find_prototypes(context: ReportContext, rows: list[int]) -> Prototypes | None:
    """Of the classes with the most errors; without labels, or errors, of those with the most examples."""
    predicted, labels = context.survey.predicted[rows], context.survey.labels
    of_class = predicted if labels is None else labels[rows]
    counts = of_class.bincount()
    errors = of_class[of_class != predicted].bincount(minlength=len(counts))
    order = (errors * (len(rows) + 1) + counts).argsort(descending=True, stable=True)
    classes = [k for k in order.tolist() if counts[k] >= MIN_PROTOTYPE_EXAMPLES_PER_CLASS][:N_PROTOTYPE_CLASSES]
    if not context.has_images or not classes or context.forward_flops(len(rows)) > MAX_TOTAL_FORWARD_FLOPS:
        return None
    x = context.box.restore_structure(context.inputs(rows))
    return concepts.prototypes(context.box, x if labels is None else (x, labels[rows]), classes, seed=context.seed)


def _groups_answer_text(slices: ErrorSlices | None, shortcuts: Shortcuts | None) -> str:
    sentences = list[str]()
    if slices is not None:
        sentences.append(_error_slices_text(slices) if slices.slices else "No group of examples has more errors")
    if shortcuts is not None:
        names = dict.fromkeys(shortcuts.class_name(c.target) for c in shortcuts.shortcuts)
        found = f"a small patch of an image is enough for the answer {' or '.join(names)}"
        sentences.append(found if names else "no small patch of an image decides the answer")
    return capitalize_and_end_with_period("; ".join(sentences))


def _error_slices_text(slices: ErrorSlices) -> str:
    """The groups by their most frequent labels, with their errors, in one clause."""
    shown, n = slices.slices[:N_SHOWN_ERROR_SLICES], len(slices.slices)
    named = [_error_slice_text(slices, s) for s in shown]
    more = f" and {n - len(shown)} more" if n > len(shown) else ""
    return f"it errs more in {count_noun(n, 'group')} of examples that are alike: {', '.join(named)}{more}"


def _error_slice_text(slices: ErrorSlices, s: ErrorSlice) -> str:
    share = "all" if s.label_fraction == 1 else "mostly"
    rates = f"{s.errors.value:.0%} wrong, {s.rest.value:.0%} elsewhere"
    return f"{share} labeled {quoted(slices.class_name(s.label))} ({rates})"


def _groups_headline(slices: ErrorSlices | None, shortcuts: Shortcuts | None) -> tuple[str, ...]:
    """The group with the most certain excess of errors, and the patches that decide answers."""
    sentences = list[str]()
    if slices is not None and slices.slices:
        s, n_more = min(slices.slices, key=lambda s: s.p_value), len(slices.slices) - 1
        more = f"; {count_noun(n_more, 'more group')} of errors" if n_more else ""
        sentences.append(
            f"It fails on a group of {len(s.members)} examples alike in {layer_display_name(s.layer)}: of the held-out "
            f"ones {s.errors.value:.0%} are wrong, of the others {s.rest.value:.1%}; "
            f"{s.label_fraction:.0%} have the label {quoted(slices.class_name(s.label))}{more}."
        )
    if shortcuts is not None and shortcuts.shortcuts:
        names = dict.fromkeys(quoted(shortcuts.class_name(c.target)) for c in shortcuts.shortcuts)
        sentences.append(f"A small patch decides for {', '.join(names)}, whatever else the image shows.")
    return tuple(sentences)


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: GroupsFinding) -> list[Block]:
    return [
        *_error_slice_blocks(finding.slices),
        *_shortcut_blocks(finding.shortcuts),
        *_prototype_blocks(finding.prototypes),
    ]


def _error_slice_blocks(result: ErrorSlices | None) -> list[Block]:
    if result is None:
        return []
    note = MethodInterpretation.of(
        concepts.error_slices, capitalize_and_end_with_period(result.reason), "bad" if result.slices else "good"
    )
    cases = [_error_slice_block(result, s) for s in result.slices[:N_SHOWN_ERROR_SLICES]]
    text = "Groups of examples that are alike in a layer, found on one half of the data and tested on the other."
    return [Heading("Where it fails"), Paragraph(text), note, *cases]


def _error_slice_block(result: ErrorSlices, s: ErrorSlice) -> ExampleWithFigures:
    rest = f"{s.rest.value:.1%} of the others"
    lines = (
        f"{s.errors.value:.0%} wrong, {rest}",
        f"{s.label_fraction:.0%} have the label {result.class_name(s.label)}",
    )
    return ExampleWithFigures(
        f"{len(s.members)} examples", lines, _tiles_to_figures(error_slice_tiles(result, s), "in the group"), "bad"
    )


def _shortcut_blocks(result: Shortcuts | None) -> list[Block]:
    if result is None or not result.clusters:
        return []
    note = MethodInterpretation.of(
        concepts.shortcuts, capitalize_and_end_with_period(result.reason), "bad" if result.shortcuts else "good"
    )
    ranked = sorted(result.clusters, key=lambda c: (not c.is_shortcut, -(c.test.with_patch.value if c.test else 0)))
    shown = ranked[: N_SHOWN_CLUSTERS if result.shortcuts else 1]
    vmax = max(float(c.mean_map.max()) for c in shown)
    text = (
        "Explanations of each class, clustered; where a cluster's mean map is most concentrated lies a patch. Pasted "
        "onto images of other classes it shows whether it decides the answer."
    )
    return [Heading("Shortcuts"), Paragraph(text), note, *(_cluster_example_block(result, c, vmax) for c in shown)]


def _cluster_example_block(result: Shortcuts, c: ExplanationCluster, vmax: float) -> ExampleWithFigures:
    followed = "" if c.test is None else f"{c.test.with_patch.value:.0%} follow the patch"
    random = "" if c.test is None else f"{c.test.with_random.value:.0%} a random one"
    lines = tuple(filter(None, (f"{len(c.members)} of {c.n_class} examples", followed, random)))
    figures = _tiles_to_figures(cluster_tiles(result, c, vmax), "of the cluster")
    return ExampleWithFigures(f"class {result.class_name(c.target)}", lines, figures, "bad" if c.is_shortcut else "")


def _prototype_blocks(result: Prototypes | None) -> list[Block]:
    if result is None:
        return []
    tone = {"pass": "good", "fail": "bad"}.get(result.verdict, "")
    note = MethodInterpretation.of(concepts.prototypes, capitalize_and_end_with_period(result.reason), tone)
    text = f"The examples that represent a class in {result.layer}, and criticisms: those that these leave out most."
    return [Heading("Prototypes"), Paragraph(text), note, *(_class_block(result, g) for g in result.groups)]


def _class_block(result: Prototypes, group: ClassPrototypes) -> ExampleWithFigures:
    n, images = len(group.prototypes), group.examples
    lines = (f"{n} of {group.n_examples} examples", f"then {len(group.criticisms)} criticisms")
    figures = [] if images is None else _tiles_to_figures(image_tiles(images[:n]), "prototype", "prototype")
    figures += [] if images is None else _tiles_to_figures(image_tiles(images[n:]), "criticism", "criticism")
    return ExampleWithFigures(f"class {result.class_name(group)}", lines, figures)


def _tiles_to_figures(tiles: list[Tile | None], what: str, default: str = "example") -> list[Figure]:
    """Tiles with their captions, or the default one."""
    return [
        Figure(PageImage(t.image, f"image {what}: {' '.join(t.caption.split())}", TILE_SIDE_PIXELS), "",
               tuple(t.caption.split("\n")) if t.caption else (default,))
        for t in tiles if t is not None
    ]  # fmt: skip


SECTION = Section(
    "Does it fail on a group, or use a shortcut?",
    "groups",
    find,
    show,
    needs=("exclusive classes",),
    chapter=chapters.MISTAKES,
)
