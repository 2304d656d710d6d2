"""Does the model use what a probe reads? The attribute is erased from a layer, and random directions in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ... import rng
from ...box import Box
from ...model.batching import BatchSize
from ...model.hooks import Edit
from ...objectives import logit
from ..intervals import Interval, bootstrap_mean_interval
from ..linear.erasure import Eraser, FeatureCovariance
from ..linear.probing import probe_features
from ..linear.splits import stratified_folds
from ..output_change import output_change
from ..results import ResultMixin
from ..rows import evenly_spaced_indices
from .edited_runs import run_variants

SIGNIFICANCE_LEVEL = 0.05
# Of the change with the model's own outputs erased: what costs less is not what the model answers by
MIN_OUTPUT_CHANGE_SHARE_IF_USED = 0.01
N_CROSS_FIT_FOLDS = 2  # an example is edited by erasers that were fitted to the other half
MAX_REMAINING_INFORMATION_SHARE = 0.5  # of the information: an attribute of which more is left was not erased


@dataclass(frozen=True, eq=False, repr=False)
class ErasureTest(ResultMixin):
    """What erasing an attribute from a layer does to the outputs, against as many random directions.

    Attributes:
        rank: Number of directions that are erased: the classes but one, or fewer.
        change: (M,) the change of each example's outputs, in `unit` of the result.
        random_change: (M, R) with as many random directions erased instead.
        own_change: (M,) with the strongest directions of the model's own outputs erased: what must change them.
        kept: Share of the predictions that stay; None for a regression model.
        random_kept: (R,) that with random directions erased.
        accuracy: The model's accuracy before, where the attribute is the labels; else None.
        erased_accuracy: The accuracy after.
        random_accuracy: (R,) that with random directions erased.
        remaining: Information in bits that a new linear probe reads from the erased layer.
    """

    rank: int
    change: Tensor
    random_change: Tensor
    own_change: Tensor
    kept: float | None
    random_kept: Tensor | None
    accuracy: float | None
    erased_accuracy: float | None
    random_accuracy: Tensor | None
    remaining: Interval

    @property
    def excess_change(self) -> Interval:
        """The change beyond that of random directions, with its interval over examples and draws."""
        return bootstrap_mean_interval(self.change[:, None] - self.random_change)

    @property
    def p_value(self) -> float:
        """Share of the random draws that change the outputs as much, the attribute counted among them."""
        return _permutation_p_value(self.change, self.random_change)

    @property
    def model_output_p_value(self) -> float:
        """That of the model's own outputs: where it is not small, the test cannot tell anything."""
        return _permutation_p_value(self.own_change, self.random_change)

    @property
    def share(self) -> float:
        """The change as a share of that with the model's own outputs erased, in as many directions."""
        own = float(self.own_change.double().mean())
        return float(self.change.double().mean()) / own if own else float("inf")

    @property
    def is_significant(self) -> bool:
        """Whether the attribute costs more than random directions."""
        return self.p_value <= SIGNIFICANCE_LEVEL and self.excess_change.low > 0

    @property
    def is_used(self) -> bool:
        """Whether that is a cost that matters, too."""
        return self.is_significant and self.share >= MIN_OUTPUT_CHANGE_SHARE_IF_USED

    @property
    def has_enough_draws(self) -> bool:
        """Whether there are as many random draws as the level of 5 % needs."""
        return 1 / (1 + self.random_change.shape[1]) <= SIGNIFICANCE_LEVEL

    @property
    def has_statistical_power(self) -> bool:
        """Whether erasing what the model reads for certain costs more than random directions."""
        return self.model_output_p_value <= SIGNIFICANCE_LEVEL


def _permutation_p_value(change: Tensor, random_change: Tensor) -> float:
    n_as_large = int((random_change.double().mean(0) >= change.double().mean()).sum())
    return (1 + n_as_large) / (1 + random_change.shape[1])


class FeatureView(Protocol):
    """How features (N, D) lie in a layer's activations."""

    @property
    def address(self) -> str: ...

    def edit(self, h: Tensor, eraser: Eraser) -> Tensor:
        """Activations (R, ...) with features erased."""

    def of_rows(self, rows: Tensor) -> FeatureView:
        """The view of these examples (R,)."""


@dataclass(frozen=True)
class LayerFeatureView:
    """A layer's activations as features (N, D): all values, or the units' means over positions."""

    address: str
    unit_axis: int | None = None  # whose means are the features

    def edit(self, h: Tensor, eraser: Eraser) -> Tensor:
        """Activations (N, ...) with features erased; of means, at each position alike."""
        if h.is_complex():
            return torch.view_as_complex(self.edit(torch.view_as_real(h), eraser).contiguous())
        values = h.to(eraser.mean.dtype)
        if self.unit_axis is None:
            return eraser(values.reshape(len(h), -1)).view(h.shape).to(h)
        return eraser(values.movedim(self.unit_axis, -1)).movedim(-1, self.unit_axis).to(h)

    def of_rows(self, rows: Tensor) -> LayerFeatureView:
        """The same view: it lies in all examples alike."""
        return self


