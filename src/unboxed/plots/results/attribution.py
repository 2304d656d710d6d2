"""The figures of attribution maps: each input with its map below it, on one printed scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ...engine.attribution_result import Attribution
from ...engine.conservation import Conservation
from .. import colors
from ..attribution_plot import overlay_map
from ..charts import bar_chart
from ..draw import VMAX_QUANTILE
from ..figures import Figures, figures
from ..sheet import ColorBar, Tile, contact_sheet
from ..tables import MAX_TABLE_ROW_PANELS, attribution_axis_label, contribution_bars, contribution_swarm, stack_panels
from ..text_map import TextWithValues, text_sheet
from .common import MAX_EXAMPLES_PER_FIGURE, as_images_or_none, column_names, input_part_by_name, target_names

MIN_ROWS_FOR_SWARM = 8  # rows from which a summary is drawn
MAX_DRAWN_CONSERVATION_LAYERS = 14  # layers of an account of relevance that are drawn
MIN_DRAWN_HELD_BACK_SHARE = 5e-4  # of the score: what nowhere holds back more is left out

if TYPE_CHECKING:
    from ...box import Box


@figures.register(Attribution)
def _attribution_figures(attribution: Attribution, box: Box | None = None, *, data: Any = None) -> Figures:
    """Of several inputs, all and then one figure each; of tables with many rows, a summary of all of them, too.

    Slopes of a table are drawn per standard deviation, or range, of each column: they share an axis.
    """
    attribution = attribution.per_column_scale()
    account = attribution.extras.get("conservation")
    besides = {} if account is None else {"conservation": _conservation_figure(account)}
    if "tokens" in attribution.extras:
        return {"attribution": _token_attribution_figure(attribution, box), **besides}
    inputs = input_part_by_name(attribution.input)
    drawn: dict[str, Image.Image] = {}
    for name, m in input_part_by_name(attribution.map).items():
        drawn[f"attribution {name}".rstrip()] = _maps_figure(attribution, name, m, inputs.get(name), box)
        if m.ndim == 2 and len(m) >= MIN_ROWS_FOR_SWARM and inputs.get(name) is not None:
            names = column_names(box, name, m.shape[1], attribution.columns)
            title, label = (
                f"{attribution.method or 'Attribution'} of {len(m)} rows",
                f"{attribution_axis_label(attribution)}; red: high values",
            )
            drawn[f"summary {name}".rstrip()] = contribution_swarm(m, inputs[name], names, title=title, label=label)
    parts = [image for name, image in drawn.items() if name.startswith("attribution")]
    if len(parts) > 1:  # what is shown and saved holds all inputs
        drawn = {"attribution": stack_panels(parts), **drawn}
    return {**drawn, **besides}


@figures.register(Conservation)
def _conservation_figures(account: Conservation, box: Box | None = None, *, data: Any = None) -> Figures:
    return {"conservation": _conservation_figure(account)}


def _conservation_figure(account: Conservation) -> Image.Image:
    """What each layer holds back, from the score down: the layers that hold back most, where there are many."""
    shares = {kind: account.shares(values) for kind, values in account.held_back.items()}
    total = torch.stack([*shares.values()]).abs().sum(0)
    n_shown = max(1, min(MAX_DRAWN_CONSERVATION_LAYERS, int((total >= MIN_DRAWN_HELD_BACK_SHARE).sum())))
    shown = total.topk(n_shown).indices.sort(descending=True).values
    drawn = {
        kind: 100 * values[shown]
        for kind, values in shares.items()
        if float(values.abs().max()) >= MIN_DRAWN_HELD_BACK_SHARE
    }
    names = [account.layers[int(i)] for i in shown]
    label = f"% of the score that reaches no input; unaccounted for: at most {account.max_error:.0e} of the score"
    return bar_chart(drawn or {"biases": 0 * total[shown]}, names, title="Held back by each layer", label=label)


def _token_attribution_figure(attribution: Attribution, box: Box | None) -> Image.Image:
    """The words of each text, colored by what they add to the score."""
    n = min(len(attribution.map), MAX_EXAMPLES_PER_FIGURE)
    names = target_names(attribution.target, n, attribution.classes, box)
    texts = []
    for i, (words, name) in enumerate(zip(attribution.tokens[:n], names, strict=True)):
        score = "" if attribution.score is None else f"score {float(attribution.score[i]):.3g}"
        values, special = (h[i, : len(words)].tolist() for h in (attribution.map, attribution.special))
        texts.append(TextWithValues(words, values, special, ", ".join(filter(None, (name, score)))))
    return text_sheet(texts, title=attribution.method, unit=attribution_axis_label(attribution))


def _maps_figure(attribution: Attribution, part: str, m: Tensor, x: Any, box: Box | None) -> Image.Image:
    n = min(len(m), MAX_EXAMPLES_PER_FIGURE)
    names = target_names(attribution.target, n, attribution.classes, box)
    title = f"{attribution.method or 'Attribution'}{f' of layer {attribution.layer}' if attribution.layer else ''}"
    maps = as_images_or_none(m)
    if maps is None:
        heads = [f"{title}, example {i}{f': {name}' if name else ''}" for i, name in enumerate(names)]
        return _table_row_bar_panels(
            m,
            x,
            heads[:MAX_TABLE_ROW_PANELS],
            column_names(box, part, m[0].numel() if len(m) else 0, attribution.columns),
            attribution_axis_label(attribution),
        )
    scores = [] if attribution.score is None else [f"score {v:.3g}" for v in attribution.score[:n].tolist()]
    captions = ["\n".join(filter(None, lines)) for lines in zip(names, scores or [""] * n, strict=False)]
    images = as_images_or_none(x)
    return attribution_sheet(
        None if images is None else images[:n], maps[:n], captions=captions, title=title, unit=attribution.unit
    )


def _table_row_bar_panels(m: Tensor, x: Any, titles: Sequence[str], names: Sequence[str], label: str) -> Image.Image:
    """Bars of the first rows, below one another."""
    rows = [None] * len(m) if x is None else x.flatten(1)
    flat = m.flatten(1)
    return stack_panels(
        [contribution_bars(flat[i], rows[i], names, title=title, label=label) for i, title in enumerate(titles)]
    )


def attribution_sheet(
    x: Tensor | None, maps: Tensor, *, captions: Sequence[str] = (), title: str = "", unit: str = ""
) -> Image.Image:
    """Inputs (N, C, H, W) above their maps (N, C or 1, H, W), on one scale; photos get the map laid over them, too."""
    summed = colors.sum_channels(maps)  # (N, H, W)
    rgb, bar = _maps_rgb_and_color_bar(summed, unit)
    ranges = [f"{m.min():.2g} to {m.max():.2g}" for m in summed]
    rows = [[*map(Tile, rgb, ranges)]]
    names = ["map"]
    if x is not None:
        images = colors.image_to_rgb(x)
        padded = [*captions, *[""] * (len(images) - len(captions))]
        rows.insert(0, [*map(Tile, images, padded)])
        names.insert(0, "input")
        is_photo = max(images.shape[1:3]) > colors.MAX_PIXELATED_SIDE_PIXELS and images.shape[:3] == summed.shape
        if is_photo:
            rows.append([Tile(overlay_map(i, m, bar.vmax)) for i, m in zip(images, summed, strict=True)])
            names.append("map over input")
    side = (168 if len(maps) > 2 else 224) if max(summed.shape[1:]) > colors.MAX_PIXELATED_SIDE_PIXELS else 120
    return contact_sheet(rows, title=title, names=names, bars=[bar], side=side)


def _maps_rgb_and_color_bar(maps: colors.Array, unit: str = "") -> tuple[colors.Uint8Array, ColorBar]:
    """Maps around zero, also those that are positive everywhere: what is pale does not count."""
    vmax = colors.max_magnitude(maps, quantile=VMAX_QUANTILE)
    words = unit or "red raises the score" + ", blue lowers it" * bool((maps < 0).any())
    return colors.signal_map_to_band(colors.signed_to_rgb(maps, vmax)), ColorBar("signed", vmax, words)
