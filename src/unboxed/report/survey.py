"""The model on the data: its outputs for every example, and which examples are worth showing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.output_values import IGNORED_POSITION_LABEL, label_map_classes
from ..errors import DataError, OutputError, warn
from ..inputs.labels import is_missing_label, missing_labels_text
from ..inputs.signed_labels import SIGNED_YES_OR_NO_TEXT, are_signed
from .source import ReportData
from .words import format_percent

MAX_EVALUATED_EXAMPLES = 10_000  # evaluated
MAX_EVALUATED_INPUT_VALUES = 40_000_000  # in these examples: photos have many values each
SURVEY_BATCH_EXAMPLES = 256  # examples read at a time


@dataclass(frozen=True, eq=False)
class Survey:
    """The outputs of the model for the examples `rows` of the data: n of them, in their order."""

    rows: tuple[int, ...]  # their indices in the data
    n_total: int  # examples in the data
    outputs: Tensor  # (n, K) probabilities; the raw outputs of models without probabilities
    labels: Tensor | None  # (n,)
    classes: tuple[str, ...]
    exclusive_classes: bool  # the outputs are classes that exclude one another
    n_requested: int = 0  # examples that were to be evaluated, with broken ones
    targets: Tensor | None = None  # (n, K) true values of a regression, zeros and ones of yes/no labels
    position_confusion: Tensor | None = None  # (K, K) labels x predictions over the positions of all label maps
    map_scores: Tensor | None = None  # (n, 2) of each label map: mean IoU over its classes, share of positions correct
    n_unlabeled: int = 0  # examples that were left out, as others have a label

    @property
    def n_broken(self) -> int:
        return max(0, self.n_requested - len(self.rows))

    @property
    def has_output_values(self) -> bool:
        """Whether the data say what outputs that are not one class per example should be."""
        return self.targets is not None or self.position_confusion is not None

    @cached_property
    def predicted(self) -> Tensor:  # (n,) classes
        return self.outputs.argmax(1)

    @cached_property
    def confidence(self) -> Tensor:  # (n,)
        return self.outputs.amax(1)

    @cached_property
    def runner_up(self) -> Tensor:
        """The class with the second largest output of each example, (n,)."""
        return self.outputs.topk(2, 1).indices[:, 1] if len(self.classes) > 1 else self.predicted

    @cached_property
    def margin(self) -> Tensor:
        """The largest output minus the second, (n,)."""
        top = self.outputs.topk(min(2, len(self.classes)), 1).values
        return top[:, 0] - top[:, -1] if top.shape[1] > 1 else top[:, 0]

    @cached_property
    def is_correct(self) -> Tensor | None:  # (n,) bool
        return None if self.labels is None or not self.exclusive_classes else self.predicted == self.labels

    @property
    def accuracy(self) -> float | None:
        return None if self.is_correct is None else float(self.is_correct.double().mean())

    @cached_property
    def confusion(self) -> Tensor:
        """How often each label (row) got each prediction (column), (K, K); of label maps over their positions."""
        if self.position_confusion is not None:
            return self.position_confusion
        k = len(self.classes)
        labels = self.predicted if self.labels is None else self.labels
        return torch.bincount(labels * k + self.predicted, minlength=k * k).view(k, k)

    @cached_property
    def misclassified(self) -> list[int]:
        """Indices of the misclassified examples, the most confident first."""
        return (
            []
            if self.is_correct is None
            else _indices_sorted_by((~self.is_correct).nonzero().flatten(), -self.confidence)
        )

    @cached_property
    def indices_by_margin(self) -> list[int]:
        """All indices, the lowest margin first; where outputs don't exclude one another, the largest error or the
        least overlap with its label map first, or in the order of the data."""
        indices = torch.arange(len(self.rows))
        if self.exclusive_classes:
            return _indices_sorted_by(indices, self.margin)
        if self.map_scores is not None:
            return _indices_sorted_by(indices, self.map_scores[:, 0].nan_to_num(torch.inf))
        return indices.tolist() if self.targets is None else _indices_sorted_by(indices, -self.error)

    @property
    def error(self) -> Tensor:
        """How far the outputs are from the targets (n,), in standard deviations of each target."""
        if self.targets is None:
            return torch.zeros(len(self.rows))
        spread = (self.targets - self.targets.mean(0)).square().mean(0).sqrt()
        return ((self.outputs - self.targets) / torch.where(spread > 0, spread, 1)).square().mean(1)

    @cached_property
    def typical_indices(self) -> list[int]:
        """The correct example (any, without labels) of median confidence of each class, class by class.

        Where outputs don't exclude one another and their true values are known, that of median error.
        """
        if self.has_output_values:
            return [self.indices_by_margin[len(self.rows) // 2]]
        correct = torch.arange(len(self.rows)) if self.is_correct is None else self.is_correct.nonzero().flatten()
        medians = []
        for k in sorted(set(self.predicted[correct].tolist())):
            by_confidence = _indices_sorted_by(correct[self.predicted[correct] == k], self.confidence)
            medians.append(by_confidence[len(by_confidence) // 2])
        return medians

    def confused_pairs(self, max_pairs: int) -> list[tuple[int, int, int]]:
        """(label, prediction, times) of the most common confusions."""
        off_diagonal = self.confusion.clone().fill_diagonal_(0).flatten()
        cells = off_diagonal.nonzero().flatten()
        cells = cells[off_diagonal[cells].argsort(descending=True, stable=True)][:max_pairs]
        k = len(self.classes)
        return [(i // k, i % k, int(off_diagonal[i])) for i in cells.tolist()]


def _indices_sorted_by(indices: Tensor, keys: Tensor) -> list[int]:
    order = keys[indices].argsort(stable=True)
    return [int(i) for i in indices[order]]


def max_evaluated_examples_for(shape: Sequence[int]) -> int:
    """The largest number of examples of this shape that a report evaluates."""
    return max(64, min(MAX_EVALUATED_EXAMPLES, MAX_EVALUATED_INPUT_VALUES // max(1, math.prod(shape))))


def evenly_spaced_indices(total: int, max_count: int) -> tuple[int, ...]:
    """At most `max_count` of the numbers below `total`, evenly spread: data are often sorted by class."""
    n = min(total, max_count)
    return tuple(i * total // n for i in range(n))


def collect_outputs_and_labels(
    box: Box, source: ReportData, max_examples: int | None, include: int | None = None
) -> Survey:
    """Run the model on the examples, a batch at a time, and on the example `include`.

    Raises DataError, InputError where they don't fit the model, OutputError where it outputs NaN.
    """
    requested = evenly_spaced_indices(len(source), max_examples or max_evaluated_examples_for(box.inputs.shape))
    if include is not None:
        requested = tuple(sorted({*requested, include}))
    rows: list[int] = []
    labels: list[int] = []
    outputs: list[Tensor] = []
    truths: list[Tensor | None] = []
    map_scores: list[Tensor] = []
    have_label: list[bool] = []
    for start in range(0, len(requested), SURVEY_BATCH_EXAMPLES):
        readable, x, y, targets = source.read(requested[start : start + SURVEY_BATCH_EXAMPLES])
        if readable:
            logits = box(x)
            outputs.append(_probs_or_outputs(box, logits))
            known_targets = [not is_missing_label(target, is_value=True) for target in targets]
            if any(known_targets):
                logits, targets = logits[known_targets], list(compress(targets, known_targets))
                truths.append(_truths_or_none(box, logits, targets))
                if box.output_map_shape and truths[-1] is not None:
                    map_scores.append(score_each_map(logits, targets))
            have_label += [label >= 0 for label in y] if source.labeled else known_targets
        rows += readable
        labels += y
    if not rows:
        raise DataError(f"none of the {len(requested)} examples of {source.name} can be read")
    source.refuse_signed_labels()
    exclusive_classes = source.labeled and len(source.classes) > 1
    all_outputs = _check_outputs_not_nan(torch.cat(outputs), rows)
    known = [truth for truth in truths if truth is not None]
    is_map, is_complete = bool(box.output_map_shape), bool(known) and len(known) == len(truths)
    is_class_map = is_complete and is_map and box.outputs != "regression"
    kept: Sequence[int] = range(len(rows))
    if not all(have_label) and any(have_label) and (source.labeled or is_complete):
        kept = _kept_rows(rows, have_label, include)
    return Survey(
        tuple(rows[i] for i in kept),
        len(source),
        all_outputs[list(kept)],
        _check_labels_or_none([labels[i] for i in kept], source, box),
        source.classes,
        exclusive_classes,
        len(requested) - (len(rows) - len(kept)),
        torch.cat(known) if is_complete and not is_map else None,
        torch.stack(known).sum(0) if is_class_map else None,
        torch.cat(map_scores) if is_class_map else None,
        len(rows) - len(kept),
    )


def _kept_rows(rows: Sequence[int], have_label: Sequence[bool], include: int | None) -> Sequence[int]:
    """Of the rows read, those with a label; the others are warned of. Raises DataError where `include` has none."""
    kept = [i for i, has_label in enumerate(have_label) if has_label]
    if include in rows and not have_label[rows.index(include)]:
        raise DataError(f"example {include} has no label, and others have one: a report leaves it out; follow another")
    warn(missing_labels_text(len(rows) - len(kept), len(rows)))
    return kept


def _truths_or_none(box: Box, logits: Tensor, targets: Sequence[Any]) -> Tensor | None:
    """What the outputs of some examples should have been; None where the targets are of another form."""
    if box.output_map_shape:
        return position_confusion_matrix(logits, targets)
    return targets_to_tensor_or_none(box, targets)


def targets_to_tensor_or_none(box: Box, targets: Sequence[Any]) -> Tensor | None:
    """True values (n, K) of outputs that are no classes; None unless each example has K, of labels zeros and ones."""
    values = [_target_to_values_or_none(target) for target in targets]
    if box.outputs not in ("regression", "multilabel") or any(v is None or len(v) != box.n_outputs for v in values):
        return None
    stacked = torch.stack([v for v in values if v is not None])
    if box.outputs == "multilabel" and are_signed(stacked):
        raise DataError(SIGNED_YES_OR_NO_TEXT)
    is_valid = (stacked == 0) | (stacked == 1) if box.outputs == "multilabel" else stacked.isfinite()
    return stacked if bool(is_valid.all()) else None


def _target_to_values_or_none(target: Any) -> Tensor | None:
    """Numbers (K,) in double precision; None for anything else."""
    try:
        return torch.as_tensor(target).double().flatten().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None


def position_confusion_matrix(logits: Tensor, targets: Sequence[Any]) -> Tensor | None:
    """(K, K) how often each label (row) of the label maps got each prediction; None unless they fit.

    Positions without a class do not count (see `label_map_classes`). Raises InputError for unknown classes.
    """
    k, predicted = logits.shape[1], logits.argmax(1).cpu()  # (n, ...)
    values = [_target_to_values_or_none(target) for target in targets]
    if any(v is None or len(v) != predicted[0].numel() for v in values):
        return None
    labels = label_map_classes(torch.stack([v for v in values if v is not None]).long(), k)  # (n, positions)
    counts = labels != IGNORED_POSITION_LABEL
    return torch.bincount(labels[counts] * k + predicted.flatten(1)[counts], minlength=k * k).view(k, k)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """(K,) of each class, given how often each label got each prediction (K, K); NaN of one that is in neither."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def score_each_map(logits: Tensor, targets: Sequence[Any]) -> Tensor:
    """(n, 2): of each label map the mean intersection over union of the classes that are labeled or predicted in it,
    and the share of its positions that are correct; NaN where none counts."""
    scores = torch.full((len(targets), 2), torch.nan, dtype=torch.double)
    for i, target in enumerate(targets):
        confusion = position_confusion_matrix(logits[i : i + 1], [target])
        if confusion is None or not bool(confusion.any()):
            continue
        scores[i, 0] = intersection_over_union(confusion).nanmean()
        scores[i, 1] = confusion.diagonal().sum() / confusion.sum()
    return scores


