"""What the planted shortcut's methods drew, of the model that goes by the mark and of its control, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from . import colors
from .draw import shared_reach, signed_map
from .sheet import Bar, Tile, sheet

if TYPE_CHECKING:
    from ..checks.planting import Place
    from ..checks.shortcut import Shortcut
    from ..checks.trial import Finding

SIDE = 84
ON_IMAGE, ON_MAP = (255, 176, 0), (28, 28, 30)  # a mark's outline, to be seen on black and on white
NETS = ("with the shortcut", "control model")


def maps(found: Shortcut) -> Image.Image:
    """A row a method of attribution, a column an image: explained is the class whose mark it bears, on both models.

    A row has one scale, for both models; the mark is outlined.
    """
    rows = [f for f in found.findings if f.family == "attribution" and f.shown is not None]
    places = [found.mark.place(int(k)) for k in found.classes]
    grid = [_inputs(found, places), *(_maps(f, places) for f in rows)]
    names = ["input", *(f"{f.name}\n{f.verdict}\n{_percent(f)}\n±{_reach(f):.2g}" for f in rows)]
    columns = [f"{model}: {'false' if k != y else 'true'} mark" for model in NETS for k, y in _pairs(found)]
    bar = Bar("signed", 1.0, "in units of the row's own range, printed on its left")
    title = "Which methods show the planted shortcut? By their names: maps that peak at a false mark (control model)"
    return sheet(grid, title=title, columns=columns, names=names, bars=[bar], side=SIDE)


def _pairs(found: Shortcut) -> list[tuple[int, int]]:
    return list(zip(found.classes.tolist(), found.labels.tolist(), strict=True))


def _percent(f: Finding) -> str:
    return "" if f.found is None or f.control is None else f"{f.found:.0%} ({f.control:.0%})"


def _reach(f: Finding) -> float:
    return shared_reach(*(f.shown or ()))


def _inputs(found: Shortcut, places: Sequence[Place]) -> list[Tile]:
    tiles = []
    for said in found.predicted:
        for x, (k, y), p, place in zip(found.images, _pairs(found), said.tolist(), places, strict=True):
            tiles.append(Tile(outlined(colors.image(x), place, ON_IMAGE), f"a {y}, marked {k}\nanswer: {p}"))
    return tiles


def _maps(f: Finding, places: Sequence[Place]) -> list[Tile]:
    scale = _reach(f)
    each = [m for of_model in f.shown or () for m in of_model]
    return [Tile(outlined(signed_map(m, scale), place, ON_MAP)) for m, place in zip(each, [*places, *places])]  # noqa: B905


def outlined(picture: colors.Bytes, place: Place, color: tuple[int, int, int], side: int = SIDE) -> Image.Image:
    """A picture (H, W, 3), enlarged as on a sheet, with a line around a place of it."""
    im = colors.fitted(picture, side).convert("RGB")
    fy, fx = im.height / picture.shape[0], im.width / picture.shape[1]
    corner = round(place.left * fx) - 1, round(place.top * fy) - 1
    end = round((place.left + place.width) * fx), round((place.top + place.height) * fy)
    ImageDraw.Draw(im).rectangle((*corner, *end), outline=color)
    return im


def drawn(found: Shortcut) -> Image.Image:
    """Class images and top examples of the first marked class, of both models."""
    k = found.mark.classes[0]
    rows, names = list[list[Any]](), list[str]()
    for f in found.findings:
        if f.family in ("synthesis", "activations") and f.shown is not None:
            for images, model in zip(f.shown, NETS, strict=True):
                rows.append([Tile(colors.image(x)) for x in images])
                names.append(f"{f.name} of {k}\n{model}")
    return sheet(rows, title=f"What the model looks for in a {k}, and what it takes for one", names=names, side=84)
