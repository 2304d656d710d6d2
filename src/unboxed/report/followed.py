"""The examples that a reader can follow through the page: what is said of each, and the button that chooses it."""

from __future__ import annotations

from dataclasses import dataclass

from .context import ReportContext
from .finding import Example
from .pictures import EncodedImageRef, PageImageStore
from .survey import map_score_text
from .words import quoted

CHOOSER_SIDE_PIXELS = 48


@dataclass(frozen=True)
class FollowedExample:
    """One of them, as the page shows it."""

    text: str
    name: str
    picture: EncodedImageRef | None = None  # None where inputs are no images


def followed_examples(context: ReportContext, pictures: PageImageStore) -> list[FollowedExample]:
    """Those of the context, in their order."""
    made = list[FollowedExample]()
    for place, example in enumerate(context.examples(context.followed_indices)):
        picture = pictures.encode(example.figure(CHOOSER_SIDE_PIXELS).picture) if context.has_images else None
        name = example.text or example.heading
        made.append(FollowedExample(_followed_text(context, place, example), name, picture))
    return made


def _followed_text(context: ReportContext, place: int, example: Example) -> str:
    """Which example is followed, and why."""
    why = _why_followed(context, place)
    if example.score:  # of a label map, whose most frequent class says nothing
        return f"{example.heading}. {why}"
    i = context.followed_indices[place]
    label, prediction = context.label_name(i), context.prediction_text(i, quote=True)
    label = label if label is None or context.is_regression else quoted(label)
    verb = "are" if example.label_noun.endswith("s") else "is"
    truth = "" if label is None else f" Its {example.label_noun} {verb} {label}."
    legend = " Here and below, p is the probability that the model gives." if "p\u00a0" in prediction else ""
    return f"{example.heading}. The model predicts {prediction}.{truth} {why}{legend}"


def _why_followed(context: ReportContext, place: int) -> str:
    s, i = context.survey, context.followed_indices[place]
    overlap = f": {map_score_text(s, i)}" if s.map_scores is not None else ""
    if place == 0 and context.example is not None:
        return f"It was asked for{overlap}."
    if i in s.misclassified:
        return "It is the most confident error." if i == s.misclassified[0] else "It is another error."
    if context.has_texts and place == 0 and not s.misclassified:
        return "It makes no error; of a few texts this one's answer depends most on single words."
    if i in s.typical_indices and not (i == s.indices_by_margin[0] and s.exclusive_classes):
        return f"It is a typical example{' of its class' if s.exclusive_classes else overlap}."
    is_first = i == s.indices_by_margin[0]
    if s.exclusive_classes:
        return "Its margin is the lowest." if is_first else "It is a typical example of its class."
    if s.map_scores is not None:
        return f"Its prediction overlaps {'least' if is_first else 'little'} with its label map{overlap}."
    if s.targets is not None:
        return "Its error is the largest." if is_first else "Its error is one of the largest."
    return "It is the first." if is_first else ""