def map_score_text(s: Survey, index: int) -> str:
    """Like "IoU 0.31, 62.5% of positions correct"; "" where there is no label map, or no position counts."""
    if s.map_scores is None or bool(s.map_scores[index].isnan().any()):
        return ""
    iou, accuracy = s.map_scores[index].tolist()
    return f"IoU {iou:.2f}, {format_percent(accuracy)} of positions correct"


def _check_outputs_not_nan(outputs: Tensor, rows: Sequence[int]) -> Tensor:
    nan_rows = outputs.isnan().any(1).nonzero().flatten().tolist()
    if nan_rows:
        examples_text = f"{len(nan_rows)} of {len(rows)} examples (first: number {rows[nan_rows[0]]})"
        raise OutputError(
            f"the model outputs NaN for {examples_text}, so there is no report. Are its weights the right ones?"
        )
    return outputs


def _probs_or_outputs(box: Box, logits: Tensor) -> Tensor:
    """Probabilities (n, K), or the outputs of models without them; of a map of outputs the mean."""
    outputs = logits if box.outputs == "regression" else box.probs_from_logits(logits)
    return outputs.double().cpu().flatten(2).mean(2) if outputs.ndim > 2 else outputs.double().cpu()


def _check_labels_or_none(labels: Sequence[int], source: ReportData, box: Box) -> Tensor | None:
    """The labels (n,), checked; None where there are none."""
    if min(labels) < 0:
        return None
    if max(labels) >= len(source.classes):
        valid_text = f"the model has classes 0 to {len(box.classes) - 1}"
        raise DataError(f"the data have the label {max(labels)}; {valid_text}")
    return torch.tensor(labels)
