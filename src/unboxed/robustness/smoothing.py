"""Randomized smoothing: the class that a model predicts most often under Gaussian noise, and a certified radius.

Cohen, Rosenfeld & Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing", arXiv:1902.02918.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, ClassVar

import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.column_units import to_scaled_box_and_inputs
from ..engine.cpu_cache import MAX_CPU_DATA_BATCH_ROWS
from ..engine.results import ResultMixin
from ..errors import OutputError
from ..model.batching import map_in_batches
from ..model.nan_checks import check_no_nan
from ..objectives import check_classes, to_class_tensor
from ..parameters import BatchSize, InputBatch, Seed
from ..rng import sample_generator
from ..settings import Above, AtLeast, Below, Unit, check_settings
from ..validation import check_float, valid_seed

WITHOUT_CERTIFICATE_TEXT = (
    "measure it under attacks, without a certificate, by ub.robustness.evaluate_outputs(box, data, eps=[0.03])"
)
ABSTAIN = -1


@dataclass(frozen=True, repr=False, eq=False)
class Smoothed(ResultMixin):
    """The smoothed model's classes of N examples: no change within `radius`, in L2, alters them."""

    returns: ClassVar[str] = "table"

    classes: Tensor  # (N,), -1 where it abstains
    radius: Tensor  # (N,) 0 where it abstains
    p_lower: Tensor  # (N,) lower bound of the class's probability under noise
    class_fractions: Tensor  # (N, K) fraction of the noisy copies that the model assigned to each class
    sigma: float
    alpha: float  # largest probability that the claim about a row is wrong
    interrupted: bool = False  # by Ctrl-C: rows that were not done abstain

    def summary_lines(self) -> Iterator[str]:
        certified = ~self.has_abstained
        n, n_certified = len(certified), int(certified.sum())
        radius = f", median radius {float(self.radius[certified].median()):.3g}" if n_certified else ""
        yield f"{n_certified} of {n} examples certified at sigma {self.sigma:.3g}{radius}; {n - n_certified} abstained"

    @property
    def has_abstained(self) -> Tensor:
        """(N,) bool."""
        return self.classes == ABSTAIN

    def certified_accuracy(self, y: Tensor, radii: Sequence[float] | float = 0.0) -> Tensor:
        """(R,) fraction of examples with correct class y (N,) that are certified at each radius. Raises InputError."""
        y = to_class_tensor(y)
        check_classes(y, len(self.classes), self.class_fractions.shape[1])
        radius_list = [radii] if isinstance(radii, (int, float, Real)) else list(radii)
        radius_tensor = torch.tensor(
            [check_float("a radius", value, minimum=0) for value in radius_list], dtype=self.radius.dtype
        )
        is_correct = self.classes == y.to(self.classes.device)
        is_certified = is_correct & (self.radius >= radius_tensor.to(self.radius.device)[:, None])
        return is_certified.to(self.radius.dtype).mean(1)