@dataclass(frozen=True, eq=False)
class _PerRowEraserEdit:
    """Each row's activations edited by the eraser of its half and variant."""

    view: FeatureView  # of the examples (R,)
    erasers: Sequence[Sequence[Eraser]]  # [half][variant]
    halves: Tensor  # (R,)
    variants: Tensor  # (R,)

    def __call__(self, h: Tensor) -> Tensor:
        edited, codes = h.clone(), self.halves * len(self.erasers[0]) + self.variants
        for code in torch.unique(codes).tolist():
            rows = (codes == code).nonzero().flatten().to(h.device)
            half, variant = divmod(code, len(self.erasers[0]))
            edited[rows] = self.view.of_rows(rows).edit(h[rows], self.erasers[half][variant])
        return edited


def erased_example_indices(box: Box, n: int, max_examples: int) -> Tensor:
    """Which of n examples the model is run on with directions erased: evenly spaced; all, where they are dependent."""
    return torch.tensor(evenly_spaced_indices(n, n if box.batch_dependent else max_examples))


def erasure_test(
    box: Box, x: Tensor, rows: Tensor, y: Tensor, h: Tensor, view: FeatureView, labels: Tensor | None, *,
    outputs: Tensor, before: Tensor, n_random: int, n_folds: int, seed: int, batch_size: BatchSize,
) -> ErasureTest | None:  # fmt: skip
    """Erase the attribute y (N,) from a layer with features h (N, D) and run the model on; None: nothing to erase.

    `x` (M, ...) are the inputs of the examples `rows` (M,), which are run; `view` and the model's outputs `before`
    (M, K) are theirs. `outputs` (N, K'), some or all of the model's, fit the eraser of its own outputs. Half of the
    examples fits the erasers of the other half.
    """
    halves = stratified_folds(y, N_CROSS_FIT_FOLDS, seed, "halves")
    erasers = [_fit_erasers(h[halves != half], y[halves != half], outputs[halves != half], n_random, (seed, half))
               for half in range(N_CROSS_FIT_FOLDS)]  # fmt: skip
    rank = min(half[0].rank for half in erasers)
    if not rank:
        return None
    after = _logits_with_directions_erased(box, x, halves[rows], view, erasers, batch_size)  # (M, P, K)
    if after is None:
        return None
    erased = torch.empty_like(h)
    for half in range(N_CROSS_FIT_FOLDS):
        erased[halves == half] = erasers[half][0](h[halves == half])
    remaining = probe_features(erased, y, n_folds=n_folds, n_controls=0, description_length=False, seed=seed)
    truth = None if labels is None else labels.cpu()[rows].to(after.device)
    return _make_erasure_test_result(box, rank, before.to(after), after, truth, remaining.information)


def _logits_with_directions_erased(
    box: Box, x: Tensor, half_of_row: Tensor, view: FeatureView, erasers: Sequence[Sequence[Eraser]],
    batch_size: BatchSize,
) -> Tensor | None:  # fmt: skip
    placed = [[_eraser_to_box(e, box) for e in half] for half in erasers]
    half_of = half_of_row.to(box.device)

    def make_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
        return {view.address: _PerRowEraserEdit(view.of_rows(examples), placed, half_of[examples], variants)}

    return run_variants(box, x, logit(0), make_edits, len(erasers[0]), batch_size=batch_size).logits


def _fit_erasers(h: Tensor, y: Tensor, outputs: Tensor, n_random: int, key: tuple[int, int]) -> list[Eraser]:
    """Of the attribute, of the model's own outputs, and random ones, all of the same rank."""
    covariance = FeatureCovariance.fit(h)
    attribute = covariance.eraser(torch.nn.functional.one_hot(y).to(h))
    own = covariance.eraser(outputs.to(h), attribute.rank)
    generator = rng.keyed_generator(rng.CPU, "random directions", *key)
    return [attribute, own, *(covariance.random_eraser(attribute.rank, generator) for _ in range(n_random))]


def _eraser_to_box(eraser: Eraser, box: Box) -> Eraser:
    """On the box's device, in its dtype."""
    return Eraser(*(part.to(box.device, box.dtype) for part in (eraser.mean, eraser.read, eraser.removed)))


def _make_erasure_test_result(
    box: Box, rank: int, before: Tensor, after: Tensor, truth: Tensor | None, remaining: Interval
) -> ErasureTest:
    change = output_change(box, before, after).to(box.dtype)
    predicted = None if box.outputs == "regression" else before.argmax(1)
    kept, random_kept = _share_predicted_as_classes(box, after, predicted)
    accuracy, random_accuracy = _share_predicted_as_classes(box, after, truth)
    clean = None if truth is None else float((before.argmax(1) == truth).double().mean())
    return ErasureTest(
        rank, change[:, 0], change[:, 2:], change[:, 1], kept, random_kept, clean, accuracy, random_accuracy, remaining
    )


def _share_predicted_as_classes(box: Box, after: Tensor, classes: Tensor | None) -> tuple[float | None, Tensor | None]:
    """The share of examples predicted as these classes (M,): with the attribute erased, and with random directions."""
    if classes is None:
        return None, None
    share = (after.argmax(2) == classes[:, None]).double().mean(0).to(box.dtype)  # (P,)
    return float(share[0]), share[2:]
