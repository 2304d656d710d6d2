"""The figures of generated images: the images with what they are of, and their frames where they were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from ...synthesis import Channels, ClassImages, Inversion, Inversions, MinimalDeactivation, Morph
from ...synthesis.generated import GeneratedImages
from ..attack_sheet import input_change_sheet
from ..draw import class_sheet, morph_strip
from ..figures import Figures, figures
from ..generated import frame_strip, image_sheet, score_caption
from ..sheet import contact_sheet
from ..tables import column_change_bars, stack_panels
from .common import (
    MAX_EXAMPLES_PER_FIGURE,
    as_images_or_none,
    changed_columns_of_row,
    fetch_images_at,
    first_image_part,
    image_tiles,
    shown_of_total_suffix,
)

if TYPE_CHECKING:
    from ...box import Box

MAX_IMAGES_PER_FIGURE = 24


@figures.register(GeneratedImages)
def _generated_images_figures(result: GeneratedImages, box: Box | None = None, *, data: Any = None) -> Figures:
    """The images, below their inputs where the data are given, as for DeepDream; and frames where they were kept."""
    rows = zip(result.names, result.scores.tolist(), strict=True)
    captions = [score_caption(score, name) for name, score in rows]
    return _image_sheet_and_frame_figures(result, captions, fetch_images_at(data, range(len(captions)), box))


@figures.register(ClassImages)
def _class_image_figures(result: ClassImages, box: Box | None = None, *, data: Any = None) -> Figures:
    targets = result.targets.tolist()
    is_probability = result.probs.shape[1] > max(targets, default=0)
    values = result.probs[range(len(targets)), targets] if is_probability else result.scores
    captions = [f"{name}: p {v:.2f}" for name, v in zip(result.names, values.tolist(), strict=True)]
    return _image_sheet_and_frame_figures(result, captions)


@figures.register(Channels)
def _channel_figures(result: Channels, box: Box | None = None, *, data: Any = None) -> Figures:
    rows = zip(result.names, result.scores.tolist(), result.dead.tolist(), strict=True)
    captions = [f"{name}\ndead" if dead else score_caption(score, name) for name, score, dead in rows]
    return _image_sheet_and_frame_figures(result, captions)


@figures.register(Inversion)
def _inversion_figures(result: Inversion, box: Box | None = None, *, data: Any = None) -> Figures:
    rows = zip(result.errors.tolist(), result.cosines.tolist(), strict=True)
    captions = [f"error {error:.2g}\ncosine {cosine:.2f}" for error, cosine in rows]
    return _image_sheet_and_frame_figures(result, captions, fetch_images_at(data, result.source_rows, box))


@figures.register(Inversions)
def _inversions_figures(result: Inversions, box: Box | None = None, *, data: Any = None) -> Figures:
    rows = {path: images[:MAX_EXAMPLES_PER_FIGURE] for path, images in zip(result.layers, result.images, strict=True)}
    captions = {path: [f"error {e:.2g}" for e in errors[:MAX_EXAMPLES_PER_FIGURE].tolist()]
                for path, errors in zip(result.layers, result.errors, strict=True)}  # fmt: skip
    x = fetch_images_at(data, result.source_rows[:MAX_EXAMPLES_PER_FIGURE], box)
    if x is not None:
        rows = {"input": x, **rows}
    names = list(result.names[:MAX_EXAMPLES_PER_FIGURE])
    return {"images": class_sheet(rows, names, captions, title="Inverted from each layer")}


@figures.register(Morph)
def _morph_figures(result: Morph, box: Box | None = None, *, data: Any = None) -> Figures:
    """A strip of frames per example; of rows of a table, the columns that were changed."""
    if isinstance(result.images, Tensor) and result.images.ndim == 2:
        return {
            "change": stack_panels(
                [_counterfactual_bars_image(result, i, box) for i in range(min(len(result.targets), 4))]
            )
        }
    if not isinstance(result.frames, Tensor) or as_images_or_none(result.frames[0]) is None:
        return {}
    n = min(len(result.targets), MAX_EXAMPLES_PER_FIGURE)
    return {f"morph {i}": morph_strip(result, i) for i in range(n)}


def _counterfactual_bars_image(result: Morph, i: int, box: Box | None) -> Image.Image:
    """Which columns of a row were changed, and how far, for the model to predict the target."""
    k = int(result.targets[i])
    ending = "" if result.confidence_reached[i] else ", not reached"
    title = f"example {i} to {result.names[i]}: p {result.probs[0, i, k]:.2f} → {result.probs[-1, i, k]:.2f}{ending}"
    spec = result.input_spec if box is None else box.inputs
    return column_change_bars(changed_columns_of_row(spec, "", result.input[i], result.images[i]), title=title)


@figures.register(MinimalDeactivation)
def _deactivation_figures(result: MinimalDeactivation, box: Box | None = None, *, data: Any = None) -> Figures:
    """The input, the image at which the unit is inactive, and the change between them."""
    captions = {
        "input": [f"score {s:.3g}" for s in result.score_before.tolist()],
        "changed": [f"score {s:.3g}" for s in result.score_after.tolist()],
        "change": [f"distance {d:.3g}" for d in result.distance.tolist()],
    }
    x, z = first_image_part(result.input), first_image_part(result.images)
    return {} if x is None else {"change": input_change_sheet(x, z, captions, title=result.method)}


def _image_sheet_and_frame_figures(result: GeneratedImages, captions: list[str], x: Tensor | None = None) -> Figures:
    """The images, below the inputs x that they were made from if there are any; and frames where they were kept."""
    images = first_image_part(result.images)
    if images is None:
        return {}
    title = f"{result.method}{f' of layer {result.layer}' if result.layer else ''}"
    n_shown = min(len(images), MAX_IMAGES_PER_FIGURE if x is None else MAX_EXAMPLES_PER_FIGURE)
    sheet_title = title + shown_of_total_suffix(n_shown, len(images), "image")
    if x is None:
        sheet = image_sheet(result, captions=captions, title=sheet_title, max_images=MAX_IMAGES_PER_FIGURE)
    else:
        rows = [image_tiles(x[:MAX_EXAMPLES_PER_FIGURE]), image_tiles(images[:MAX_EXAMPLES_PER_FIGURE], captions)]
        sheet = contact_sheet(rows, title=sheet_title, names=["input", "image"], side=112)
    if result.frames is None or as_images_or_none(result.frames[0]) is None:
        return {"images": sheet}
    strip = frame_strip(
        result, names=result.names[:MAX_EXAMPLES_PER_FIGURE], title=title, max_rows=MAX_EXAMPLES_PER_FIGURE
    )
    return {"images": sheet, "frames": strip}
