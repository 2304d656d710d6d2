"""A look at confused inputs as one contact sheet: a block of 2 x 3 pictures for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod, sqrt

from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..inputs.base import Inputs
from ..plots import colors
from ..plots.draw import shared_reach, signed_map
from ..plots.sheet import PAPER, Bar, Tile, sheet
from .confused import Confused

SIDE = 168
Pixels = Callable[[Tensor], Tensor]  # what the model gets (C, H, W) -> [0, 1]


def picture(found: Confused, names: Sequence[str], factor: float, inputs: Inputs | None = None) -> Image.Image:
    """The blocks of all inputs on one sheet: near a square, no more than three side by side.

    `inputs` decodes what the model gets to pixels. Raises InputError where the inputs are no images.
    """
    shape = image_shape(tuple(found.inputs.shape[1:]), inputs)
    if shape is None:
        raise InputError(no_images(found.inputs))
    return _grid([_block(found, i, shape, names, factor, inputs) for i in range(len(found))])


def image_shape(shape: tuple[int, ...], inputs: Inputs | None) -> tuple[int, ...] | None:
    """(C, H, W) of one input, as which it is drawn; flattened ones take it from `inputs`. None: no image."""
    wanted = shape if inputs is None else inputs.shape
    return wanted if len(wanted) == 3 and prod(wanted) == prod(shape) else None


def no_images(x: Tensor) -> str:
    return (
        f"inputs of shape {tuple(x.shape[1:])} are no images (C, H, W) and can't be drawn; what is found comes back as "
        "data. For flattened images give inputs=Pixels((C, H, W))"
    )


def _block(
    found: Confused, i: int, shape: tuple[int, ...], names: Sequence[str], factor: float, inputs: Inputs | None
) -> Image.Image:
    """Input i with its label, d logit / dx of both classes, and the input plus `factor` times each."""
    x, maps = found.inputs[i].view(shape).cpu(), found.gradients[i].view(2, *shape).cpu()
    pixels, levels = _pixels(x, inputs)
    scale = shared_reach(maps)
    shown = ["input" + _label(found, i, names), *levels, *[f"mean of {shape[0]} channels"] * (shape[0] not in (1, 3))]
    top = [Tile(colors.image(pixels(x)), "\n".join(shown))]
    below: list[Tile | None] = [None]
    for k, m, clamped in zip(found.classes[i].tolist(), maps, found.before_clamp[i].tolist(), strict=True):
        slope = f"d logit {names[k]} / dx"
        words = [slope, f"logit {found.logits[i, k].item():.3f}", *["before the clamp"] * clamped]
        top.append(Tile(signed_map(m, scale), "\n".join(words)))
        below.append(Tile(colors.image(pixels(x + factor * m)), f"input\n+ {factor:g} × {slope}"))
    summed = f", summed over {shape[0]} channels" if shape[0] > 1 else ""
    bar = Bar("signed", scale, f"d logit / dx in the model's own units{summed}")
    a, b = (names[k] for k in found.classes[i].tolist())
    return sheet([top, below], title=f"step {found.step}: {a} or {b}?", bars=[bar], side=SIDE)


def _pixels(x: Tensor, inputs: Inputs | None) -> tuple[Pixels, list[str]]:
    """How this input (C, H, W) and what lies near it are drawn, and what must be said of it."""
    if inputs is not None:
        return lambda z: inputs.decode(z[None])[0], []
    low, high = x.min().item(), x.max().item()
    if low >= 0 and high <= 1:
        return lambda z: z, []
    return lambda z: (z - low) / ((high - low) or 1), [f"black {low:.3g}, white {high:.3g}"]


def _label(found: Confused, i: int, names: Sequence[str]) -> str:
    if found.labels is None:
        return ""
    label = found.labels[i]
    k = label.argmax() if label.ndim else label  # one-hot, or mixed
    known = not k.is_floating_point() and 0 <= int(k) < len(names)
    return f", label {names[int(k)] if known else f'{k.item():g}'}"


def _grid(blocks: Sequence[Image.Image]) -> Image.Image:
    columns = min(3, ceil(sqrt(len(blocks))))
    rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    wide = max(b.width for b in blocks)
    page = Image.new("RGB", (wide * columns, sum(max(b.height for b in row) for row in rows)), PAPER)
    y = 0
    for row in rows:
        for i, block in enumerate(row):
            page.paste(block, (i * wide, y))
        y += max(b.height for b in row)
    return page
