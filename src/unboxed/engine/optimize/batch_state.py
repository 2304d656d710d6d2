"""The state of each row of a batch that is optimized."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import OptimizationConfig as OptimizationConfig
from .config import OptimizationResult as OptimizationResult
from .config import OptimizerFactory as OptimizerFactory
from .config import retry_on_interrupt as retry_on_interrupt
from .optimizers import OptimizerLike
from .parameterizations import Canvas


@dataclass(eq=False)
class BatchState:
    """All rows of one batch, including the finished ones."""

    input: Tensor
    score: Tensor
    finished: Tensor
    initially_finished: Tensor
    steps: Tensor
    n_forwards: Tensor
    before_clamp: Tensor
    initial_grad: Tensor
    abs_grad_sum: Tensor | None

    @classmethod
    def initial(cls, x: Tensor, sum_abs_grads: bool, frozen_rows: Tensor | None) -> BatchState:
        """The state before the first evaluation of images x."""
        zero_counts = torch.zeros(len(x), dtype=torch.long, device=x.device)
        all_false, zero_image = torch.zeros_like(zero_counts, dtype=torch.bool), torch.zeros_like(x)
        finished = all_false.clone() if frozen_rows is None else frozen_rows.clone()
        abs_grad_sum = zero_image.clone() if sum_abs_grads else None
        return cls(
            x,
            x.new_full((len(x),), math.nan),  # not measured yet
            finished,
            all_false.clone(),
            zero_counts,
            zero_counts.clone(),
            all_false.clone(),
            zero_image,
            abs_grad_sum,
        )


def select_optimizer_rows(
    make_optimizer: OptimizerFactory,
    old_optimizer: OptimizerLike,
    old_canvas: Canvas,
    new_canvas: Canvas,
    index: Tensor,
) -> OptimizerLike:
    """The optimizer with its state for some of the rows: state shaped like a parameter has one row per example."""
    new_optimizer = make_optimizer(list(new_canvas.parameters()))
    for p, q in zip(old_canvas.parameters(), new_canvas.parameters(), strict=True):
        new_optimizer.state[q] = {
            k: v[index] if isinstance(v, Tensor) and v.shape == p.shape else v
            for k, v in old_optimizer.state.get(p, {}).items()
        }
    return new_optimizer
