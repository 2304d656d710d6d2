"""Randomized smoothing: the class that a model gives most often under Gaussian noise, and how far that surely holds.

Cohen, Rosenfeld & Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing", arXiv:1902.02918.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.stats import beta, binomtest, norm
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.examples import AT_ONCE
from ..errors import OutputError
from ..model.answers import without_nan
from ..model.batching import BatchSize, in_batches
from ..objectives import as_classes, check_classes
from ..rng import of_sample
from ..validation import check_seed, number, whole

ABSTAIN = -1


@dataclass(frozen=True, eq=False)
class Smoothed:
    """What the smoothed model says of N examples: within `radius`, in L2, it says so of every other input too."""

    classes: Tensor  # (N,), -1 where it abstains
    radius: Tensor  # (N,) 0 where it abstains
    p_lower: Tensor  # (N,) the class's probability under noise is at least that
    share: Tensor  # (N, K) of the draws that the model gave each class
    sigma: float
    alpha: float  # each row's claim fails with this probability at most
    interrupted: bool = False  # the rows that it did not come to abstain

    @property
    def abstained(self) -> Tensor:
        """(N,) bool."""
        return self.classes == ABSTAIN

    def certified_accuracy(self, y: Tensor, radii: Sequence[float] | float = 0.0) -> Tensor:
        """(R,) the share of examples that are surely right within each radius. Raises InputError."""
        y = as_classes(y)
        check_classes(y, len(self.classes), self.share.shape[1])
        given = [radii] if isinstance(radii, (int, float)) else list(radii)
        wanted = torch.tensor([number("a radius", r, least=0) for r in given], dtype=self.radius.dtype)
        right = self.classes == y.to(self.classes.device)
        held = right & (self.radius >= wanted.to(self.radius.device)[:, None])
        return held.to(self.radius.dtype).mean(1)


@card(
    name="Randomized smoothing",
    source="Cohen et al. 2019, arXiv:1902.02918, sections 3.2 and 3.3 (CERTIFY)",
    tells="A radius within which no change whatever moves the smoothed model's answer, with 1 - alpha certainty each.",
    not_tells="Anything of the model without noise; where that was not trained with noise, radii are small.",
    example=lambda method, box, x, y: method(box, x, 0.1, n0=8, n=40, alpha=0.05),
    exempt={
        "one look": "it asks about n0 + n noisy copies of each example",
        "draws of rows": "it gives no images back; tests/adversarial/test_smoothing.py holds its draws to the same law",
    },
)
def smoothed(
    box: Box,
    x: Tensor,
    sigma: float,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Smoothed:
    """The class that the model gives most often to x plus noise of standard deviation `sigma`, and its certified
    radius.

    `n0` draws choose the class; `n` others bound its probability from below (Clopper & Pearson 1934) by p, and the
    radius is sigma * Phi^-1(p); it abstains where p is not above 1/2. The largest radius that n draws can certify is
    that of p = alpha ** (1 / n). Noisy inputs are not clipped, as in the paper. Ctrl-C keeps the rows that are done.
    Raises InputError and OutputError.
    """
    n0, n, alpha = whole("n0", n0, least=1), whole("n", n, least=1), number("alpha", alpha, above=0, below=1)
    noisy = _Noisy(box, x, sigma, seed, batch_size)
    counts, interrupted = noisy.counts(0, n0, n0 + n)  # (N, 2, K)
    top = counts[:, 0].argmax(1, keepdim=True)  # (N, 1)
    hits, drawn = counts[:, 1].gather(1, top)[:, 0], counts[:, 1].sum(1)
    p = torch.tensor([_lower(int(k), n, alpha) if m else 0.0 for k, m in zip(hits, drawn, strict=True)])
    sure = (p > 0.5).to(top.device)
    radius = torch.as_tensor(sigma * norm.ppf(p.double().clamp_min(0.5).numpy()))
    share = counts.sum(1) / max(n0 + n, 1)
    return Smoothed(
        torch.where(sure, top[:, 0], ABSTAIN), radius.to(box.device, box.dtype), p.to(box.device, box.dtype),
        share.to(box.dtype), float(sigma), alpha, interrupted,
    )  # fmt: skip


def smoothed_predict(
    box: Box,
    x: Tensor,
    sigma: float,
    *,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """The smoothed model's class (N,), wrong with probability alpha at most, or -1 (PREDICT, section 3.2.1).

    From the two classes met most often in n draws, by a two-sided binomial test. Raises InputError and OutputError.
    """
    n, alpha = whole("n", n, least=1), number("alpha", alpha, above=0, below=1)
    counts, interrupted = _Noisy(box, x, sigma, seed, batch_size).counts(0, n, n)
    if interrupted:
        raise KeyboardInterrupt
    two, classes = counts[:, 0].topk(2, dim=1)
    fair = [binomtest(int(a), int(a + b), 0.5).pvalue for a, b in two.tolist()]
    sure = torch.tensor(fair, dtype=torch.float64, device=box.device) <= alpha
    return torch.where(sure, classes[:, 0], ABSTAIN)


def _lower(hits: int, n: int, alpha: float) -> float:
    """Clopper & Pearson's one-sided lower bound of a probability, after `hits` in n draws."""
    return 0.0 if hits == 0 else float(beta.ppf(alpha, hits, n - hits + 1))


