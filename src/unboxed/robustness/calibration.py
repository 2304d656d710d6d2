"""Calibration: is a model right as often as it says it is?

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adversarial.predictions import finite_logits
from ..box import Box
from ..cards import card
from ..engine.read.examples import indexed_labeled_examples
from ..errors import OutputError
from ..model.batching import BatchSize
from ..validation import check_int

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # temperatures that are looked at
N_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the model is right at each confidence, its largest probability, in B bins of equal width."""

    bin_edges: Tensor  # (B, 2) a bin holds what is above the first and not above the second
    bin_counts: Tensor  # (B,)
    bin_confidence: Tensor  # (B,) mean of the bin; 0, as its accuracy, where it is empty
    bin_accuracy: Tensor  # (B,)
    ece: float  # expected calibration error: the mean |accuracy - confidence| over examples
    mce: float  # the largest of any bin that is not empty
    brier: float  # mean squared distance of the probabilities from the label's, summed over classes: 0 to 2
    nll: float  # mean negative log-likelihood of the labels


@dataclass(frozen=True, eq=False)
class Calibration:
    """The model as it is, and with its logits divided by the `temperature` that makes the labels likeliest."""

    uncalibrated: Reliability
    scaled: Reliability
    temperature: float  # above 1: the model is too sure of itself
    accuracy: float
    error_index: Tensor  # (M,) places in the data of the wrong answers, the most confident first
    error_confidence: Tensor  # (M,) their probabilities
    error_prediction: Tensor  # (M,) classes
    error_label: Tensor  # (M,)

    def __str__(self) -> str:
        confidence_note = "too sure" if self.temperature > 1 else "not sure enough"
        message = f"{self.accuracy:.1%} right; expected calibration error {self.uncalibrated.ece:.2%}, {self.scaled.ece:.2%} at"
        return f"{message} temperature {self.temperature:.2f} ({confidence_note})"


@card(
    name="Calibration",
    source="Guo et al. 2017, arXiv:1706.04599, sections 2 and 4.2; score: Brier 1950",
    shows="Whether its probabilities are how often the model is right, which temperature mends them, its worst errors.",
    does_not_show="Anything of data unlike these; and the temperature was fitted to the very data that it is judged on.",
    example=lambda method, box, x, y: method(box, (x, y), n_bins=5),
)
def calibration(
    box: Box,
    data: Any,
    *,
    n_bins: int = 15,
    n_errors: int = 20,
    max_examples: int | None = None,
    batch_size: BatchSize = "auto",
) -> Calibration:
    """Reliability on `data`, (x, y) tensors or a Dataset of (image, class), and its `errors` most confident errors.

    Of the first `most` examples, or all. Raises InputError, DataError and OutputError.
    """
    box.require_class_scores("calibration")
    if box.outputs == "multilabel":
        raise OutputError("calibration is of one class an example; the box's outputs are multilabel")
    n_bins, n_errors = check_int("n_bins", n_bins, minimum=1), check_int("n_errors", n_errors)
    x, y, rows = indexed_labeled_examples(
        box, data, None if max_examples is None else check_int("max_examples", max_examples, minimum=1)
    )
    z = finite_logits(box, x, batch_size).double()  # (N, K)
    best_temperature = fit_temperature(z, y)
    uncalibrated, scaled = (_reliability(z / divisor, y, n_bins, box.dtype) for divisor in (1.0, best_temperature))
    clean_accuracy = float((z.argmax(1) == y).double().mean())
    return Calibration(
        uncalibrated, scaled, best_temperature, clean_accuracy, *_confident_errors(z, y, rows, n_errors, box.dtype)
    )


def fit_temperature(z: Tensor, y: Tensor) -> float:
    """The T at which softmax(z / T) makes the labels y (N,) likeliest, given logits z (N, K); within 0.01 to 100.

    The likelihood's slope in 1 / T, mean(z_y - E[z]), falls as 1 / T rises: it is bisected.
    """
    z = z.double()
    label_logits = z.gather(1, y[:, None])[:, 0]
    lower, upper = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(N_BISECTIONS):
        middle = (lower * upper) ** 0.5
        p = (middle * z).softmax(1)
        expected_logits = (p * z.where(p > 0, 0)).sum(1)  # a masked class, of logit -inf, adds nothing
        if float((label_logits - expected_logits).mean()) >= 0:
            lower = middle
        else:
            upper = middle
    return float((lower * upper) ** -0.5)


def _reliability(z: Tensor, y: Tensor, n_bins: int, dtype: torch.dtype) -> Reliability:
    probs = z.softmax(1)  # (N, K)
    top_prob, predictions = probs.max(1)
    is_correct = (predictions == y).double()
    bin_index = _bin_index(top_prob, n_bins)
    bin_counts = torch.bincount(bin_index, minlength=n_bins)
    confidence, accuracy = (_bin_sums(bin_index, v, n_bins) / bin_counts.clamp_min(1) for v in (top_prob, is_correct))
    gaps = (accuracy - confidence).abs()
    bin_edges = torch.linspace(0, 1, n_bins + 1, dtype=dtype, device=z.device)
    squared_error = (probs - F.one_hot(y, probs.shape[1])).square().sum(1)
    return Reliability(
        torch.stack([bin_edges[:-1], bin_edges[1:]], 1), bin_counts, confidence.to(dtype), accuracy.to(dtype),
        ece=float((gaps * bin_counts).sum() / len(y)), mce=float(gaps.max()), brier=float(squared_error.mean()),
        nll=float(F.cross_entropy(z, y)),
    )  # fmt: skip


def _bin_index(top_prob: Tensor, n_bins: int) -> Tensor:
    """The bin (N,) of each confidence: ((m - 1) / B, m / B]; compared, for `sure * bins` may round over an edge."""
    return torch.bucketize(top_prob, torch.arange(1, n_bins, dtype=top_prob.dtype, device=top_prob.device) / n_bins)


def _bin_sums(bin_index: Tensor, values: Tensor, n_bins: int) -> Tensor:
    return torch.bincount(bin_index, values, minlength=n_bins)


def _confident_errors(
    z: Tensor, y: Tensor, rows: Tensor, max_errors: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top_prob, predictions = z.softmax(1).max(1)
    wrong_index = (predictions != y).nonzero()[:, 0]
    sorted_index = wrong_index[top_prob[wrong_index].argsort(descending=True, stable=True)[:max_errors]]
    return (
        rows.to(sorted_index.device)[sorted_index],
        top_prob[sorted_index].to(dtype),
        predictions[sorted_index],
        y[sorted_index],
    )
