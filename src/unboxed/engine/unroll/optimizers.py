"""The updates of torch's optimizers as pure functions, each with its adjoint written out.

The adjoint of an update is what autograd would give, in a third of its passes over memory: for 20 queries the state of
Adam is 60 times the model, and these passes are a large part of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import InputError

OptimizerSlots = tuple[Tensor, ...]  # what an optimizer keeps of one parameter: momentum, averages of gradients
HyperparametersOfStep = Mapping[str, Any]  # of one parameter at one step, as torch's param groups hold them


@dataclass(eq=False)
class Adjoint:
    """Derivatives of the queries' losses with respect to one parameter, its gradient and its slots: (Q, *shape)."""

    parameter: Tensor
    slots: tuple[Tensor, ...]
    gradient: Tensor


class OptimizerUpdate(Protocol):
    """One step of an optimizer for one parameter."""

    slot_names: tuple[str, ...]

    def __call__(
        self, p: Tensor, g: Tensor, slots: OptimizerSlots, h: HyperparametersOfStep, t: int
    ) -> tuple[Tensor, OptimizerSlots]:
        """The parameter and the slots after step t (from 0) with gradient g."""

    def adjoint(
        self,
        p: Tensor,
        g: Tensor,
        new_slots: OptimizerSlots,
        h: HyperparametersOfStep,
        t: int,
        after: Tensor,
        slots_after: OptimizerSlots,
    ) -> Adjoint:
        """The adjoint before step t of the adjoint `after` it, which may be overwritten. `new_slots` are after it."""


class SGDUpdate:
    """`torch.optim.SGD`, with momentum, Nesterov's or not."""

    slot_names: tuple[str, ...] = ("momentum_buffer",)

    def __call__(
        self, p: Tensor, g: Tensor, slots: OptimizerSlots, h: HyperparametersOfStep, t: int
    ) -> tuple[Tensor, OptimizerSlots]:
        g = g + h["weight_decay"] * p if h["weight_decay"] else g
        buffer = h["momentum"] * slots[0] + _momentum_gradient_factor(h, t) * g
        step = g + h["momentum"] * buffer if h["nesterov"] else buffer if h["momentum"] else g
        return p - h["lr"] * step, (buffer,)

    def adjoint(
        self,
        p: Tensor,
        g: Tensor,
        new_slots: OptimizerSlots,
        h: HyperparametersOfStep,
        t: int,
        after: Tensor,
        slots_after: OptimizerSlots,
    ) -> Adjoint:
        (buffer,) = slots_after
        if h["nesterov"] or h["momentum"]:
            buffer.add_(after, alpha=-h["lr"] * (h["momentum"] if h["nesterov"] else 1))
        gradient = buffer * _momentum_gradient_factor(h, t) if h["momentum"] else torch.zeros_like(buffer)
        if h["nesterov"] or not h["momentum"]:
            gradient.add_(after, alpha=-h["lr"])
        if h["weight_decay"]:
            after = after.add(gradient, alpha=h["weight_decay"])
        return Adjoint(after, (buffer.mul_(h["momentum"]),), gradient)


class AdamUpdate:
    """`torch.optim.Adam` and, with decoupled weight decay, `AdamW`."""

    slot_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, *, decoupled: bool) -> None:
        self.decoupled = decoupled

    def __call__(
        self, p: Tensor, g: Tensor, slots: OptimizerSlots, h: HyperparametersOfStep, t: int
    ) -> tuple[Tensor, OptimizerSlots]:
        (beta1, beta2), decay = h["betas"], h["weight_decay"]
        g = g if self.decoupled or not decay else g + decay * p
        mean = torch.lerp(slots[0], g, 1 - beta1)
        square = slots[1] * beta2 + (1 - beta2) * g * g
        shrunk = p * (1 - h["lr"] * decay) if self.decoupled and decay else p
        tiny = torch.finfo(square.dtype).tiny  # the root of zero has no derivative
        denominator = square.clamp_min(tiny).sqrt() / (1 - beta2 ** (t + 1)) ** 0.5 + h["eps"]
        return shrunk - h["lr"] / (1 - beta1 ** (t + 1)) * mean / denominator, (mean, square)

    def adjoint(
        self,
        p: Tensor,
        g: Tensor,
        new_slots: OptimizerSlots,
        h: HyperparametersOfStep,
        t: int,
        after: Tensor,
        slots_after: OptimizerSlots,
    ) -> Adjoint:
        (beta1, beta2), decay, (mean, square) = h["betas"], h["weight_decay"], new_slots
        g = g if self.decoupled or not decay else g + decay * p
        step, root_correction = h["lr"] / (1 - beta1 ** (t + 1)), (1 - beta2 ** (t + 1)) ** 0.5
        root = square.sqrt()
        inverse = (root / root_correction + h["eps"]).reciprocal_()
        by_square = step / (2 * root_correction) * mean * inverse * inverse / root
        by_square = torch.where(root > 0, by_square, 0.0)  # a gradient that was always zero: its mean is, too
        adj_mean = slots_after[0].addcmul_(after, -step * inverse)
        adj_square = slots_after[1].addcmul_(after, by_square)
        gradient = (adj_mean * (1 - beta1)).addcmul_(adj_square, 2 * (1 - beta2) * g)
        if decay:
            after = after * (1 - h["lr"] * decay) if self.decoupled else after.add(gradient, alpha=decay)
        return Adjoint(after, (adj_mean.mul_(beta1), adj_square.mul_(beta2)), gradient)


def _momentum_gradient_factor(h: HyperparametersOfStep, t: int) -> float:
    """What a new gradient counts in the momentum; torch's first step takes all of it."""
    return 1.0 - h["dampening"] if t else 1.0


def optimizer_update_of(optimizer: torch.optim.Optimizer) -> OptimizerUpdate:
    """The update of an optimizer of torch. Raises InputError for those without one."""
    for option in ("amsgrad", "maximize", "differentiable"):
        if any(group.get(option) for group in optimizer.param_groups):
            raise InputError(f"a training with {option}=True can't be unrolled; give its step as a pure function")
    kind = type(optimizer)
    if kind is torch.optim.SGD:
        return SGDUpdate()
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        groups = optimizer.param_groups
        return AdamUpdate(decoupled=kind is torch.optim.AdamW or bool(groups[0].get("decoupled_weight_decay")))
    raise InputError(
        f"trainings by SGD, Adam and AdamW can be unrolled; got {kind.__name__}. Give its step as a pure function: "
        "ub.influence.Training(step, start, batches, query_loss)"
    )
