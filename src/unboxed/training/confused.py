"""Confused inputs: those of a batch whose two largest logits are nearly equal, and where each of the two would grow.

After the `ConfusedLogitCallback` of Falcon and Canziani (2020, PyTorch Lightning Bolts), whose gradients mix the
classes of all confused inputs; here each input has those of its own two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.gradients.score import gradients
from ..errors import InputError, OutputError
from ..objectives import logit

Scope = Literal["batch", "example"]


@dataclass(frozen=True, eq=False)
class Confused:
    """Inputs on which the model can't decide, the closest call first. Axis 1 of length 2 is (a, b): the two classes."""

    step: int
    rows: Tensor  # (n,), places in the batch
    inputs: Tensor  # (n, ...), as the model gets them
    labels: Tensor | None  # (n,), or whatever stood for them in the batch
    classes: Tensor  # (n, 2), a's logit is the largest
    logits: Tensor  # (n, K)
    gradients: Tensor  # (n, 2, ...), d logit / d input
    before_clamp: Tensor  # (n, 2) bool: a final ReLU clamps that logit at zero; its gradient is taken before it

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Rule:
    """Which inputs count as confused: `ConfusedLogits` says what each number means."""

    top_k: int = 1
    max_logit_difference: float = 0.1
    min_logit_value: float = 5.0
    min_logit_scope: Scope = "batch"
    min_probability: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise InputError(f"top_k is the most inputs that a look shows, an int from 1; got {self.top_k!r}")
        if not self.max_logit_difference > 0:
            raise InputError(f"max_logit_difference must be above 0; got {self.max_logit_difference!r}")
        if self.min_logit_scope not in ("batch", "example"):
            raise InputError(f'min_logit_scope is "batch" or "example"; got {self.min_logit_scope!r}')
        if self.min_probability is not None:
            self._check_probability(self.min_probability)

    def _check_probability(self, least: float) -> None:
        if not 0 <= least < 1:
            raise InputError(f"min_probability must lie in [0, 1); got {least!r}")
        most = 1 / (1 + math.exp(-self.max_logit_difference))  # with all the rest at zero
        if self.min_logit_scope == "example" and least >= most:
            raise InputError(
                f"of two classes whose logits differ by less than {self.max_logit_difference:g} none has a probability "
                f'above {most:.3f}: lower min_probability={least:g}, or take min_logit_scope="batch"'
            )

    def check(self, box: Box) -> None:
        """Raise OutputError where the model's outputs can't be confused, or never under this rule."""
        if box.outputs in ("multilabel", "regression") or box.n_outputs < 2:
            raise OutputError(
                f"two nearly equal logits are a confusion where classes exclude each other; these are {box.n_outputs} "
                f"outputs of a {box.outputs} model"
            )
        if box.outputs in ("logprobs", "probs") and self.min_probability is None:
            what, top = ("log-probabilities", 0) if box.outputs == "logprobs" else ("probabilities", 1)
            raise OutputError(
                f"the model gives {what}, which never exceed {top}: min_logit_value={self.min_logit_value:g} has no "
                "meaning for them. Pass min_probability, for one 0.3, or let the model return logits"
            )

    def rows(self, logits: Tensor) -> Tensor:
        """Which of the logits (N, K) are confused, the smallest difference first, at most `top_k`."""
        a, b = logits.topk(2, dim=1).values.unbind(1)  # (N,) each
        size, least = a, self.min_logit_value
        if self.min_probability is not None:
            size, least = logits.softmax(1).amax(1), self.min_probability
        if self.min_logit_scope == "batch":
            size = size.max()
        clamped = (a == 0) & (b == 0)  # by a final ReLU: equal because neither says anything
        found = ((a - b < self.max_logit_difference) & (size > least) & ~clamped).nonzero().flatten()
        return found[(a - b)[found].argsort(stable=True)][: self.top_k]


def logits_of(box: Box, x: Tensor) -> Tensor:
    """(N, K), in one forward. Raises OutputError where there are more answers than one an input."""
    logits = box(x)
    if logits.ndim != 2:
        raise OutputError(f"wanted one class an input, logits (N, K); the model gives {tuple(logits.shape)}")
    return logits


def find(box: Box, x: Tensor, y: Tensor | None, step: int, rule: Rule, logits: Tensor) -> Confused | None:
    """The confused inputs of a batch x (N, ...) with labels y and logits (N, K): one small pass for those picked."""
    rows = rule.rows(logits)  # (n,)
    if len(rows) == 0:
        return None
    classes = logits[rows].topk(2, dim=1).indices  # (n, 2)
    maps, clamped = _in_batch(box, x, rows, classes) if box.batch_dependent else _alone(box, x, rows, classes)
    here = rows.to(x.device)
    labels = None if y is None else y[rows.to(y.device)].detach().clone()
    return Confused(step, rows, box.validate_inputs(x[here]), labels, classes, logits[rows], maps, clamped)


def _alone(box: Box, x: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients (n, 2, ...) of each picked input, in one batch of 2n."""
    picked = x[rows.to(x.device)]
    both = gradients(box, logit(classes.T.flatten()), torch.cat([picked, picked]))  # a of all, then b of all
    maps = both.map.view(2, *picked.shape).transpose(0, 1)  # (n, 2, ...)
    return maps, both.before_clamp.view(2, -1).T


def _in_batch(box: Box, x: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a model whose rows depend on one another: each in the whole batch, the others held."""
    own = torch.eye(len(x), dtype=box.dtype, device=box.device)
    maps, clamped = [], []
    for row, pair in zip(rows.tolist(), classes.tolist(), strict=True):
        found = [gradients(box, logit(k) * own[row], x) for k in pair]
        maps.append(torch.stack([g.map[row] for g in found]))
        clamped.append(torch.stack([g.before_clamp[row] for g in found]))
    return torch.stack(maps), torch.stack(clamped)
