"""A look at confused inputs as one contact sheet: a block of 2 x 3 pictures for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod, sqrt

from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..inputs.base import Inputs
from ..plots import colors
from ..plots.draw import shared_vmax, signed_map_to_rgb
from ..plots.sheet import BACKGROUND_COLOR, ColorBar, Tile, contact_sheet
from .confused import ConfusedInputs

CONFUSION_TILE_SIDE_PIXELS = 168
ToPixelsFn = Callable[[Tensor], Tensor]  # what the model gets (C, H, W) -> [0, 1]


def confusion_sheet(
    confused: ConfusedInputs, class_names: Sequence[str], projection_factor: float, inputs: Inputs | None = None
) -> Image.Image:
    """The blocks of all inputs on one sheet: near a square, no more than three side by side.

    `inputs` decodes what the model gets to pixels. Raises InputError where the inputs are no images.
    """
    shape = image_shape_or_none(tuple(confused.inputs.shape[1:]), inputs)
    if shape is None:
        raise InputError(not_images_text(confused.inputs))
    return _arrange_blocks(
        [
            _draw_input_block(confused, row, shape, class_names, projection_factor, inputs)
            for row in range(len(confused))
        ]
    )


def image_shape_or_none(shape: tuple[int, ...], inputs: Inputs | None) -> tuple[int, ...] | None:
    """(C, H, W) of one input, as which it is drawn; flattened ones take it from `inputs`. None: no image."""
    expected = shape if inputs is None else inputs.shape
    return expected if len(expected) == 3 and prod(expected) == prod(shape) else None


def not_images_text(x: Tensor) -> str:
    return (
        f"inputs of shape {tuple(x.shape[1:])} are no images (C, H, W) and can't be drawn; what is found comes back as "
        "data. For flattened images give inputs=Pixels((C, H, W))"
    )


def _draw_input_block(
    confused: ConfusedInputs,
    row: int,
    shape: tuple[int, ...],
    class_names: Sequence[str],
    projection_factor: float,
    inputs: Inputs | None,
) -> Image.Image:
    """Input i with its label, d logit / dx of both classes, and the input plus `factor` times each."""
    x, maps = confused.inputs[row].view(shape).cpu(), confused.gradients[row].view(2, *shape).cpu()
    to_pixels, range_notes = _to_pixels_fn_and_notes(x, inputs)
    vmax = shared_vmax(maps)
    caption_lines = [
        "input" + _label_suffix_text(confused, row, class_names),
        *range_notes,
        *[f"mean of {shape[0]} channels"] * (shape[0] not in (1, 3)),
    ]
    top_tiles = [Tile(colors.image_to_rgb(to_pixels(x)), "\n".join(caption_lines))]
    bottom_tiles: list[Tile | None] = [None]
    for class_index, gradient_map, is_clamped in zip(
        confused.classes[row].tolist(), maps, confused.is_clamped[row].tolist(), strict=True
    ):
        gradient_name = f"d logit {class_names[class_index]} / dx"
        gradient_lines = [
            gradient_name,
            f"logit {confused.logits[row, class_index].item():.3f}",
            *["before the clamp"] * is_clamped,
        ]
        top_tiles.append(Tile(signed_map_to_rgb(gradient_map, vmax), "\n".join(gradient_lines)))
        bottom_tiles.append(
            Tile(
                colors.image_to_rgb(to_pixels(x + projection_factor * gradient_map)),
                f"input\n+ {projection_factor:g} × {gradient_name}",
            )
        )
    sum_note = f", summed over {shape[0]} channels" if shape[0] > 1 else ""
    color_bar = ColorBar("signed", vmax, f"d logit / dx in the model's own units{sum_note}")
    first_class, second_class = (class_names[k] for k in confused.classes[row].tolist())
    return contact_sheet(
        [top_tiles, bottom_tiles],
        title=f"step {confused.step}: {first_class} or {second_class}?",
        bars=[color_bar],
        side=CONFUSION_TILE_SIDE_PIXELS,
    )


def _to_pixels_fn_and_notes(x: Tensor, inputs: Inputs | None) -> tuple[ToPixelsFn, list[str]]:
    """How this input (C, H, W) and what lies near it are drawn, and what must be said of it."""
    if inputs is not None:
        return lambda z: inputs.decode(z[None])[0], []
    lower, upper = x.min().item(), x.max().item()
    if lower >= 0 and upper <= 1:
        return lambda z: z, []
    return lambda z: (z - lower) / ((upper - lower) or 1), [f"black {lower:.3g}, white {upper:.3g}"]


def _label_suffix_text(confused: ConfusedInputs, row: int, class_names: Sequence[str]) -> str:
    if confused.labels is None:
        return ""
    label = confused.labels[row]
    class_index = label.argmax() if label.ndim else label  # one-hot, or mixed
    has_name = not class_index.is_floating_point() and 0 <= int(class_index) < len(class_names)
    return f", label {class_names[int(class_index)] if has_name else f'{class_index.item():g}'}"


def _arrange_blocks(blocks: Sequence[Image.Image]) -> Image.Image:
    columns = min(3, ceil(sqrt(len(blocks))))
    rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    block_width = max(b.width for b in blocks)
    sheet = Image.new("RGB", (block_width * columns, sum(max(b.height for b in row) for row in rows)), BACKGROUND_COLOR)
    top = 0
    for row in rows:
        for i, block in enumerate(row):
            sheet.paste(block, (i * block_width, top))
        top += max(b.height for b in row)
    return sheet
