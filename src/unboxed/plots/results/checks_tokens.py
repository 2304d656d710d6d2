"""The figures of the check of tokens: lengths by block, where outliers are, and the maps that they spoil."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...checks import TokenCheck
from .. import colors
from ..charts import bar_chart, line_chart
from ..figures import Figures, figures
from ..sheet import ColorBar, Tile, contact_sheet
from .common import MAX_EXAMPLES_PER_FIGURE, as_images_or_none, image_tiles, numbered_names

if TYPE_CHECKING:
    from ...box import Box


@figures.register(TokenCheck)
def _token_check_figures(result: TokenCheck, box: Box | None = None, *, data: Any = None) -> Figures:
    """The longest patch by block; where there are outliers, their places before and after, and the maps."""
    images: dict[str, Any] = {"lengths": _length_chart(result)}
    if result.norms_with_register is not None:
        images["places"] = _places_sheet(result, as_images_or_none(data))
    if result.maps:
        images["maps"] = _maps_chart(result)
    return images


def _length_chart(result: TokenCheck) -> Any:
    at = range(len(result.blocks))
    lines = {"as it is": (at, _longest_in_medians(result.norms))}
    if result.norms_with_register is not None:
        lines["with the register"] = at, _longest_in_medians(result.norms_with_register)
    lines["outliers begin here"] = at, [result.min_ratio] * len(result.blocks)
    return line_chart(
        lines, title=f"The longest patch after each block: {result.verdict}", y_label="length / median length",
        ticks=list(result.blocks),
    )  # fmt: skip


def _longest_in_medians(norms: Tensor) -> list[float]:
    by_block = norms.transpose(0, 1).flatten(1)  # (L, N * P)
    return (by_block.amax(1) / by_block.median(1).values).tolist()


def _places_sheet(result: TokenCheck, images: Tensor | None) -> Any:
    """The lengths of each patch after the worst block, without and with the register, on one scale."""
    rows = result.outliers.any(1).nonzero().flatten()[:MAX_EXAMPLES_PER_FIGURE]
    worst = result.blocks.index(result.worst_block)
    after = result.norms_with_register
    norms = [h[rows, worst].reshape(-1, *result.size).cpu() for h in (result.norms, after) if h is not None]
    vmax = float(max(h.max() for h in norms))
    grid = [[Tile(colors.magnitude_to_rgb(m.numpy(), vmax)) for m in h] for h in norms]
    names = ["as it is", "with the register"]
    if images is not None and len(images) == len(result.norms):
        grid, names = [image_tiles(images[rows.to(images.device)]), *grid], ["input", *names]  # type: ignore[list-item]
    title = f"Lengths of the patches after {result.worst_block}"
    columns = [numbered_names(len(result.norms))[i] for i in rows.tolist()]
    return contact_sheet(grid, title=title, names=names, columns=columns, bars=[ColorBar("magnitude", vmax)], side=84)


def _maps_chart(result: TokenCheck) -> Any:
    series = {kind: [getattr(m, field) for m in result.maps.values()]
              for kind, field in (("as it is", "before"), ("with the register", "after"))}  # fmt: skip
    return bar_chart(
        series, list(result.maps), title="Maps at outlier patches", max_length=MAX_SHOWN_RATIO,
        label=f"mean magnitude there / elsewhere; bars end at {MAX_SHOWN_RATIO:g}",
    )  # fmt: skip


MAX_SHOWN_RATIO = 20.0
