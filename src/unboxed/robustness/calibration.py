"""Calibration: is a model right as often as it says it is?

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adversarial.answers import logits_of
from ..box import Box
from ..cards import card
from ..engine.read.examples import labeled_rows
from ..errors import OutputError
from ..model.batching import BatchSize
from ..validation import whole

COLDEST, HOTTEST = 0.01, 100.0  # temperatures that are looked at
BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the model is right at each confidence, its largest probability, in B bins of equal width."""

    edges: Tensor  # (B, 2) a bin holds what is above the first and not above the second
    count: Tensor  # (B,)
    confidence: Tensor  # (B,) mean of the bin; 0, as its accuracy, where it is empty
    accuracy: Tensor  # (B,)
    ece: float  # expected calibration error: the mean |accuracy - confidence| over examples
    mce: float  # the largest of any bin that is not empty
    brier: float  # mean squared distance of the probabilities from the label's, summed over classes: 0 to 2
    nll: float  # mean negative log-likelihood of the labels


@dataclass(frozen=True, eq=False)
class Calibration:
    """The model as it is, and with its logits divided by the `temperature` that makes the labels likeliest."""

    own: Reliability
    scaled: Reliability
    temperature: float  # above 1: the model is too sure of itself
    accuracy: float
    errors: Tensor  # (M,) places in the data of the wrong answers, the most confident first
    error_confidence: Tensor  # (M,) their probabilities
    error_answer: Tensor  # (M,) classes
    error_label: Tensor  # (M,)

    def __str__(self) -> str:
        way = "too sure" if self.temperature > 1 else "not sure enough"
        said = f"{self.accuracy:.1%} right; expected calibration error {self.own.ece:.2%}, {self.scaled.ece:.2%} at"
        return f"{said} temperature {self.temperature:.2f} ({way})"


@card(
    name="Calibration",
    source="Guo et al. 2017, arXiv:1706.04599, sections 2 and 4.2; score: Brier 1950",
    tells="Whether its probabilities are how often the model is right, which temperature mends them, its worst errors.",
    not_tells="Anything of data unlike these; and the temperature was fitted to the very data that it is judged on.",
    example=lambda method, box, x, y: method(box, (x, y), bins=5),
)
def calibration(
    box: Box,
    data: Any,
    *,
    bins: int = 15,
    errors: int = 20,
    most: int | None = None,
    batch_size: BatchSize = "auto",
) -> Calibration:
    """Reliability on `data`, (x, y) tensors or a Dataset of (image, class), and its `errors` most confident errors.

    Of the first `most` examples, or all. Raises InputError, DataError and OutputError.
    """
    box.one_class_each("calibration")
    if box.outputs == "multilabel":
        raise OutputError("calibration is of one class an example; the box's outputs are multilabel")
    bins, errors = whole("bins", bins, least=1), whole("errors", errors)
    x, y, rows = labeled_rows(box, data, None if most is None else whole("most", most, least=1))
    z = logits_of(box, x, batch_size).double()  # (N, K)
    heat = temperature(z, y)
    own, scaled = (_reliability(z / t, y, bins, box.dtype) for t in (1.0, heat))
    right = float((z.argmax(1) == y).double().mean())
    return Calibration(own, scaled, heat, right, *_errors(z, y, rows, errors, box.dtype))


def temperature(z: Tensor, y: Tensor) -> float:
    """The T at which softmax(z / T) makes the labels y (N,) likeliest, given logits z (N, K); within 0.01 to 100.

    The likelihood's slope in 1 / T, mean(z_y - E[z]), falls as 1 / T rises: it is bisected.
    """
    z = z.double()
    right = z.gather(1, y[:, None])[:, 0]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        p = (middle * z).softmax(1)
        expected = (p * z.where(p > 0, 0)).sum(1)  # a masked class, of logit -inf, adds nothing
        if float((right - expected).mean()) >= 0:
            low = middle
        else:
            high = middle
    return float((low * high) ** -0.5)


def _reliability(z: Tensor, y: Tensor, bins: int, dtype: torch.dtype) -> Reliability:
    p = z.softmax(1)  # (N, K)
    sure, answer = p.max(1)
    right = (answer == y).double()
    place = _bins(sure, bins)
    count = torch.bincount(place, minlength=bins)
    confidence, accuracy = (_sums(place, v, bins) / count.clamp_min(1) for v in (sure, right))
    gap = (accuracy - confidence).abs()
    edges = torch.linspace(0, 1, bins + 1, dtype=dtype, device=z.device)
    wrong_by = (p - F.one_hot(y, p.shape[1])).square().sum(1)
    return Reliability(
        torch.stack([edges[:-1], edges[1:]], 1), count, confidence.to(dtype), accuracy.to(dtype),
        ece=float((gap * count).sum() / len(y)), mce=float(gap.max()), brier=float(wrong_by.mean()),
        nll=float(F.cross_entropy(z, y)),
    )  # fmt: skip


def _bins(sure: Tensor, bins: int) -> Tensor:
    """The bin (N,) of each confidence: ((m - 1) / B, m / B]; compared, for `sure * bins` may round over an edge."""
    return torch.bucketize(sure, torch.arange(1, bins, dtype=sure.dtype, device=sure.device) / bins)


def _sums(place: Tensor, values: Tensor, bins: int) -> Tensor:
    return torch.bincount(place, values, minlength=bins)


def _errors(z: Tensor, y: Tensor, rows: Tensor, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sure, answer = z.softmax(1).max(1)
    wrong = (answer != y).nonzero()[:, 0]
    first = wrong[sure[wrong].argsort(descending=True, stable=True)[:most]]
    return rows.to(first.device)[first], sure[first].to(dtype), answer[first], y[first]
