"""The classes of a box as the labels of data mean them, and as targets name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import DataError, InputError
from ...inputs.forms import HF_LABEL_COLUMN_NAMES
from ...inputs.frames import target_column_name
from ...inputs.labels import (
    ClassByLabel,
    ClassLabels,
    are_default_class_names,
    label_to_value,
    match_label_names_to_classes,
    match_labels_to_classes,
    readable_class_names,
    whole_numbers,
)
from ..proportion import Proportion, below_chance_text

LabelMatcher = Callable[[Tensor | Sequence[Any]], Tensor]


@dataclass(frozen=True)
class LabelNames:
    """What the labels of data are called."""

    names: dict[int, str] = field(default_factory=dict)  # by label; empty where they are unknown
    made_from_names: bool = False  # as for class folders: the numbers mean nothing else
    names_source: str = "subfolders"  # what has such names

    def names_in_label_order(self) -> tuple[str, ...]:
        """The names of labels 0, 1, 2, ...: a number where a label has none."""
        return tuple(self.names.get(k, str(k)) for k in range(max(self.names, default=-1) + 1))

    def class_by_label(self, box: Box, source: str) -> ClassByLabel[int]:
        """{label: class of the box}, by name; empty where there is nothing to match. Raises DataError."""
        classes = class_names_for_matching(box)
        if not self.names or classes is None:
            return ClassByLabel()
        kind = self.names_source if self.made_from_names else "classes"
        return match_labels_to_classes(
            self.names, classes, made_from_names=self.made_from_names, names_source=f"{kind} of {source}"
        )


def requested_classes(box: Box, target: ClassLabels | None) -> Tensor:
    """The classes (K,) that `target` names; None is all of them. Raises InputError for none, or unknown ones."""
    if target is None:
        return torch.arange(box.n_outputs, device=box.device)
    requested = box.class_numbers(target)
    classes = box.class_labels(requested, requested.numel() if requested.ndim else 1)
    if len(classes) == 0:
        raise InputError("target has no class: give at least one, or None for all")
    return classes


def has_class_labels(box: Box) -> bool:
    """Whether a label is one class per example: those of numbers, yes/no labels and maps have other forms."""
    return box.outputs not in ("regression", "multilabel") and not box.output_map_shape


def columns_of_outputs(box: Box, columns: Iterable[Any]) -> tuple[str, ...]:
    """The columns of a table that are called as the outputs of a model with several labels or numbers, which are their
    values then; () where one of them is not there, and for other models."""
    if has_class_labels(box) or box.output_map_shape or are_default_class_names(box.classes):
        return ()
    others = {*map(str, columns)} - {*getattr(box.inputs, "names", ())}
    return tuple(box.classes) if {*box.classes} <= others else ()


def class_names_for_matching(box: Box) -> tuple[str, ...] | None:
    """The names that labels can be matched to: of mutually exclusive classes; None for other outputs."""
    return box.classes if box.outputs != "regression" and len(box.classes) > 1 else None


def dataset_class_names(data: Any) -> LabelNames:
    """What the labels of data are called, if that is known.

    Looks inside a DataLoader, a Subset and a ConcatDataset, and at the features of a Hugging Face data set. Raises
    DataError for joined datasets with different classes.
    """
    made_from_names, source = (
        bool(getattr(data, "labels_are_names", False)),
        getattr(data, "names_source", "subfolders"),
    )
    if names := getattr(data, "label_names", None):
        return LabelNames(dict(names), made_from_names, source)
    names = getattr(data, "classes", None)
    if isinstance(names, (list, tuple)):
        return LabelNames(dict(enumerate(map(str, names))), made_from_names, source)
    if isinstance(features := getattr(data, "features", None), Mapping):
        columns = [features[name] for name in HF_LABEL_COLUMN_NAMES if name in features]
        return LabelNames(dict(enumerate(getattr(columns[0], "names", ()) or ())) if columns else {})
    parts = getattr(data, "datasets", None)
    if isinstance(parts, (list, tuple)):
        names_of_parts = [dataset_class_names(part) for part in parts]
        if any(names != names_of_parts[0] for names in names_of_parts):
            raise DataError("the joined data sets have different classes, so one label means several; open them alike")
        return names_of_parts[0] if names_of_parts else LabelNames()
    inner = getattr(data, "dataset", None)
    return LabelNames() if inner is None else dataset_class_names(inner)


def box_with_names_of_data(box: Box, data: Any) -> Box:
    """The box with the names that data have for its outputs, if it has none of its own: those of their classes, or the
    name of the column that holds what one number should be."""
    names = getattr(data, "classes", None)
    if box.outputs == "regression":
        names = [name] if (name := target_column_name(data, box.inputs)) else None
    if not names or len(names) != len(box.classes) or not are_default_class_names(box.classes):
        return box
    return box.with_model(box.model, classes=names)


def readable_output_names(box: Box) -> tuple[str, ...]:
    """The names of the outputs as a person reads them."""
    return names_with_noun(box.classes, "output") if box.outputs == "regression" else readable_class_names(box.classes)


def names_with_noun(names: Sequence[str], noun: str) -> tuple[str, ...]:
    """Names of outputs; "output 0" where they are numbers, "output" of a single one."""
    if not are_default_class_names(names):
        return tuple(names)
    return (noun,) if len(names) == 1 else tuple(f"{noun} {name}" for name in names)


def labels_to_classes(box: Box, data: Any, labels: Tensor | Sequence[Any]) -> Tensor:
    """Labels (N,) of `data`, numbers or names, as classes of the box, -1 where there is none. Raises DataError."""
    return label_matcher(box, data)(labels)


def label_matcher(box: Box, data: Any) -> LabelMatcher:
    """`labels_to_classes` for labels of `data` a batch at a time: what is assumed of their order is said once."""
    class_of = dataset_class_names(data).class_by_label(box, data_name_for_messages(data))
    return partial(_labels_to_classes, box, class_of)


def _labels_to_classes(box: Box, class_of: ClassByLabel[int], labels: Tensor | Sequence[Any]) -> Tensor:
    if isinstance(labels, Tensor):
        numbers: Tensor = whole_numbers(labels)
        is_same = all(label == k for label, k in class_of.items())
        column = numbers[:, 0] if numbers.ndim == 2 and numbers.shape[1] == 1 else numbers
        if is_same or column.is_floating_point() or column.ndim != 1:
            return column
        return torch.tensor([class_of.get(label, label) for label in column.tolist()])
    values = [label_to_value(label, f"example {i}") for i, label in enumerate(labels)]
    names = [value for value in values if isinstance(value, str)]
    class_by_name = match_label_names_to_classes(names, box.classes) if names else {}
    return torch.tensor([_class_index_of_label(value, class_of, class_by_name) for value in values])


def _class_index_of_label(
    value: int | str | None, class_by_label: Mapping[int, int], class_by_name: Mapping[str, int]
) -> int:
    if value is None:
        return -1
    return class_by_name[value] if isinstance(value, str) else class_by_label.get(value, value)


def label_assumption(data: Any) -> str:
    """What was guessed when labels were matched to classes as data were opened; "" where nothing was."""
    if assumption := getattr(data, "label_assumption", ""):
        return str(assumption)
    inner = getattr(data, "dataset", None)
    return "" if inner is None else label_assumption(inner)


def class_order_notes(assumption: str, accuracy: Proportion | None, n_classes: int) -> list[str]:
    """What is to be read beside an accuracy: a guess about the order of classes, and one that is below guessing."""
    below_chance = "" if accuracy is None else below_chance_text(accuracy, n_classes)
    return [text for text in (assumption, below_chance) if text]


def data_name_for_messages(data: Any) -> str:
    """What messages call the data."""
    return str(getattr(data, "name", "") or type(data).__name__)
