"""The examples that a reader can follow through the page: what is said of each, and the button that chooses it."""

from __future__ import annotations

from dataclasses import dataclass

from .context import ReportContext
from .pictures import EncodedImageRef, PageImageStore
from .survey import map_score_text

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
        made.append(FollowedExample(_followed_text(context, place, example.heading), name, picture))
    return made


def _followed_text(context: ReportContext, place: int, name: str) -> str:
    """Which example is followed, and why."""
    i = context.followed_indices[place]
    label, is_value = context.label_name(i), context.survey.targets is not None
    truth = "" if label is None else f" Its {'true value' if is_value else 'label'} is {label}."
    verb = "The model's output is" if context.is_regression else "The model predicts"
    return f"{name}. {verb} {context.prediction_text(i)}.{truth} {_why_followed(context, place)}"


def _why_followed(context: ReportContext, place: int) -> str:
    s, i = context.survey, context.followed_indices[place]
    if place == 0 and context.example is not None:
        return "It was asked for."
    if i in s.misclassified:
        return "It is the most confident error." if i == s.misclassified[0] else "It is another error."
    if i != s.indices_by_margin[0]:
        return "It is a typical example of its class." if s.exclusive_classes else ""
    if s.exclusive_classes:
        return "Its margin is the lowest."
    if s.map_scores is not None:
        return f"Its prediction overlaps least with its label map: {map_score_text(s, i)}."
    return "Its error is the largest." if s.targets is not None else "It is the first."
