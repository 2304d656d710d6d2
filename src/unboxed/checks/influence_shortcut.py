"""The planted shortcut's test of influence methods: do the training images that planted it come first?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import Card, cards
from ..errors import UnboxedError
from ..influence import Influence
from .influence_planting import N_TOP_TRAIN_IMAGES_PER_QUERY
from .influence_tests import InfluenceMethod
from .planting import PlantedDataset
from .shortcut_trial import ShortcutFinding, ShortcutTrial, fraction_of_true, shortcut_grade_of_scores
from .verdict import NOT_APPLICABLE


def influence_test(trial: ShortcutTrial) -> Iterator[ShortcutFinding]:
    """Are poisoned training images the most helpful ones for the class of a mismatched trigger?

    On the control, whose images are the same ones without a trigger and with their own labels, they should not be.
    """
    if trial.training_data is None:
        return
    names = {card.key: card.name for card in cards("influence")}
    methods: Mapping[str, InfluenceMethod] = (
        {card.key: card.method for card in cards("influence") if is_influence_method(card)}
        if trial.influence_methods is None
        else trial.influence_methods
    )
    for name, method in methods.items():
        try:
            yield from _influence_finding(trial, name, names.get(name, name), method)
        except UnboxedError as error:
            yield ShortcutFinding("influence", name, names.get(name, name), NOT_APPLICABLE, str(error))


def is_influence_method(card: Card) -> bool:
    """Whether a method can be called as (box, x, labels, train)."""
    parameters = list(signature(card.method).parameters.values())[3:]
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return required == ["train"]


def _influence_finding(
    trial: ShortcutTrial, name: str, title: str, method: InfluenceMethod
) -> Iterator[ShortcutFinding]:
    data, control_data = trial.training_data or (None, None)
    if data is None or control_data is None:
        return
    n_mismatched = min(trial.n_examples, len(trial.mismatched_rows_and_classes[0]))
    x, classes = (part[:n_mismatched] for part in trial.explained_images_and_classes)
    tops = [
        _top_train_rows(method, box, x, classes, part)
        for box, part in zip(trial.model_and_control_boxes, (data, control_data), strict=True)
    ]
    if any(rows is None for rows in tops):
        return  # no scores of training examples for queries
    score, control = (
        fraction_of_true(data.is_poisoned[rows] & (data.labels[rows] == classes[:, None])) for rows in tops
    )
    with_label = torch.isin(data.labels, torch.tensor(trial.trigger.classes))
    figures = {
        "base": fraction_of_true(data.is_poisoned[with_label]),
        "same_label": fraction_of_true(data.labels[tops[0]] == classes[:, None]),
    }
    sentence = (
        f"of the {N_TOP_TRAIN_IMAGES_PER_QUERY} most helpful training images for the class of a "
        f"mismatched trigger {score:.0%} are "
        f"poisoned (the control model: {control:.0%}; of all with that label {figures['base']:.0%})"
    )
    yield ShortcutFinding(
        "influence",
        name,
        title,
        shortcut_grade_of_scores(score, control),
        sentence,
        f"poisoned images in the top {N_TOP_TRAIN_IMAGES_PER_QUERY}",
        score,
        control,
        figures,
        (data.images[tops[0][0]], control_data.images[tops[1][0]]),
    )


def _top_train_rows(method: InfluenceMethod, box: Box, x: Tensor, classes: Tensor, data: PlantedDataset) -> Any:
    """(Q, N_TOP_TRAIN_IMAGES_PER_QUERY) rows of the most helpful training images; None of other things than scores."""
    result = method(box, x, classes, (data.images, data.labels))
    return result.top(N_TOP_TRAIN_IMAGES_PER_QUERY).cpu() if isinstance(result, Influence) else None
