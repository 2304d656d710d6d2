"""The online (prequential) code of labels given features: how many bits send the labels to one who has the features.

Voita & Titov 2020, "Information-theoretic probing with minimum description length", arXiv:2003.12298, section 2.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ... import rng
from ..intervals import Interval, bootstrap_mean_interval
from .principal import PrincipalBasis
from .splits import split_off_validation

PORTION_END_FRACTIONS = (
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.0625,
    0.125,
    0.25,
    0.5,
    1.0,
)  # of the examples, as published
MIN_FIRST_PORTION_EXAMPLES = 8  # examples, or as many as there are classes: smaller portions are joined to the first
MIN_BITS_PER_LABEL = 1e-9  # per label: a ratio needs some

FitAndChoosePenaltyFn = Callable[..., tuple[Any, float]]


@dataclass(frozen=True, eq=False)
class OnlineCodeLength:
    """The length of the labels in the online code.

    Attributes:
        bits: Bits per label.
        uniform_bits: Bits per label without the features, all classes alike: log2 K.
        ratio: `uniform_bits` / `bits`, with its interval over the examples: above 1 the features shorten the labels.
    """

    bits: float
    uniform_bits: float
    ratio: Interval


def online_code_length(
    h: Tensor, y: Tensor, n_classes: int, fit_and_choose: FitAndChoosePenaltyFn, seed: int
) -> OnlineCodeLength:
    """The online code of labels y (N,) given features h (N, D).

    The examples are sent in portions in random order; each is coded by a probe fitted to all before it, the first by
    the uniform distribution. The probe's probabilities are mixed with uniform ones by Laplace's rule, so that a class
    that was not sent yet has a code; the paper leaves that open. The receiver, too, can choose the penalty: on a
    quarter of what was sent.
    """
    order = torch.randperm(len(y), generator=rng.keyed_generator(rng.CPU, "online code", seed))
    h, y = h[order], y[order]
    uniform = math.log2(n_classes)
    ends = _portion_end_indices(len(y), n_classes)
    bits = [torch.full((ends[0],), uniform, dtype=torch.float64)]
    bits += list(_bits_of_later_portions(h, y, n_classes, ends, fit_and_choose, seed))
    interval = bootstrap_mean_interval(torch.cat(bits)[:, None], seed)
    ratios = [uniform / max(value, MIN_BITS_PER_LABEL) for value in (interval.mean, interval.high, interval.low)]
    ratio = Interval(ratios[0], ratios[1], ratios[2], interval.n_examples, 1)
    return OnlineCodeLength(interval.mean, uniform, ratio)


def _bits_of_later_portions(
    h: Tensor, y: Tensor, n_classes: int, ends: list[int], fit_and_choose: FitAndChoosePenaltyFn, seed: int
) -> Iterator[Tensor]:
    """The bits of each label of the portions after the first."""
    for start, end in pairwise(ends):
        z = PrincipalBasis.fit(h[:start])(h[:end])
        fit, validation = split_off_validation(y, torch.arange(start), seed)
        probe, _ = fit_and_choose(z[fit], y[fit], z[validation], y[validation], n_classes)
        p = probe(z[start:]).softmax(1).gather(1, y[start:end, None])[:, 0]
        yield -((start * p + 1) / (start + n_classes)).log2()


def _portion_end_indices(n: int, n_classes: int) -> list[int]:
    smallest = min(n, max(MIN_FIRST_PORTION_EXAMPLES, n_classes))
    return sorted({end for fraction in PORTION_END_FRACTIONS if (end := round(fraction * n)) >= smallest})
