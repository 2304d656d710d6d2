"""Calibration: is a model right as often as it says it is?

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adversarial.predictions import nan_checked_logits
from ..box import Box
from ..cards import card
from ..engine.intervals import Interval
from ..engine.read.class_labels import has_class_labels
from ..engine.read.examples import indexed_labeled_examples
from ..engine.read.output_values import indexed_examples_with_output_values
from ..engine.results import ResultMixin
from ..parameters import BatchSize, Data, MaxExamples
from ..settings import AtLeast, Unit, check_settings
from .pooled_answers import PooledAnswers, bootstrap_interval_of_sums, pooled_answers

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # temperatures that are tried
EDGE_FACTOR = 1.01  # a temperature within it of one of these is none that was found
N_TEMPERATURE_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class Reliability:
    """Accuracy at each confidence (the largest probability), in B bins of equal width."""

    bin_edges: Tensor  # (B, 2) lower (excluded) and upper (included)
    bin_counts: Tensor  # (B,)
    bin_confidence: Tensor  # (B,) mean of the bin; 0 where it is empty
    bin_accuracy: Tensor  # (B,) 0 where it is empty
    ece: float  # expected calibration error: the mean |accuracy - confidence| over examples
    mce: float  # maximum calibration error: the largest |accuracy - confidence| of a bin
    brier: float  # mean squared error of the probabilities, summed over classes: 0 to 2
    nll: float  # mean negative log-likelihood of the labels
    ece_interval: Interval | None = None  # at 95 % over examples, of several answers per example


@dataclass(frozen=True, repr=False, eq=False)
class Calibration(ResultMixin):
    """Reliability of the model as it is, and with its logits divided by the `temperature` of highest likelihood."""

    returns: ClassVar[str] = "curve"

    uncalibrated: Reliability
    scaled: Reliability
    temperature: float  # above 1: the model is overconfident
    accuracy: float
    error_index: Tensor  # (M,) positions in the data of the errors, the most confident first
    error_confidence: Tensor  # (M,) probabilities
    error_prediction: Tensor  # (M,) classes
    error_label: Tensor  # (M,)
    error_position: Tensor | None = None  # (M,) of several answers per example: the label, or the flat map position

    @property
    def temperature_note(self) -> str:
        """What is to be known of the temperature before it is used; "" where it makes the calibration error smaller."""
        edges = MIN_TEMPERATURE * EDGE_FACTOR, MAX_TEMPERATURE / EDGE_FACTOR
        if not edges[0] < self.temperature < edges[1]:
            why = "no answer is wrong, and so the likelihood" if self.accuracy == 1 else "the likelihood"
            return f"this temperature is the edge of the search ({why} rises up to it): do not use it"
        if self.scaled.ece > self.uncalibrated.ece:
            return (
                "this temperature, of the highest likelihood, makes the expected calibration error larger: it is no "
                "correction of these probabilities"
            )
        return ""

    def __str__(self) -> str:
        confidence_note = "overconfident" if self.temperature > 1 else "underconfident"
        interval = self.uncalibrated.ece_interval
        range_text = "" if interval is None else f" (95% interval {interval.low:.2%} to {interval.high:.2%})"
        errors_text = f"expected calibration error {self.uncalibrated.ece:.2%}{range_text}, {self.scaled.ece:.2%}"
        errors_text += " at temperature"
        note = f"; {self.temperature_note}" * bool(self.temperature_note)
        return f"accuracy {self.accuracy:.1%}; {errors_text} {self.temperature:.2f} ({confidence_note}){note}"


@card(
    name="Calibration",
    source="Guo et al. 2017, arXiv:1706.04599, sections 2 and 4.2; score: Brier 1950",
    shows="Whether probabilities are how often the model is right, a temperature that corrects them, the worst errors.",
    does_not_show="Calibration on other data; and the temperature is evaluated on the data that it was fitted to.",
    example=lambda method, box, x, y: method(box, (x, y), n_bins=5),
    texts=True,
    order=10,
)
def calibration(
    box: Box,
    data: Data,
    *,
    n_bins: Annotated[int, AtLeast(1), Unit("bins"), "Number of bins of confidence, of equal width."] = 15,
    n_errors: Annotated[int, AtLeast(0), Unit("examples"), "Number of most confident errors that are listed."] = 20,
    max_examples: MaxExamples = None,
    batch_size: BatchSize = "auto",
) -> Calibration:
    """Is the model right as often as it says? Reliability, and the temperature that corrects it.

    For a classifier whose probabilities matter, of texts, too. The temperature is fitted to the same data: measure on
    other data how well it does there. Several labels and label maps give several answers per example, which are pooled:
    each label is a yes or no, each labeled position a class; the interval of their ECE resamples examples, not answers.

    Args:
        box: The model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. With labels: (x, y) tensors, or items (input,
            class).
        n_bins: Number of bins of confidence, of equal width. ECE and MCE depend on it; 15 is usual.
        n_errors: Number of most confident errors that are listed.
        max_examples: Use only the first of the examples; None uses all.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Calibration`: `uncalibrated` and `scaled` reliability (bins, ECE, MCE, Brier score, NLL), the `temperature`,
        and the most confident errors. Of several answers per example, `ece_interval` and `error_position`, too.

    Raises:
        InputError: for settings out of their range.
        DataError: for data without labels or without examples.
        OutputError: for a regression model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.robustness.calibration(box, ub.data.digits("test"))
        >>> result.uncalibrated.bin_counts.sum()
        tensor(359)

    Source:
        Guo et al. 2017, arXiv:1706.04599, sections 2 and 4.2. The temperature is found by bisection of the likelihood's
        derivative, between 0.01 and 100. Brier 1950 for the score.
    """
    check_settings(calibration, locals())
    if has_class_labels(box):
        x, y, rows = indexed_labeled_examples(box, data, max_examples)
        logits = nan_checked_logits(box, x, batch_size).double()  # (N, K)
        return _make_calibration(logits, y, rows.to(y.device), n_bins, n_errors, box.dtype)
    if box.outputs == "regression":
        box.require_class_scores("calibration")
    x, values, rows = indexed_examples_with_output_values(box, data, max_examples)
    answers = pooled_answers(box, nan_checked_logits(box, x, batch_size).double(), values)
    rows_of_answers = rows.to(answers.y.device)[answers.example]
    return _make_calibration(answers.logits, answers.y, rows_of_answers, n_bins, n_errors, box.dtype, answers)


def _make_calibration(
    logits: Tensor, y: Tensor, rows: Tensor, n_bins: int, n_errors: int, dtype: torch.dtype,
    answers: PooledAnswers | None = None,
) -> Calibration:  # fmt: skip
    """Of answers with logits (M, K), classes y (M,) and the indices of their examples in the data (M,)."""
    best_temperature = fit_temperature(logits, y)
    example = None if answers is None else answers.example
    uncalibrated, scaled = (
        _make_reliability(logits / divisor, y, n_bins, dtype, example) for divisor in (1.0, best_temperature)
    )
    top_prob, predictions = logits.softmax(1).max(1)
    is_wrong = predictions != y
    index = is_wrong.nonzero()[:, 0]
    index = index[top_prob[index].argsort(descending=True, stable=True)[:n_errors]]
    return Calibration(
        uncalibrated,
        scaled,
        best_temperature,
        float((~is_wrong).double().mean()),
        rows[index],
        top_prob[index].to(dtype),
        predictions[index],
        y[index],
        None if answers is None else answers.position[index],
    )


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """The T of highest likelihood of the labels y (N,) under softmax(logits / T), given logits (N, K); 0.01 to 100.

    The derivative of the log-likelihood in 1 / T, mean(z_y - E[z]), falls as 1 / T rises: it is bisected.
    """
    logits = logits.double()
    label_logits = logits.gather(1, y[:, None])[:, 0]
    lower, upper = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(N_TEMPERATURE_BISECTIONS):
        middle = (lower * upper) ** 0.5
        p = (middle * logits).softmax(1)
        expected_logits = (p * logits.where(p > 0, 0)).sum(1)  # a masked class, of logit -inf, adds nothing
        if float((label_logits - expected_logits).mean()) >= 0:
            lower = middle
        else:
            upper = middle
    return float((lower * upper) ** -0.5)


def _make_reliability(
    logits: Tensor, y: Tensor, n_bins: int, dtype: torch.dtype, example: Tensor | None = None
) -> Reliability:
    probs = logits.softmax(1)  # (N, K)
    top_prob, predictions = probs.max(1)
    is_correct = (predictions == y).double()
    bin_index = _confidence_bin_index(top_prob, n_bins)
    bin_counts = torch.bincount(bin_index, minlength=n_bins)
    confidence, accuracy = (
        _sum_values_per_bin(bin_index, v, n_bins) / bin_counts.clamp_min(1) for v in (top_prob, is_correct)
    )
    gaps = (accuracy - confidence).abs()
    bin_edges = torch.linspace(0, 1, n_bins + 1, dtype=dtype, device=logits.device)
    squared_error = (probs - F.one_hot(y, probs.shape[1])).square().sum(1)
    return Reliability(
        torch.stack([bin_edges[:-1], bin_edges[1:]], 1), bin_counts, confidence.to(dtype), accuracy.to(dtype),
        ece=float((gaps * bin_counts).sum() / len(y)), mce=float(gaps.max()), brier=float(squared_error.mean()),
        nll=float(F.cross_entropy(logits, y)),
        ece_interval=None if example is None else _ece_interval(example, bin_index, top_prob, is_correct, n_bins),
    )  # fmt: skip


def _ece_interval(example: Tensor, bin_index: Tensor, top_prob: Tensor, is_correct: Tensor, n_bins: int) -> Interval:
    """Of the expected calibration error of all answers (M,), over their examples."""
    n, cell = int(example.max()) + 1, example * n_bins + bin_index
    counts, gaps = (
        torch.bincount(cell, values, minlength=n * n_bins).view(n, n_bins)
        for values in (torch.ones_like(top_prob), is_correct - top_prob)
    )

    def ece(sums: Tensor) -> Tensor:  # (resamples, 2 * n_bins)
        return sums[:, n_bins:].abs().sum(1) / sums[:, :n_bins].sum(1)

    return bootstrap_interval_of_sums(torch.cat([counts, gaps], 1), ece)


def _confidence_bin_index(top_prob: Tensor, n_bins: int) -> Tensor:
    """The bin (N,) of each confidence: ((m - 1) / B, m / B]; not by top_prob * n_bins, which may round over an edge."""
    return torch.bucketize(top_prob, torch.arange(1, n_bins, dtype=top_prob.dtype, device=top_prob.device) / n_bins)


def _sum_values_per_bin(bin_index: Tensor, values: Tensor, n_bins: int) -> Tensor:
    return torch.bincount(bin_index, values, minlength=n_bins)
