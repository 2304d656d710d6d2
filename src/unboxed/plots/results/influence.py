"""The figures of who taught it that: the training examples that helped and harmed an answer most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ...influence import GroupInfluence, Influence, Removal, SelfInfluence, SuspectedMislabels
from ...influence.result import LOSS_CHANGE_UNIT_TEXTS, RANKING_UNIT_TEXT, SIMILARITY_UNIT_TEXT
from ...influence.validate import LinearDatamodelingScore
from ..charts import bar_chart, matrix_plot, scatter_chart, signed_bar_chart
from ..figures import Figures, figures
from ..sheet import Tile, contact_sheet
from ..tables import stack_panels
from ..text import format_two_digits
from .common import (
    MAX_EXAMPLES_PER_FIGURE,
    class_name,
    fetch_images_at,
    first_image_part,
    image_tiles,
    numbered_names,
)

if TYPE_CHECKING:
    from ...box import Box

N_HELPFUL_AND_HARMFUL_TILES_EACH = 4  # helpful and harmful training examples of a query
N_SHOWN_REMOVED_EXAMPLES = 7  # examples of a set whose removal changes an answer
N_SHOWN_MISLABELS, N_TRAIN_TILES_PER_ROW = 16, 8
TILE_SIDE_PIXELS = 84
MAX_TILE_NAME_CHARS = 10
MAX_GROUPS_IN_TABLE = 12  # columns of a table


@figures.register(Influence)
def _influence_figures(result: Influence, box: Box | None = None, *, data: Any = None) -> Figures:
    return {"influence": influence_figure(result, box, data)}


def influence_figure(
    result: Influence, box: Box | None = None, data: Any = None, train_names: Sequence[str] | None = None,
    query_names: Sequence[str] | None = None,
) -> Image.Image:  # fmt: skip
    """Each query with its most helpful and most harmful training examples: as images, or without any as bars.

    `train_names` and `query_names` are what they are called; None numbers them.
    """
    n, k = min(result.n_queries, MAX_EXAMPLES_PER_FIGURE), min(N_HELPFUL_AND_HARMFUL_TILES_EACH, result.n_train)
    best, worst = result.top(k)[:n].cpu(), result.bottom(k)[:n].cpu()
    helpful, harmful = fetch_images_at(data, best, box), fetch_images_at(data, worst, box)
    queries = first_image_part(result.input)
    names = [_name_end(name) for name in list(query_names or numbered_names(n, "query"))[:n]]
    captions, explained = _TrainCaptions(result, box, train_names), explained_class_captions(result, n, box)
    if helpful is None or harmful is None or queries is None:
        titles = [", ".join(filter(None, pair)) for pair in zip(names, explained, strict=True)]
        return _score_bars(result, torch.cat([best, worst.flip(1)], 1), titles, captions)
    rows = []
    for i, query in enumerate(image_tiles(queries[:n].cpu(), explained)):
        sides = [
            image_tiles(shown[i * k : (i + 1) * k], [captions.with_score(i, j) for j in index[i].tolist()])
            for shown, index in ((helpful, best), (harmful, worst))
        ]
        rows.append([query, *sides[0], *reversed(sides[1])])
    first, last = (
        ("most similar", "least similar") if result.unit == SIMILARITY_UNIT_TEXT else ("most helpful", "most harmful")
    )
    return influence_sheet(rows, result, ["query", first, *[""] * (2 * k - 2), last], names)


def _score_bars(result: Influence, index: Tensor, titles: Sequence[str], captions: _TrainCaptions) -> Image.Image:
    """The scores of these training examples of each query (Q, K), as bars."""
    charts = [
        signed_bar_chart({captions.of(j).replace("\n", ", "): float(result.scores[i, j]) for j in row}, title=title,
                         label=result.unit)
        for i, (row, title) in enumerate(zip(index.tolist(), titles, strict=True))
    ]  # fmt: skip
    head: Image.Image = contact_sheet([], title=influence_title(result))
    return stack_panels([head, *charts])


@dataclass(frozen=True)
class _TrainCaptions:
    """What is said of training examples: which they are, their labels and scores."""

    result: Influence
    box: Box | None
    names: Sequence[str] | None

    def of(self, j: int, *lines: str) -> str:
        example = f"example {j}" if self.names is None else self.names[j]
        return train_label_caption(self.result.train_labels, self.result.classes, j, self.box, *lines, example)

    def with_score(self, query: int, j: int) -> str:
        *others, name = self.of(j, format_signed_score(float(self.result.scores[query, j]))).split("\n")
        return "\n".join([*others, _name_end(name)])


def _name_end(name: str) -> str:
    """The name as it fits below a tile: of a long one its end, where names of files differ."""
    return name if len(name) <= MAX_TILE_NAME_CHARS else f"…{name[1 - MAX_TILE_NAME_CHARS :]}"


@figures.register(GroupInfluence)
def _group_influence_figures(result: GroupInfluence, box: Box | None = None, *, data: Any = None) -> Figures:
    """Each query's loss without each group, as a table."""
    scores = result.scores[:MAX_EXAMPLES_PER_FIGURE, :MAX_GROUPS_IN_TABLE].cpu()
    columns = [f"{j}: {len(rows)} examples" for j, rows in enumerate(result.members[:MAX_GROUPS_IN_TABLE])]
    return {
        "groups": matrix_plot(
            scores, numbered_names(len(scores), "query"), columns, ("", "groups"),
            title=f"{result.method} ({result.unit}; positive: it helped)", kind="signed", unit=result.unit,
        )
    }  # fmt: skip


