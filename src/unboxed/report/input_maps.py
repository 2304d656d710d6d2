"""Why this prediction, of a model of several inputs: how much each of them counts, and the map of each by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from ..checks.ranking import attribution_cards
from ..checks.verdict import Verdict
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..plots import colors
from ..plots.explanation_sheet import render_map
from ..plots.results.common import as_images_or_none
from ..plots.tables import MAX_DRAWN_TABLE_COLUMNS
from .blocks import Block, Figure, FigureGrid, Heading, MethodInterpretation, Paragraph, PerExample, SignedBars
from .checks import maps_by_most_trusted_methods
from .context import ReportContext
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding, NotApplicable
from .pictures import PageImage
from .verdict_notes import MAP_LEGEND, check_note_from_verdict, trusted_method_text
from .words import breakable, count_noun, format_percent

MAX_SHOWN_EXAMPLES = 4
FIGURE_SIDE_PIXELS = 112
N_PREVIEW_BARS, N_FOLLOWED_BARS = 6, 3  # columns of a table, in the chapter and at the top


@dataclass(frozen=True, eq=False)
class InputPart:
    """One of the inputs, with its values and its map for all n examples."""

    name: str
    share: list[float]  # (n,) of the magnitude of the whole map
    x: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (n, ...)
    map: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (n, ...)
    columns: tuple[str, ...] = ()  # of a table

    @property
    def is_image(self) -> bool:
        return not self.columns and as_images_or_none(self.x) is not None

    def value_name(self, k: int) -> str:
        return self.columns[k] if self.columns else f"value {k}"

    def share_text(self, i: int) -> str:
        return f"{format_percent(self.share[i])} of what counts"


@dataclass(frozen=True, eq=False, kw_only=True)
class InputMapsFinding(Finding):
    """The maps of each input, for some examples."""

    method: str
    verdict: Verdict
    examples: list[Example]
    parts: list[InputPart]
    n_followed: int  # of the examples, the first
    unit: str = ""  # of the values, where they are not contributions to the score

    @property
    def method_name(self) -> str:
        return attribution_cards()[self.method].name

    def why(self, i: int) -> str:
        """What the maps of the i-th example answer."""
        return f"why {self.examples[i].prediction or self.examples[i].output}"

    def followed_blocks(self, place: int) -> Sequence[Block]:
        return _part_blocks(self, place, N_FOLLOWED_BARS) if place < self.n_followed else []


def find_input_maps(context: ReportContext) -> InputMapsFinding:
    indices = list(dict.fromkeys([*context.followed_indices, *context.example_indices[:MAX_SHOWN_EXAMPLES]]))
    x = context.box.validate_inputs(context.inputs(indices))
    maps = maps_by_most_trusted_methods(context, x, context.survey.predicted[indices], 1)
    if not maps:
        raise NotApplicable("No attribution method can explain this model.")
    ((method, attribution),) = maps.items()
    map_ = attribution.map.cpu()
    verdict, inputs = context.verdict(method), cast(MultiInput, context.box.inputs)
    total = map_.double().abs().sum(1).clamp_min(1e-300)
    parts = [
        InputPart(
            name if isinstance(name, str) else f"input {name}",
            (m.double().abs().flatten(1).sum(1) / total).tolist(),
            values.cpu(),
            m,
            tuple(part.names) if isinstance(part, Features) else (),
        )
        for (name, part), values, m in zip(
            inputs.keys_and_parts(), inputs.split(x), inputs.split(map_), strict=True
        )
    ]  # fmt: skip
    name = attribution_cards()[method].name
    return InputMapsFinding(
        answer=f"{_shares_sentence(parts)} Explained by {trusted_method_text(name, verdict)}.",
        method=method,
        verdict=verdict,
        examples=context.examples(indices),
        parts=parts,
        n_followed=len(context.followed_indices),
        unit=attribution.unit,
    )


def _shares_sentence(parts: Sequence[InputPart]) -> str:
    """How much of the maps is in each input, on average over the examples shown."""
    n = len(parts[0].share)
    shares = [f"{format_percent(sum(p.share) / n)} is in {p.name}" for p in parts]
    return f"Of what counts for {count_noun(n, 'prediction')}, {' and '.join(shares)}."


def show_input_maps(finding: InputMapsFinding) -> list[Block]:
    card = attribution_cards()[finding.method]
    blocks: list[Block] = [MethodInterpretation(card, *check_note_from_verdict(finding.verdict))]
    for i in range(len(finding.examples)):
        blocks += _example_blocks(finding, i, MAX_DRAWN_TABLE_COLUMNS)
    return blocks


def best_input_maps(finding: InputMapsFinding) -> list[Block]:
    """The followed example, input by input."""
    return [PerExample([_example_blocks(finding, i, N_PREVIEW_BARS) for i in range(finding.n_followed)])]


def _example_blocks(finding: InputMapsFinding, i: int, n_bars: int) -> list[Block]:
    example = finding.examples[i]
    label = "" if example.label is None else f"; its label is {example.label}"
    legend = Paragraph(f"{MAP_LEGEND} Each input has its own scale.", "soft")
    return [Heading(f"{example.heading}: {example.sentence}{label}"), *_part_blocks(finding, i, n_bars), legend]


def _part_blocks(finding: InputMapsFinding, i: int, n_bars: int) -> list[Block]:
    """The maps of one example, each input by its name."""
    return [_image_grid(finding, p, i) if p.is_image else _bars(finding, p, i, n_bars) for p in finding.parts]


def _image_grid(finding: InputMapsFinding, part: InputPart, i: int) -> FigureGrid:
    """An image and its map."""
    image, map_ = (as_images_or_none(h)[i] for h in (part.x, part.map))  # type: ignore[index]
    shown, why = render_map(image, map_), finding.why(i)
    lines = (f"by {finding.method_name}", part.share_text(i), f"scale {shown.scale}")
    return FigureGrid([
        Figure(PageImage(colors.image_to_rgb(image), f"{part.name} of the example", FIGURE_SIDE_PIXELS), part.name),
        Figure(PageImage(shown.shown, f"{part.name}: {why}", FIGURE_SIDE_PIXELS), f"{part.name}: {why}", lines),
    ])  # fmt: skip


def _bars(finding: InputMapsFinding, part: InputPart, i: int, n_bars: int) -> SignedBars:
    """The values of a table that count most."""
    values, weights = part.x[i].flatten().tolist(), part.map[i].flatten()
    order = weights.abs().argsort(descending=True, stable=True)[:n_bars].tolist()
    bars = [(f"{breakable(part.value_name(k))} = {values[k]:.4g}", float(weights[k])) for k in order]
    rest = len(values) - len(bars)
    more = f"; {count_noun(rest, 'smaller one')} not shown" if rest else ""
    title = f"{part.name}: {finding.why(i)}"
    unit = f", {finding.unit}" if finding.unit else ""
    return SignedBars(title, (part.share_text(i),), bars, f"By {finding.method_name}{unit}{more}.")
