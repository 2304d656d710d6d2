"""The figures of a dictionary: the top examples of its strongest features, and the table beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from ...concepts import Dictionary, DictionaryScore
from ..charts import bar_chart
from ..figures import Figures, figures
from ..sheet import Tile, contact_sheet
from .common import fetch_images_at, image_tiles

if TYPE_CHECKING:
    from ...box import Box

MAX_FEATURES, N_EXAMPLES = 8, 5  # rows of the figure, and examples of each
TILE_SIDE_PIXELS = 84


@figures.register(Dictionary)
def _dictionary_figures(result: Dictionary, box: Box | None = None, *, data: Any = None) -> Figures:
    """The table as bars; with data that are images, the top examples of the strongest features first."""
    rows = feature_example_tiles(result, box, data)
    table = {"dictionary": dictionary_scores_chart(result)}
    if not rows:
        return table
    names = [f"feature {i}: {float(result.frequency[i]):.1%} have it" for i in range(len(rows))]
    title = f"Features of {result.layer} and their top examples: {result.verdict}"
    return {"features": contact_sheet(rows, title=title, names=names, side=TILE_SIDE_PIXELS)} | table


def feature_example_tiles(result: Dictionary, box: Box | None, data: Any) -> list[list[Tile | None]]:
    """The top examples of the strongest features, with their amounts; empty where the data are no images."""
    index = result.example_index[:MAX_FEATURES, :N_EXAMPLES]
    images = fetch_images_at(data, index, box)
    if images is None:
        return []
    amounts = result.example_amount[:MAX_FEATURES, :N_EXAMPLES]
    return [
        image_tiles(images[i * index.shape[1] :][: index.shape[1]], [f"{a:.3g}" for a in row])
        for i, row in enumerate(amounts.tolist())
    ]


def dictionary_scores_chart(result: Dictionary) -> Image.Image:
    """Explained variance, the same with k directions, and predictions kept, of each row of the table."""
    k = result.autoencoder.k
    series: dict[str, Any] = {
        "explained variance": [_rounded_nonnegative_share(s.explained_variance.mean) for s in result.scores],
        f"with {k} direction{'s' * (k > 1)}": [_rounded_nonnegative_share(s.explained_at_k) for s in result.scores],
    }
    if all(s.rebuilt.kept is not None for s in result.scores):
        series["predictions kept"] = [s.rebuilt.kept for s in result.scores]
    title = f"A dictionary of {result.layer} beside others: {result.verdict}"
    names = [_chart_row_name(s) for s in result.scores]
    return bar_chart(series, names, title=title, label="share, of held-out examples", value_range=(0, 1.15))


def _rounded_nonnegative_share(value: float) -> float:
    return max(0.0, round(value, 4))


def _chart_row_name(s: DictionaryScore) -> str:
    """A row of the table in words: its size, how many are active, and whether other seeds give the same."""
    if not s.n_features:
        return s.name
    stability = "" if s.stability is None else f", seeds agree {s.stability:.2f}"
    return f"{s.name}: {s.n_features}, {s.active:.3g} active{stability}"
