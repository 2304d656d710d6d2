"""Which examples' scores a concept is tested on, and which score that is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.class_labels import has_class_labels
from ..engine.read.edits import resolve_target
from ..engine.read.examples import indexed_examples, indexed_inputs
from ..errors import DataError
from ..inputs.labels import ClassLabels
from ..model.batching import BatchSize
from ..objectives import Objective


class TargetExamples(NamedTuple):
    """Examples of the target, with their score."""

    x: Tensor  # (N, ...)
    objective: Objective
    name: str  # of the score
    all_inputs: Tensor  # (A, ...) all examples of the data
    dataset_rows: Tensor  # (A,) their indices in the data: files that cannot be read are left out


def target_examples(
    box: Box, data: Any, target: ClassLabels | Objective | None, max_examples: int | None, batch_size: BatchSize
) -> TargetExamples:  # fmt: skip
    """The examples of a class, by label or else by prediction; of any other score all examples.

    Raises DataError where the class has none, InputError for a class that the model does not have.
    """
    has_classes = has_class_labels(box) and len(box.classes) > 1
    if has_classes:
        x, labels, dataset_rows = indexed_examples(box, data, max_examples)
    else:
        (x, dataset_rows), labels = indexed_inputs(box, data, max_examples), None
    selected = x
    if has_classes and target is not None and not isinstance(target, Objective):
        numbers = box.class_numbers(target)
        if numbers.ndim == 0:
            k = int(box.class_labels(numbers, 1))
            y = (box.predict(x, batch_size=batch_size) if labels is None else labels).cpu()
            selected = x[(y == k).nonzero().flatten().to(x.device)]
            if not len(selected):
                how = "predicted as" if labels is None else "labeled"
                raise DataError(f"no example of {len(x)} is {how} {box.classes[k]!r}, whose score is to be explained")
    objective = resolve_target(box, target, selected, batch_size)
    return TargetExamples(selected, objective, _name(box, target, objective), x, dataset_rows)


def _name(box: Box, target: ClassLabels | Objective | None, objective: Objective) -> str:
    if target is None:
        return "the predicted class"
    if isinstance(target, Objective):
        return objective.name
    numbers = torch.as_tensor(box.class_numbers(target))
    return f"class {box.classes[int(numbers)]}" if numbers.numel() == 1 and box.classes else objective.name
