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
from ..validation import check_int

LogitThresholdScope = Literal["batch", "example"]


@dataclass(frozen=True, eq=False)
class ConfusedInputs:
    """Inputs on which the model can't decide, the closest call first. Axis 1 of length 2 is (a, b): the two classes."""

    step: int
    batch_index: Tensor  # (n,), places in the batch
    inputs: Tensor  # (n, ...), as the model gets them
    labels: Tensor | None  # (n,), or whatever stood for them in the batch
    classes: Tensor  # (n, 2), a's logit is the largest
    logits: Tensor  # (n, K)
    gradients: Tensor  # (n, 2, ...), d logit / d input
    is_clamped: Tensor  # (n, 2) bool: a final ReLU clamps that logit at zero; its gradient is taken before it

    def __len__(self) -> int:
        return len(self.batch_index)


@dataclass(frozen=True)
class ConfusionRule:
    """Which inputs count as confused: `ConfusedLogits` says what each number means."""

    top_k: int = 1
    max_logit_difference: float = 0.1
    min_logit_value: float = 5.0
    min_logit_scope: LogitThresholdScope = "batch"
    min_probability: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_k", check_int("top_k", self.top_k, minimum=1))
        if not self.max_logit_difference > 0:
            raise InputError(f"max_logit_difference must be above 0; got {self.max_logit_difference!r}")
        if self.min_logit_scope not in ("batch", "example"):
            raise InputError(f'min_logit_scope is "batch" or "example"; got {self.min_logit_scope!r}')
        if self.min_probability is not None:
            self._check_probability(self.min_probability)

    def _check_probability(self, min_probability: float) -> None:
        if not 0 <= min_probability < 1:
            raise InputError(f"min_probability must lie in [0, 1); got {min_probability!r}")
        max_probability = 1 / (1 + math.exp(-self.max_logit_difference))  # with all the rest at zero
        if self.min_logit_scope == "example" and min_probability >= max_probability:
            raise InputError(
                f"of two classes whose logits differ by less than {self.max_logit_difference:g} none has a probability "
                f"above {max_probability:.3f}: lower "
                f'min_probability={min_probability:g}, or take min_logit_scope="batch"'
            )

    def check(self, box: Box) -> None:
        """Raise OutputError where the model's outputs can't be confused, or never under this rule."""
        if box.outputs in ("multilabel", "regression") or box.n_outputs < 2:
            raise OutputError(
                f"two nearly equal logits are a confusion where classes exclude each other; these are {box.n_outputs} "
                f"outputs of a {box.outputs} model"
            )
        if box.outputs in ("logprobs", "probs") and self.min_probability is None:
            output_name, upper_limit = ("log-probabilities", 0) if box.outputs == "logprobs" else ("probabilities", 1)
            raise OutputError(
                f"the model gives {output_name}, which never exceed "
                f"{upper_limit}: min_logit_value={self.min_logit_value:g} has no "
                "meaning for them. Pass min_probability, for one 0.3, or let the model return logits"
            )

    def find_confused_rows(self, logits: Tensor) -> Tensor:
        """Which of the logits (N, K) are confused, the smallest difference first, at most `top_k`."""
        top_logit, second_logit = logits.topk(2, dim=1).values.unbind(1)  # (N,) each
        strength, threshold = top_logit, self.min_logit_value
        if self.min_probability is not None:
            strength, threshold = logits.softmax(1).amax(1), self.min_probability
        if self.min_logit_scope == "batch":
            strength = strength.max()
        is_clamped = (top_logit == 0) & (second_logit == 0)  # by a final ReLU: equal because neither says anything
        confused_index = (
            ((top_logit - second_logit < self.max_logit_difference) & (strength > threshold) & ~is_clamped)
            .nonzero()
            .flatten()
        )
        return confused_index[(top_logit - second_logit)[confused_index].argsort(stable=True)][: self.top_k]


def require_single_label_logits(box: Box, x: Tensor) -> Tensor:
    """(N, K), in one forward. Raises OutputError where there are more answers than one an input."""
    logits = box(x)
    if logits.ndim != 2:
        raise OutputError(f"wanted one class an input, logits (N, K); the model gives {tuple(logits.shape)}")
    return logits


def find_confused_inputs(
    box: Box, x: Tensor, y: Tensor | None, step: int, rule: ConfusionRule, logits: Tensor
) -> ConfusedInputs | None:
    """The confused inputs of a batch x (N, ...) with labels y and logits (N, K): one small pass for those picked."""
    rows = rule.find_confused_rows(logits)  # (n,)
    if len(rows) == 0:
        return None
    classes = logits[rows].topk(2, dim=1).indices  # (n, 2)
    maps, is_clamped = (
        _batch_dependent_pair_gradients(box, x, rows, classes)
        if box.batch_dependent
        else _class_pair_gradients_and_clamped(box, x, rows, classes)
    )
    input_rows = rows.to(x.device)
    labels = None if y is None else y[rows.to(y.device)].detach().clone()
    return ConfusedInputs(
        step, rows, box.validate_inputs(x[input_rows]), labels, classes, logits[rows], maps, is_clamped
    )


def _class_pair_gradients_and_clamped(box: Box, x: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients (n, 2, ...) of each picked input, in one batch of 2n."""
    selected = x[rows.to(x.device)]
    pair_gradients = gradients(
        box, logit(classes.T.flatten()), torch.cat([selected, selected])
    )  # a of all, then b of all
    maps = pair_gradients.map.view(2, *selected.shape).transpose(0, 1)  # (n, 2, ...)
    return maps, pair_gradients.before_clamp.view(2, -1).T


def _batch_dependent_pair_gradients(box: Box, x: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a model whose rows depend on one another: each in the whole batch, the others held."""
    row_masks = torch.eye(len(x), dtype=box.dtype, device=box.device)
    maps, is_clamped = [], []
    for row, class_pair in zip(rows.tolist(), classes.tolist(), strict=True):
        gradients_of_pair = [gradients(box, logit(class_index) * row_masks[row], x) for class_index in class_pair]
        maps.append(torch.stack([result.map[row] for result in gradients_of_pair]))
        is_clamped.append(torch.stack([g.before_clamp[row] for g in gradients_of_pair]))
    return torch.stack(maps), torch.stack(is_clamped)