def influence_sheet(
    rows: list[list[Tile | None]], result: Influence, columns: list[str], names: list[str]
) -> Image.Image:
    sheet: Image.Image = contact_sheet(
        rows, title=influence_title(result), columns=columns, names=names, side=TILE_SIDE_PIXELS
    )
    return sheet


def influence_title(result: Influence) -> str:
    is_signed = result.unit in (*LOSS_CHANGE_UNIT_TEXTS, RANKING_UNIT_TEXT)
    unit = f"{result.unit}; positive: it helped" if is_signed else result.unit
    return f"{result.method or 'Influence of training examples'} ({unit})"


def explained_class_captions(result: Influence, n: int, box: Box | None) -> list[str]:
    """The class whose loss is explained."""
    if not isinstance(result.target, Tensor) or result.target.ndim != 1 or result.target.is_floating_point():
        return [""] * n
    return [f"as {class_name(c, result.classes, box)}" for c in result.target[:n].tolist()]


def train_label_caption(
    labels: Tensor | None, classes: tuple[str, ...], index: int, box: Box | None, *lines: str
) -> str:
    """The label of a training example, where labels are classes, and what else is said of it."""
    has_class = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
    label = [f"label {class_name(labels[index], classes, box)}"] if has_class and labels is not None else []
    if labels is not None and labels.is_floating_point() and labels[index].numel() == 1:
        value = labels[index].item()
        label = [f"label {value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"label {value:.4g}"]
    return "\n".join([*label, *lines])


def format_signed_score(score: float) -> str:
    """A score with its sign, to two digits: +0.12, −3.5e−5."""
    text = format_two_digits(score)
    return text if text.startswith("−") else f"+{text}"


@figures.register(Removal)
def _removal_figures(result: Removal, box: Box | None = None, *, data: Any = None) -> Figures:
    """Margins before, after retraining without the set, and without as many random examples; and the sets' first."""
    n = min(len(result.sets), MAX_EXAMPLES_PER_FIGURE)
    names = [_query_removal_caption(result, i, box) for i in range(n)]
    margins = {
        "as it is": result.margin[:n],
        "retrained without the set": result.real_margin[:n],
        "without as many random ones": result.control_margin[:n].mean(1),
    }
    title = "Margins of the answers: below 0 they have changed"
    chart = bar_chart(margins, names, title=title, label="logit of the answer minus the largest other")
    sheet = _removed_examples_sheet(result, n, box, data)
    return {"margins": chart} if sheet is None else {"margins": chart, "removed": sheet}


def _query_removal_caption(result: Removal, i: int, box: Box | None) -> str:
    answer, after = (class_name(k[i], result.classes, box) for k in (result.answer, result.new_answer))
    return (
        f"query {i}: {len(result.sets[i])} removed, {answer} {'becomes ' + after if result.flipped[i] else 'remains'}"
    )


def _removed_examples_sheet(result: Removal, n: int, box: Box | None, data: Any) -> Any:
    """The first examples of each set beside the query; None without images."""
    queries, rows = first_image_part(result.input), list[list[Tile | None]]()
    for i in range(n):
        index = result.sets[i][:N_SHOWN_REMOVED_EXAMPLES].cpu()
        images = fetch_images_at(data, index, box) if len(index) else None
        if queries is None or (len(index) and images is None):
            return None
        labels = result.influence.train_labels
        captions = [train_label_caption(labels, result.classes, j, box, f"example {j}") for j in index.tolist()]
        shown = [] if images is None else image_tiles(images, captions)
        rows.append([*image_tiles(queries[i : i + 1].cpu()), *shown])
    title = "The first of the training examples whose removal changes the answer"
    columns = ["query", "removed", *[""] * (N_SHOWN_REMOVED_EXAMPLES - 1)]
    names = [_query_removal_caption(result, i, box) for i in range(n)]
    return contact_sheet(rows, title=title, columns=columns, names=names, side=TILE_SIDE_PIXELS)


@figures.register(LinearDatamodelingScore)
def _datamodeling_figures(result: LinearDatamodelingScore, box: Box | None = None, *, data: Any = None) -> Figures:
    """Real against predicted changes of the queries' losses, a figure per fraction that was left out."""
    if result.predicted is None or result.real is None:
        return {}
    return {
        f"{fraction:g} left out": loss_change_scatter(result, f) for f, fraction in enumerate(result.fractions)
    }  # fmt: skip


def loss_change_scatter(result: LinearDatamodelingScore, f: int) -> Any:
    """A point per subset and query, in standard deviations of the query's real changes."""
    predicted, real = (h[f].double().cpu() for h in (result.predicted, result.real) if h is not None)  # (S, Q)
    scale = real.std(0).clamp_min(torch.finfo(real.dtype).tiny)
    ceiling = "" if result.ceilings is None else f"; one real retraining {float(result.ceilings[f].nanmean()):.2f}"
    return scatter_chart(
        (predicted / scale).flatten(), (real / scale).flatten(),
        title=f"{result.fractions[f]:.0%} left out: rank correlation {float(result.means[f]):.2f}{ceiling}",
        x_label="predicted change of the loss, in std", y_label="real change after retraining, in std",
    )  # fmt: skip


@figures.register(SuspectedMislabels)
def _mislabel_figures(result: SuspectedMislabels, box: Box | None = None, *, data: Any = None) -> Figures:
    """The most suspect training examples, with label and suggested class; without the data, their scores."""
    index = result.top(min(N_SHOWN_MISLABELS, len(result.scores))).cpu()
    images = fetch_images_at(data, index, box)
    title = "Training examples whose labels may be wrong, the most suspect first"
    if images is None:
        bars = {f"example {i}": float(result.scores[i]) for i in index.tolist()}
        return {"mislabels": bar_chart(bars, title=title, label="minus the log-probability of the label, in nats")}
    suggested = [f"rather {class_name(result.suggested[i], result.classes, box)}?" for i in index.tolist()]
    captions = [
        train_label_caption(result.train_labels, result.classes, i, box, other, f"example {i}")
        for i, other in zip(index.tolist(), suggested, strict=True)
    ]
    return {"mislabels": _train_example_sheet(images, captions, title)}


def _train_example_sheet(images: Tensor, captions: list[str], title: str) -> Any:
    """Training examples, the first first."""
    tiles = image_tiles(images, captions)
    rows = [tiles[i : i + N_TRAIN_TILES_PER_ROW] for i in range(0, len(tiles), N_TRAIN_TILES_PER_ROW)]
    return contact_sheet(rows, title=title, side=TILE_SIDE_PIXELS)


@figures.register(SelfInfluence)
def _self_influence_figures(result: SelfInfluence, box: Box | None = None, *, data: Any = None) -> Figures:
    """The training examples that influence themselves most; without the data, their scores."""
    index = result.top(min(N_SHOWN_MISLABELS, len(result.scores))).cpu()
    images, title = fetch_images_at(data, index, box), f"Largest self-influence ({result.unit})"
    if images is None:
        bars = {f"example {i}": float(result.scores[i]) for i in index.tolist()}
        return {"self-influence": bar_chart(bars, title=title, label=result.unit)}
    captions = [
        train_label_caption(
            result.train_labels, result.classes, i, box, format_signed_score(float(result.scores[i])), f"example {i}"
        )
        for i in index.tolist()
    ]
    return {"self-influence": _train_example_sheet(images, captions, title)}