@card(
    name="Randomized smoothing",
    source="Cohen et al. 2019, arXiv:1902.02918, sections 3.2 and 3.3 (CERTIFY)",
    shows="A radius within which no change alters the smoothed model's class, with probability 1 - alpha each.",
    does_not_show="The robustness of the model without noise; where it was not trained with noise, radii are small.",
    example=lambda method, box, x, y: method(box, x, 0.1, n0=8, n=40, alpha=0.05),
    runs=lambda s: s["n0"] + s["n"],
    order=12,
    exempt={
        "one forward": "it runs n0 + n noisy copies of each example",
        "row seeds": "it returns no images; its draws have their own test, tests/robustness/test_smoothing.py",
    },
)
def smoothed(
    box: Box,
    x: InputBatch,
    sigma: Annotated[float, Above(0), Unit("pixel range"), "Standard deviation of the noise."],
    *,
    n0: Annotated[int, AtLeast(1), Unit("samples"), "Noisy copies that choose the class."] = 100,
    n: Annotated[int, AtLeast(1), Unit("samples"), "Noisy copies that bound the probability of the class."] = 1000,
    alpha: Annotated[
        float, Above(0), Below(1), "Probability with which the claim about an example may be wrong."
    ] = 0.001,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Smoothed:
    """The class that the model predicts most often under Gaussian noise, and a certified L2 radius.

    For a guarantee instead of attacks: no change within `radius` alters the smoothed model's class. The model should
    have been trained with such noise, or radii are small. Where only the class is needed use `smoothed_predict`. Ctrl-C
    keeps the rows that are done.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        sigma: Standard deviation of the noise. Larger ones certify larger radii, at a lower accuracy.
        n0: Noisy copies that choose the class.
        n: Noisy copies that bound the probability of the class. More certify larger radii; the paper takes 100,000.
        alpha: Probability with which the claim about an example may be wrong.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Smoothed`: `classes` (N,), -1 where it abstains, `radius` (N,) in L2, and `p_lower` (N,).

    Raises:
        InputError: for settings out of their range.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.robustness.smoothed(box, x, 0.1, n=100, alpha=0.05).radius.shape
        torch.Size([4])

    Source:
        Cohen et al. 2019, arXiv:1902.02918, sections 3.2 and 3.3 (CERTIFY): radius sigma * Phi^-1(p), where p is the
        lower Clopper-Pearson bound; it abstains where p <= 1/2. The largest radius that n samples can certify has p =
        alpha ** (1 / n). As in the paper, noisy inputs are not clipped.
    """
    check_settings(smoothed, locals())
    classifier = _NoisyClassifier(box, x, sigma, seed, batch_size)
    counts, interrupted = classifier.class_counts_and_interrupted(0, n0, n0 + n)  # (N, 2, K)
    top_class = counts[:, 0].argmax(1, keepdim=True)  # (N, 1)
    n_hits, n_sampled = counts[:, 1].gather(1, top_class)[:, 0], counts[:, 1].sum(1)
    p_lower = torch.tensor(
        [
            _clopper_pearson_lower(int(hits_in_row), n, alpha) if samples_in_row else 0.0
            for hits_in_row, samples_in_row in zip(n_hits, n_sampled, strict=True)
        ]
    )
    is_certified = (p_lower > 0.5).to(top_class.device)
    radius = torch.as_tensor(sigma * scipy.stats.norm.ppf(p_lower.double().clamp_min(0.5).numpy()))
    class_fractions = counts.sum(1) / max(n0 + n, 1)
    return Smoothed(
        torch.where(is_certified, top_class[:, 0], ABSTAIN),
        radius.to(box.device, box.dtype),
        p_lower.to(box.device, box.dtype),
        class_fractions.to(box.dtype),
        float(sigma),
        alpha,
        interrupted,
    )


def smoothed_predict(
    box: Box,
    x: InputBatch,
    sigma: Annotated[float, Above(0), Unit("pixel range"), "Standard deviation of the noise."],
    *,
    n: Annotated[int, AtLeast(1), Unit("samples"), "Noisy copies that vote."] = 1000,
    alpha: Annotated[
        float, Above(0), Below(1), "Probability with which the claim about an example may be wrong."
    ] = 0.001,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """The class of the smoothed model, or -1 where the vote is too close.

    Cheaper than `smoothed`, which also certifies a radius.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        sigma: Standard deviation of the noise. Larger ones certify larger radii, at a lower accuracy.
        n: Noisy copies that vote. It abstains more rarely with more.
        alpha: Probability with which the claim about an example may be wrong.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        Classes (N,), -1 where it abstains.

    Raises:
        InputError: for settings out of their range.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> (ub.robustness.smoothed_predict(box, x, 0.1, n=100) == y).tolist()
        [True, True, True, True]

    Source:
        Cohen et al. 2019, arXiv:1902.02918, section 3.2.1 (PREDICT): a two-sided binomial test of the two most frequent
        classes.
    """
    check_settings(smoothed_predict, locals())
    counts, interrupted = _NoisyClassifier(box, x, sigma, seed, batch_size).class_counts_and_interrupted(0, n, n)
    if interrupted:
        raise KeyboardInterrupt
    top_counts, top_classes = counts[:, 0].topk(2, dim=1)
    p_values = [
        scipy.stats.binomtest(int(count_a), int(count_a + count_b), 0.5).pvalue
        for count_a, count_b in top_counts.tolist()
    ]
    is_significant = torch.tensor(p_values, dtype=torch.float64, device=box.device) <= alpha
    return torch.where(is_significant, top_classes[:, 0], ABSTAIN)


def _clopper_pearson_lower(n_hits: int, n_samples: int, alpha: float) -> float:
    """Clopper & Pearson's one-sided lower bound of a probability, after `hits` in n draws."""
    return 0.0 if n_hits == 0 else float(scipy.stats.beta.ppf(alpha, n_hits, n_samples - n_hits + 1))


class _NoisyClassifier:
    """Noisy copies of each row, each from a generator of its own."""

    def __init__(self, box: Box, x: Tensor, sigma: float, seed: int, batch_size: BatchSize) -> None:
        box.require_class_scores("smoothing", exclusive=True, objective_call=WITHOUT_CERTIFICATE_TEXT)
        if box.n_outputs < 2:
            raise OutputError("smoothing needs a model of two classes or more")
        self.box, self.x = to_scaled_box_and_inputs(box, box.validate_inputs(x))
        self.sigma = float(sigma)
        self.seed, self.batch_size = valid_seed(seed), batch_size

    def class_counts_and_interrupted(
        self, first_sample: int, split_sample: int, last_sample: int
    ) -> tuple[Tensor, bool]:
        """(N, 2, K) counts of the classes in samples first..split and split..last; and whether Ctrl-C ended it."""
        class_counts = torch.zeros(len(self.x), 2, self.box.n_outputs, dtype=torch.long, device=self.x.device)
        if self.box.batch_dependent:
            predictions = torch.stack(
                [
                    self._predict_samples(slice(None), sample_index, sample_index + 1)[:, 0]
                    for sample_index in range(first_sample, last_sample)
                ],
                1,
            )
            return _class_counts_of_two_parts(predictions, split_sample - first_sample, class_counts.shape[2]), False
        n_done = 0
        try:
            for row in range(len(self.x)):
                predictions = self._predict_samples(slice(row, row + 1), first_sample, last_sample)
                class_counts[row], n_done = (
                    _class_counts_of_two_parts(predictions, split_sample - first_sample, class_counts.shape[2])[0],
                    row + 1,
                )
        except KeyboardInterrupt:
            if not n_done:
                raise
        return class_counts, n_done < len(self.x)

    def _predict_samples(self, rows: slice, first_sample: int, last_sample: int) -> Tensor:
        """(n, samples) the model's classes; of one row, or one sample of all rows, at a time."""
        row_numbers = range(len(self.x))[rows]
        if self.box.batch_dependent:
            return self._predict_noisy_classes(
                torch.stack([self._noisy_copy_of_row(i, first_sample) for i in row_numbers])
            )[:, None]
        size, max_rows = self.box.batch_size_and_max_rows(last_sample - first_sample, self.batch_size)
        max_rows = min(max_rows, MAX_CPU_DATA_BATCH_ROWS) if self.x.device.type == "cpu" else max_rows

        def predict_slice(sample_slice: slice) -> Tensor:
            return self._predict_noisy_classes(
                torch.stack(
                    [
                        self._noisy_copy_of_row(row_numbers[0], first_sample + sample_index)
                        for sample_index in range(last_sample - first_sample)[sample_slice]
                    ]
                )
            )

        return torch.cat(map_in_batches(predict_slice, last_sample - first_sample, size, max_rows))[None]

    def _noisy_copy_of_row(self, row: int, sample_index: int) -> Tensor:
        x = self.x[row]
        generator = sample_generator(self.seed, row, sample_index, x.device)
        return x + self.sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def _predict_noisy_classes(self, noisy_inputs: Tensor) -> Tensor:
        """(n,) of noisy inputs, which may lie outside the valid range."""
        with self.box.isolated(grad=False):
            return check_no_nan(self.box.forward(noisy_inputs, {"logits"})["logits"], what="a noisy copy").argmax(1)


def _class_counts_of_two_parts(predictions: Tensor, n_first: int, n_classes: int) -> Tensor:
    """(n, 2, K) counts of predictions (n, samples)."""
    one_hot = F.one_hot(predictions, n_classes)  # (n, draws, K)
    return torch.stack([one_hot[:, :n_first].sum(1), one_hot[:, n_first:].sum(1)], 1)
