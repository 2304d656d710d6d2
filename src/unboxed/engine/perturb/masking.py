"""Masking: x is run with segments masked, that is, replaced by a baseline, in bounded batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, warn
from ...inputs.features import Features
from ...inputs.pixels import Pixels
from ...inputs.tokens import Tokens
from ...model.batching import BatchSize, map_in_batches
from ...model.nan_checks import check_finite_scores
from ...objectives import Objective, mean_over_positions
from ...objectives.algebra import layer_objective as of_layer
from ..attribution_result import restore_map
from ..cpu_cache import forward_batch_size_and_max_rows
from ..memory_format import faster_memory_format
from ..read.edits import resolve_target
from .baselines import baseline
from .segments import DefaultSegments, FeatureGroups, feature_groups

SEGMENT_MEAN_BASELINE_KIND = "segment"
"""A kind of baseline: each segment's mean over its pixels, as in the lime package."""
MASKED_INPUT_NAME_IN_ERRORS = "x with parts masked by the baseline"
"""What is scored, in error texts."""


@dataclass(frozen=True, eq=False)
class MaskableInputs:
    """Inputs with segments that can be masked. Segments that masking does not change are inactive."""

    box: Box
    x: Tensor  # (N, ...)
    baseline_values: Tensor  # (N, ...)
    features: FeatureGroups
    active: Tensor  # (N, F) bool: masking the segment changes the input

    @property
    def n_maskable_segments_per_row(self) -> list[int]:
        """How many active segments each row has."""
        return [int(n) for n in self.active.sum(1)]

    @property
    def maskable_segment_index_by_value(self) -> Tensor:
        """Shaped like the ids: each value's segment among the active, max(n_maskable_segments_per_row) elsewhere."""
        index = (self.active.cumsum(1) - 1).masked_fill(~self.active, max(self.n_maskable_segments_per_row))
        return self.features.broadcast_to_values(index)

    def scatter_to_all_segments(self, values: Sequence[Tensor]) -> Tensor:
        """Values of each row's active segments, (A,), among all (N, F), in the box's dtype; 0 for the rest."""
        scattered = torch.zeros(self.active.shape, dtype=torch.float64)
        for row, active, row_values in zip(scattered, self.active.cpu(), values, strict=True):
            row[active] = row_values
        return scattered.to(self.box.dtype).to(self.box.device)


