"""The figures of generated images: the images with what they are of, and their frames where they were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...synthesis import Channels, ClassImages, Inversion, Inversions, Morph, Silence
from ...synthesis.generated import GeneratedImages
from ..attack_sheet import change_sheet
from ..draw import class_sheet, morph_strip
from ..figures import Figures, figures
from ..generated import frame_strip, image_sheet
from ..sheet import contact_sheet
from .common import MAX_EXAMPLES, as_images, class_name, examples_at, first_images, image_tiles, row_names

if TYPE_CHECKING:
    from ...box import Box

MAX_IMAGES = 24


@figures.register(GeneratedImages)
def _generated_figures(result: GeneratedImages, box: Box | None = None, *, data: Any = None) -> Figures:
    """With their inputs above them where the data are given, as for DeepDream."""
    captions = [f"score {s:.3g}" for s in result.scores.tolist()]
    return _images_and_frames(result, captions, getattr(result, "method", ""), examples_at(data, range(len(captions))))


@figures.register(ClassImages)
def _class_image_figures(result: ClassImages, box: Box | None = None, *, data: Any = None) -> Figures:
    targets = result.targets.tolist()
    p = result.probs[range(len(targets)), targets] if result.probs.shape[1] > max(targets, default=0) else result.scores
    captions = [f"{class_name(k, (), box)}: p {v:.2f}" for k, v in zip(targets, p.tolist(), strict=True)]
    return _images_and_frames(result, captions, "Class images")


@figures.register(Channels)
def _channel_figures(result: Channels, box: Box | None = None, *, data: Any = None) -> Figures:
    rows = zip(result.targets.tolist(), result.scores.tolist(), result.dead.tolist(), strict=True)
    captions = [f"channel {k}\n{'dead' if dead else f'score {s:.3g}'}" for k, s, dead in rows]
    return _images_and_frames(result, captions, f"Channels of {result.layer}")


@figures.register(Inversion)
def _inversion_figures(result: Inversion, box: Box | None = None, *, data: Any = None) -> Figures:
    """The inverted images, below their inputs where the data are given."""
    captions = [
        f"error {e:.2g}\ncosine {c:.2f}" for e, c in zip(result.errors.tolist(), result.cosines.tolist(), strict=True)
    ]
    return _images_and_frames(result, captions, f"Inverted from {result.path}", examples_at(data, result.source_rows))


@figures.register(Inversions)
def _inversions_figures(result: Inversions, box: Box | None = None, *, data: Any = None) -> Figures:
    rows = {path: images[:MAX_EXAMPLES] for path, images in zip(result.layers, result.images, strict=True)}
    captions = {path: [f"error {e:.2g}" for e in errors[:MAX_EXAMPLES].tolist()]
                for path, errors in zip(result.layers, result.errors, strict=True)}  # fmt: skip
    x = examples_at(data, result.source_rows[:MAX_EXAMPLES])
    if x is not None:
        rows = {"input": x, **rows}
    names = [f"example {i}" for i in result.source_rows[:MAX_EXAMPLES].tolist()]
    return {"images": class_sheet(rows, names, captions, title="Inverted from each layer")}


@figures.register(Morph)
def _morph_figures(result: Morph, box: Box | None = None, *, data: Any = None) -> Figures:
    """A strip of frames per example."""
    n_classes = result.probs.shape[-1]
    classes = [class_name(k, (), box) for k in range(n_classes)]
    targets = result.target.tolist()[:MAX_EXAMPLES]
    return {f"morph {i}": morph_strip(result, i, classes, k) for i, k in enumerate(targets)}


@figures.register(Silence)
def _silence_figures(result: Silence, box: Box | None = None, *, data: Any = None) -> Figures:
    """The input, the image at which the unit is inactive, and the change between them."""
    captions = {
        "input": [f"score {s:.3g}" for s in result.score_before.tolist()],
        "changed": [f"score {s:.3g}" for s in result.score_after.tolist()],
        "change": [f"distance {d:.3g}" for d in result.distance.tolist()],
    }
    x, z = first_images(result.input), first_images(result.images)
    return {} if x is None else {"change": change_sheet(x, z, captions)}


def _images_and_frames(result: Any, captions: list[str], title: str = "", x: Any = None) -> Figures:
    """The images, below the inputs x that they were made from if there are any; and frames where they were kept."""
    images = first_images(result.images)
    if images is None:
        return {}
    if x is None:
        return {
            "images": image_sheet(result, captions=captions, title=title, max_images=MAX_IMAGES),
            **_frames(result, title),
        }
    rows = [image_tiles(x[:MAX_EXAMPLES]), image_tiles(images[:MAX_EXAMPLES], captions)]
    sheet = contact_sheet(rows, title=title, names=["input", "image"], side=112)
    return {"images": sheet, **_frames(result, title)}


def _frames(result: Any, title: str) -> Figures:
    if result.frames is None or as_images(result.frames[0]) is None:
        return {}
    names = row_names(min(result.frames.shape[1], MAX_EXAMPLES), "image")
    return {"frames": frame_strip(result, names=names, title=title, max_rows=MAX_EXAMPLES)}
