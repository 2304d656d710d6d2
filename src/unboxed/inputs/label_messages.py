"""What is said of labels that are matched to the classes of a model: what is a guess, and what has no match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..validation import nearest_names

SUBFOLDERS = "subfolders"  # what has the names, first in a `names_source`
MAX_NAMES_IN_MESSAGE = 5  # in a message
WORDNET_SYNSET_PATTERN = re.compile(r"(n\d{8})(?:[\s:,]+(.+))?")  # of WordNet: its id, and its names
CLASS_NAMES_ADVICE = "Say what the model's outputs are called, in their order: --classes (classes= in Python). Or "
FOLDERS_ADVICE = "rename the subfolders, or leave labels out: all images in one folder"
LABELS_ADVICE = "rename the labels, or leave them out: a table or file without their column, x without y"
SYNSET_ADVICE = (
    "These are WordNet ids: give --classes imagenet_class_index.json, or a file of lines like n02108089 boxer. "
)


def numeric_names_text(names: Sequence[str], classes: Sequence[str], names_source: str) -> str:
    pairs = _first_names_text([f"{name} is {classes[int(name)]}" for name in names])
    return f"the {names_source} are numbers, so they mean outputs of the model: {pairs}"


def assumed_name_order_text(names: Sequence[str], names_source: str) -> str:
    order = "the order of their names" if [*names] == sorted(names) else "their order there"
    assumption = f"the {names_source} are matched to the {len(names)} classes in {order}: "
    advice = "if the model has another order, give --classes (classes= in Python)"
    return f"{assumption}{_first_names_text(names, numbered=True)}; {advice}"


def text_sorted_folders_text(largest: str) -> str:
    advice = "if it was trained on folders sorted as text (10 before 2, as torchvision's ImageFolder does), give "
    return (
        f"class names that are numbers mean outputs: {largest!r} is matched to that output of the model; {advice}its "
        "classes in that order: --classes (classes= in Python)"
    )


def unmatched_labels_message(
    name_of: Mapping[Any, str], classes: Sequence[str], matched: Mapping[Any, int], names_source: str
) -> str:
    unmatched = [name for label, name in name_of.items() if label not in matched]
    if not matched:
        subject = f"the {names_source} ({_first_names_text(unmatched)}) are not"
    else:
        subject = (
            f"{len(unmatched)} of the {len(name_of)} {names_source} ({_first_names_text(unmatched)}) are not among"
        )
    suggestions = [
        f"{name!r} is nearest to {_quote_names(closest)}"
        for name in unmatched[:MAX_NAMES_IN_MESSAGE]
        if (closest := nearest_names(name, classes))
    ]
    hint = f"; {', '.join(suggestions)}" if suggestions else ""
    synsets = SYNSET_ADVICE if all(WORDNET_SYNSET_PATTERN.fullmatch(name) for name in unmatched) else ""
    counted = "; outputs are counted from 0" if all(name.isdecimal() for name in unmatched) else ""
    classes_text = f"the model's {len(classes)} classes ({_first_names_text(classes)})"
    advice = CLASS_NAMES_ADVICE + (FOLDERS_ADVICE if names_source.startswith(SUBFOLDERS) else LABELS_ADVICE)
    return f"{subject} {classes_text}{hint}{counted}. {synsets}{advice}"


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _first_names_text(names: Sequence[str], numbered: bool = False) -> str:
    shown = [f"{i} is {name}" if numbered else name for i, name in enumerate(names[:MAX_NAMES_IN_MESSAGE])]
    return ", ".join(shown) + (
        f", and {len(names) - MAX_NAMES_IN_MESSAGE} more" if len(names) > MAX_NAMES_IN_MESSAGE else ""
    )