def make_maskable_inputs(
    box: Box, x: Tensor, segments: Any, baseline_kind: Any, *,
    default: DefaultSegments = "slic", n_samples: int | None = None, seed: int = 0, allow_segment_mean: bool = False,
) -> MaskableInputs:  # fmt: skip
    """x (N, ...), as validated by the box, with its segments and its baseline. Raises InputError.

    `default` and `n_samples` apply where no segments are given: images are cut into n_samples / 4 segments at most.
    """
    max_features = None if n_samples is None else max(1, n_samples // WARN_BELOW_SAMPLES_PER_FEATURE)
    features = feature_groups(box, x, segments, default=default, max_features=max_features, n_samples=n_samples)
    baseline_values = (
        features.replace_by_segment_means(x)
        if allow_segment_mean and isinstance(baseline_kind, str) and baseline_kind == SEGMENT_MEAN_BASELINE_KIND
        else baseline(box, x, baseline_kind, seed=seed)
    )
    return MaskableInputs(box, x, baseline_values, features, features.changed_segments_mask(x, baseline_values))


def masked_scores(
    masking: MaskableInputs, masks: Sequence[Tensor], objectives: Sequence[Objective], batch_size: BatchSize
) -> list[Tensor]:
    """Scores (K, T) of each row under its own masks (K, A) bool, which name the active segments that are kept.

    T objectives are scored in one forward. In double precision, on the CPU, where the estimators work. Raises NaNError
    where some are NaN or infinite.
    """
    row_scores = _unchecked_masked_scores(masking, masks, objectives, batch_size)
    check_finite_scores([v[m.all(1).to(v.device)] for v, m in zip(row_scores, masks, strict=True)])
    check_finite_scores(row_scores, MASKED_INPUT_NAME_IN_ERRORS)
    return row_scores


def _unchecked_masked_scores(
    masking: MaskableInputs, masks: Sequence[Tensor], objectives: Sequence[Objective], batch_size: BatchSize
) -> list[Tensor]:
    runs = _MaskedRunner.from_masks(masking, masks, objectives)
    lengths = [len(m) for m in masks]
    batch_dependent = masking.box.batch_dependent or any(o.batch_dependent for o in objectives)
    if batch_dependent:  # then a batch is all rows, each under one of its masks
        all_rows = torch.arange(len(masks), device=masking.x.device)
        last_masks = torch.tensor(lengths, device=masking.x.device) - 1
        batches = map_in_batches(lambda k: runs.run(all_rows, last_masks.clamp(max=k.start)), max(lengths), 1, 1)
        stacked = torch.stack(batches, 1).cpu().double()  # (N, K, T)
        return [h[:n] for h, n in zip(stacked, lengths, strict=True)]
    ends = list(accumulate(lengths))
    ends_tensor = torch.tensor(ends, device=masking.x.device)

    def run_batch(pairs: slice) -> Tensor:
        pair_index = torch.arange(pairs.start, pairs.stop, device=masking.x.device)
        rows = torch.bucketize(pair_index, ends_tensor, right=True)
        first = bisect_right(ends, pairs.start)
        single_row = first if pairs.stop <= ends[first] else None
        return runs.run(rows, pair_index - ends_tensor[rows] + runs.mask_counts[rows], single_row)

    stacked = torch.cat(
        map_in_batches(run_batch, ends[-1], *forward_batch_size_and_max_rows(masking.box, ends[-1], batch_size))
    )
    return list(torch.split(stacked.cpu().double(), lengths))


@dataclass(frozen=True)
class _MaskedRunner:
    masking: MaskableInputs
    masks: Tensor  # (G, K, A + 1) bool, once for rows that share them; the last column is always kept
    mask_group: Tensor  # (N,)
    mask_counts: Tensor  # (N,)
    maskable_segment_index_by_value: Tensor
    objectives: Sequence[Objective]

    @classmethod
    def from_masks(
        cls, masking: MaskableInputs, masks: Sequence[Tensor], objectives: Sequence[Objective]
    ) -> _MaskedRunner:
        unique_masks = {id(m): m for m in masks}
        mask_ids = list(unique_masks)
        max_masks, width = max(len(m) for m in masks), max(masking.n_maskable_segments_per_row)
        table = torch.ones(len(unique_masks), max_masks, width + 1, dtype=torch.bool)
        for row, m in zip(table, unique_masks.values(), strict=True):
            row[: len(m), : m.shape[1]] = m
        device = masking.x.device
        group = torch.tensor([mask_ids.index(id(m)) for m in masks], device=device)
        lengths = torch.tensor([len(m) for m in masks], device=device)
        return cls(masking, table.to(device), group, lengths, masking.maskable_segment_index_by_value, objectives)

    def run(self, rows: Tensor, mask_index: Tensor, single_row: int | None = None) -> Tensor:
        """Scores (R, T) of rows (R,) under their masks `mask_index` (R,); `single_row` where all are the same row."""
        masking, box = self.masking, self.masking.box
        is_kept, maskable_segment_index_by_value = (
            self.masks[self.mask_group[rows], mask_index],
            self.maskable_segment_index_by_value,
        )  # (R, A + 1)
        if single_row is not None:  # its values need no copies
            keep_mask = is_kept[:, maskable_segment_index_by_value[single_row].flatten()].view(
                len(rows), *maskable_segment_index_by_value.shape[1:]
            )
            points = torch.where(keep_mask, masking.x[single_row], masking.baseline_values[single_row])
        else:
            keep_mask = is_kept.gather(1, maskable_segment_index_by_value[rows].flatten(1)).view(
                len(rows), *maskable_segment_index_by_value.shape[1:]
            )
            points = torch.where(keep_mask, masking.x[rows], masking.baseline_values[rows])
        return score_perturbed_inputs(box, points, self.objectives, rows)


def score_perturbed_inputs(box: Box, points: Tensor, objectives: Sequence[Objective], rows: Tensor) -> Tensor:
    """Scores (R, T) of points (R, ...) made from the examples `rows` (R,), in the box's dtype."""
    layers = frozenset[str]().union(*(o.layers for o in objectives))
    layout = faster_memory_format(box, layers, len(points))
    with box.isolated(grad=False):
        acts = box.forward(points.to(memory_format=layout), layers)
        point_scores = [o.rows(rows)(acts) for o in objectives]
        return torch.stack([s.to(box.dtype) for s in point_scores], 1)


# -- what is scored ----------------------------------------------------------------------------------------------------


def resolve_objective_and_classes(
    box: Box, target: Any, x: Tensor, batch_size: BatchSize, on: str | None = "score"
) -> tuple[Objective, Tensor | None]:
    """The score that `target` means for the unmasked x, and the classes (N,) where it means any.

    `on="probability"` is the probability of the class; None is that wherever `target` is a class. Raises InputError.
    """
    if isinstance(target, Objective) or (on is None and box.outputs == "regression"):
        if on == "probability":
            raise InputError('on="probability" goes with a class; the score of an objective is on="score"')
        return resolve_target(box, target, x, batch_size), None
    if on == "probability" and box.outputs == "regression":
        raise InputError('a regression model gives no probabilities: on="score" takes its outputs')
    classes = (
        mean_over_positions(box(x, batch_size=batch_size)).argmax(1)
        if target is None
        else box.class_labels(target, len(x))
    )
    score = resolve_target(box, classes, x, batch_size)
    return (score if on == "score" else class_probability_objective(box, classes)), classes


def class_probability_objective(box: Box, classes: Tensor) -> Objective:
    """The probability of each example's class (N,); a map of outputs counts by its mean."""

    def score(z: Tensor, labels: Tensor) -> Tensor:
        p = box.probs_from_logits(z)
        return mean_over_positions(p).gather(1, labels[:, None])[:, 0]

    def select(labels: Tensor) -> Objective:
        name = "probability of each example's class"
        return of_layer("logits", lambda z: score(z, labels), name, lambda i: select(labels[i]), len(labels))

    return select(classes)


def explained_quantity(box: Box, target: Any, on: str | None = "score") -> str:
    """What is explained, in words for an axis; as `resolve_objective_and_classes` reads `target` and `on`."""
    if isinstance(target, Objective):
        return target.name if len(target.name) <= MAX_QUANTITY_CHARS else "score"
    if box.outputs == "regression":
        return "output"
    return "logit" if on == "score" else "probability"


def segment_noun(box: Box, segments: Any) -> str:
    """What is masked together, in one word."""
    if isinstance(box.inputs, Tokens):
        return "word"
    return "column" if segments is None and isinstance(box.inputs, Features) else "segment"


MAX_QUANTITY_CHARS = 20  # of an objective's name on an axis
WARN_BELOW_SAMPLES_PER_FEATURE = 4  # with fewer, values are mostly noise


def n_example_samples(box: Box, x: Any, at_least: int) -> int:
    """As many masked inputs as an example takes without a warning: a few for each column of a table or token."""
    if not isinstance(box.inputs, Features | Tokens):
        return at_least
    return max(at_least, WARN_BELOW_SAMPLES_PER_FEATURE * box.validate_inputs(x).shape[1])


def warn_few_samples(masking: MaskableInputs, n_samples: int) -> None:
    """Warn where active segments are sampled too rarely, and not all of their subsets are run."""
    a = max(masking.n_maskable_segments_per_row)
    if n_samples < min(WARN_BELOW_SAMPLES_PER_FEATURE * a, 2**a):
        message = (
            f"n_samples={n_samples} are few for {a} segments that masking changes: the values are mostly noise, and"
        )
        advice = f"take n_samples of {WARN_BELOW_SAMPLES_PER_FEATURE * a} or more, or larger segments"
        warn(f"{message} their standard errors are rough; {advice}")


def segment_ids_like_input(box: Box, feature_ids: Tensor) -> Any:
    """Segment ids as results hold them: (N, H, W) for images whose channels go together, else structured like x.

    Of volumes (N, D, H, W).
    """
    if feature_ids.ndim != 4 or feature_ids.shape[1] != 1:
        return restore_map(box, feature_ids, "same")
    is_volume = isinstance(box.inputs, Pixels) and box.inputs.n_axes == 3
    return box.restore_structure(feature_ids)[:, 0] if is_volume else feature_ids[:, 0]
