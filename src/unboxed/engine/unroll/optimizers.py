"""The updates of torch's optimizers as pure functions, each with its adjoint written out.

The adjoint of an update is what autograd would give, in a third of its passes over memory: for 20 queries the state of
Adam is 60 times the model, and these passes are a large part of the cost.
"""

from __future__ import annotations

import math
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

    def ignores_zero_gradients(self, h: HyperparametersOfStep) -> bool:
        """Whether a gradient of zero changes nothing, as none does."""

    def __call__(
        self, p: Tensor, g: Tensor, slots: OptimizerSlots, h: HyperparametersOfStep, t: int
    ) -> tuple[Tensor, OptimizerSlots]:
        """The parameter and the slots after step t (from 0) with gradient g."""

    def adjoint(
        self,
        p: Tensor,
        g: Tensor,
        slots: OptimizerSlots,
        h: HyperparametersOfStep,
        t: int,
        after: Tensor,
        slots_after: OptimizerSlots,
    ) -> Adjoint:
        """The adjoint before step t of the adjoint `after` it, which may be overwritten."""


class SGDUpdate:
    """`torch.optim.SGD`, with momentum, Nesterov's or not."""

    slot_names: tuple[str, ...] = ("momentum_buffer",)

    def ignores_zero_gradients(self, h: HyperparametersOfStep) -> bool:
        return not h["momentum"] and not h["weight_decay"]

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
        slots: OptimizerSlots,
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

    def ignores_zero_gradients(self, h: HyperparametersOfStep) -> bool:
        return False

    def __call__(
        self, p: Tensor, g: Tensor, slots: OptimizerSlots, h: HyperparametersOfStep, t: int
    ) -> tuple[Tensor, OptimizerSlots]:
        g, (mean, square) = self._averages(p, g, slots, h)
        shrunk = p * (1 - h["lr"] * h["weight_decay"]) if self.decoupled and h["weight_decay"] else p
        tiny = torch.finfo(square.dtype).tiny  # the root of zero has no derivative
        correction1, correction2 = _bias_corrections(h, t)
        denominator = square.clamp_min(tiny).sqrt() / correction2 + h["eps"]
        return torch.addcdiv(shrunk, mean, denominator, value=-h["lr"] / correction1), (mean, square)

    def _averages(
        self, p: Tensor, g: Tensor, slots: OptimizerSlots, h: HyperparametersOfStep
    ) -> tuple[Tensor, OptimizerSlots]:
        """The gradient with its decay, and the averages of gradients and of their squares."""
        (beta1, beta2), decay = h["betas"], h["weight_decay"]
        g = g if self.decoupled or not decay else g + decay * p
        return g, (torch.lerp(slots[0], g, 1 - beta1), torch.addcmul(slots[1] * beta2, g, g, value=1 - beta2))

    def adjoint(
        self,
        p: Tensor,
        g: Tensor,
        slots: OptimizerSlots,
        h: HyperparametersOfStep,
        t: int,
        after: Tensor,
        slots_after: OptimizerSlots,
    ) -> Adjoint:
        (beta1, beta2), decay = h["betas"], h["weight_decay"]
        g, (mean, square) = self._averages(p, g, slots, h)
        by_mean, by_square = self._derivatives(mean, square, h, t)
        adj_mean = slots_after[0].addcmul_(after, by_mean)
        adj_square = slots_after[1].addcmul_(after, by_square)
        gradient = torch.mul(adj_mean, 1 - beta1).addcmul_(adj_square, g, value=2 * (1 - beta2))
        if decay:
            after = after * (1 - h["lr"] * decay) if self.decoupled else after.add(gradient, alpha=decay)
        return Adjoint(after, (adj_mean.mul_(beta1), adj_square.mul_(beta2)), gradient)

    def _derivatives(self, mean: Tensor, square: Tensor, h: HyperparametersOfStep, t: int) -> tuple[Tensor, Tensor]:
        """Of the new parameter, with respect to the averages of gradients and of their squares."""
        correction1, correction2 = _bias_corrections(h, t)
        tiny = torch.finfo(square.dtype).tiny
        root = square.clamp_min(tiny).sqrt_()
        inverse = torch.add(root, h["eps"] * correction2).reciprocal_()
        by_mean = inverse * (-h["lr"] * correction2 / correction1)
        by_square = inverse.mul_(mean).div_(root).mul_(by_mean).mul_(-0.5)
        return by_mean, by_square.masked_fill_(square < tiny, 0)  # where the root is held constant


def _bias_corrections(h: HyperparametersOfStep, t: int) -> tuple[float, float]:
    """Of Adam's averages of gradients, and of the root of those of their squares."""
    beta1, beta2 = h["betas"]
    return 1 - beta1 ** (t + 1), math.sqrt(1 - beta2 ** (t + 1))


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