class _Noisy:
    """Noisy copies of each row, each from a generator of its own."""

    def __init__(self, box: Box, x: Tensor, sigma: float, seed: int, batch_size: BatchSize) -> None:
        box.one_class_each("smoothing")
        if box.outputs == "multilabel":
            raise OutputError("smoothing is of one class an example; the box's outputs are multilabel")
        if box.n_outputs < 2:
            raise OutputError("smoothing needs a model of two classes or more")
        self.box, self.x, self.sigma = box, box.accept(x), number("sigma", sigma, above=0)
        self.seed, self.batch_size = check_seed(seed), batch_size

    def counts(self, start: int, split: int, stop: int) -> tuple[Tensor, bool]:
        """(N, 2, K) how often each class is met in draws start..split and split..stop; and if Ctrl-C ended it."""
        found = torch.zeros(len(self.x), 2, self.box.n_outputs, dtype=torch.long, device=self.x.device)
        if self.box.coupled:
            answers = torch.stack([self._answers(slice(None), d, d + 1)[:, 0] for d in range(start, stop)], 1)
            return _tallied(answers, split - start, found.shape[2]), False
        done = 0
        try:
            for row in range(len(self.x)):
                answers = self._answers(slice(row, row + 1), start, stop)
                found[row], done = _tallied(answers, split - start, found.shape[2])[0], row + 1
        except KeyboardInterrupt:
            if not done:
                raise
        return found, done < len(self.x)

    def _answers(self, rows: slice, start: int, stop: int) -> Tensor:
        """(n, draws) the model's classes; one row, or all rows and one draw, at a time."""
        places = range(len(self.x))[rows]
        if self.box.coupled:
            return self._classes(torch.stack([self._draw(i, start) for i in places]))[:, None]
        size, most = self.box.splits(stop - start, self.batch_size)
        most = min(most, AT_ONCE) if self.x.device.type == "cpu" else most

        def part(draws: slice) -> Tensor:
            return self._classes(torch.stack([self._draw(places[0], start + d) for d in range(stop - start)[draws]]))

        return torch.cat(in_batches(part, stop - start, size, most))[None]

    def _draw(self, row: int, draw: int) -> Tensor:
        x = self.x[row]
        generator = of_sample(self.seed, row, draw, x.device)
        return x + self.sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def _classes(self, z: Tensor) -> Tensor:
        """(n,) of noisy inputs, which may lie outside the valid range."""
        with self.box.quiet(grad=False):
            return without_nan(self.box.forward(z, {"logits"})["logits"], what="a noisy copy").argmax(1)


def _tallied(answers: Tensor, split: int, classes: int) -> Tensor:
    """(n, 2, K) of answers (n, draws)."""
    each = F.one_hot(answers, classes)  # (n, draws, K)
    return torch.stack([each[:, :split].sum(1), each[:, split:].sum(1)], 1)
