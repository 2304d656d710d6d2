"""Carlini & Wagner's attack in L2: Adam on distance and margin together, with a search for their balance c.

Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", arXiv:1608.04644, section VI.A: minimize
|x' - x|^2 + c f(x'), where f = max(kappa - margin, 0) and x' = (tanh(w) + 1) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import MIN_DENOMINATOR, unbounded_ball, zero_grad_at_bounds
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EarlyStop,
    Eps,
    InputBatch,
    L2NormOnly,
    Labels,
    RoundingBits,
)
from ..settings import Above, AtLeast, Unit, check_settings
from .attack_state import AttackState
from .quantization import quantize_images
from .result import Adversarial

# Of half the range, beyond each of its ends: values at the ends would need an infinite w
TANH_RANGE_MARGIN_FRACTION = 0.01
N_ABORT_CHECKS_PER_DESCENT, MIN_STEPS_BETWEEN_ABORT_CHECKS = (
    10,
    10,
)  # abort_early: checks per descent; at least so many steps between two
MIN_RELATIVE_LOSS_DECREASE = 1e-3  # abort_early: relative decrease of the loss between two checks
C_GROWTH_FACTOR = 10  # factor of c until one is large enough
DEFAULT_LR_FRACTION_OF_CHANGE, MAX_DEFAULT_LR, FINAL_LR_FRACTION = (
    0.3,
    0.1,
    0.1,
)  # default lr: of the largest change needed; at most; at the end
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


@card(
    name="Carlini & Wagner L2",
    aliases=("cw",),
    source="Carlini & Wagner 2017, arXiv:1608.04644, section VI.A",
    shows="About the smallest change, in L2, that changes the model's prediction.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3, binary_search_steps=2),
    runs=lambda s: 2 + s["binary_search_steps"] * s["steps"],
    minimal=True,
    order=24,
    exempt={"partial results": "only adversarial images are kept, and the first steps may find none"},
)
def carlini_wagner(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: L2NormOnly = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    kappa: Annotated[
        float, AtLeast(0), Unit("logits"), "Margin by which the wrong class must exceed the correct one."
    ] = 0.0,
    binary_search_steps: Annotated[int, AtLeast(1), Unit("searches"), "Number of values of c that are tried."] = 5,
    steps: AttackSteps = 500,
    lr: Annotated[float | None, Above(0), "Learning rate of Adam."] = None,
    initial_c: Annotated[float | None, Above(0), "First value of c."] = None,
    early_stop: EarlyStop = True,
    bits: RoundingBits = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images in L2: Adam on distance and margin together, with a search for their balance.

    The classical strong attack in L2. Slow: `ddn` and `fab` find much the same images in a fraction of the time; use
    this to compare with published figures, or for a margin `kappa`.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`.
        eps: Largest distance from x. An image farther away is no success, and the original is returned for it. None:
            any distance will do.
        norm: Norm in which the distance from x is measured.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. It is to be above kappa. Not together with
            `target`.
        kappa: Margin by which the wrong class must exceed the correct one. Larger ones give images that fool other
            models more often. An image of a smaller margin is no success, also after rounding to `bits`, and neither
            is an original that is misclassified by less.
        binary_search_steps: Number of values of c that are tried. c weighs the margin against the distance; per
            example, it grows tenfold until one is large enough, and is bisected then.
        steps: Number of iterations. Of Adam, for each c.
        lr: Learning rate of Adam. None: by the distance that a linear model would need, falling along a cosine.
        initial_c: First value of c. None: that at which distance and margin would balance on a linear model.
        early_stop: Stop examples as soon as they are good enough. That is, when their loss no longer falls at this c.
            False: they use all steps.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Adversarial`: `images` like x, and `success`, `distance`, `queries` and `initially_misclassified`, each
        (N,). Where the attack fails, `images` has the original.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without classes or without a gradient.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.carlini_wagner(box, x, y, steps=30, binary_search_steps=2).success.tolist()
        [True, True, True, True]

    Source:
        Carlini & Wagner 2017, arXiv:1608.04644, section VI.A: minimize |x' - x|^2 + c max(kappa - margin, 0), with x' =
        (tanh(w) + 1) / 2, by Adam; c by a binary search as in the authors' code, and its abort_early, per example.
        Deviations: w is measured on a range wider by 1 %, and clipped, because values at the ends of the range would
        need an infinite w; the first c and the learning rate are by default those of a linear model, per example, and
        that learning rate falls along a cosine; each c starts from the nearest image so far (the warm start of section
        VI.C), and is large enough where it gives a nearer one.
    """
    check_settings(carlini_wagner, locals())
    ball = unbounded_ball(norm, ("l2",))
    state = AttackState(
        box, x, y, norm=ball, target=target, objective=objective, loss_name="margin", batch_size=batch_size
    )
    state.goal = state.goal.with_required_margin(kappa)
    space = TanhSpace(box, state.x)
    with state:
        for rows in state.split_rows_into_batches(state.find_rows_to_attack()):
            c, row_lr = initial_c_and_lr(state, rows, space, kappa)
            c = c if initial_c is None else torch.full_like(c, initial_c)
            row_lr, final_lr_factor = (row_lr, FINAL_LR_FRACTION) if lr is None else (torch.full_like(c, lr), 1.0)
            descent = CWDescent(state, space, rows, row_lr, final_lr_factor, steps, kappa, early_stop)
            binary_search_c(descent, c, binary_search_steps)
    quantize_images(state, bits)
    return state.to_result(math.inf if eps is None else eps)


def binary_search_c(descent: CWDescent, c: Tensor, n_searches: int) -> None:
    """Ten times c (n,) until it is large enough, then the middle of the interval, for each row."""
    c_lower, c_upper = torch.zeros_like(c), torch.full_like(c, math.inf)
    for _ in range(n_searches):
        is_large_enough = descent.run(c)
        c_lower, c_upper = torch.where(is_large_enough, c_lower, c), torch.where(is_large_enough, c, c_upper)
        c = torch.where(c_upper.isinf(), C_GROWTH_FACTOR * c, (c_lower + c_upper) / 2)


def initial_c_and_lr(state: AttackState, rows: Tensor, space: TanhSpace, kappa: float) -> tuple[Tensor, Tensor]:
    """The c (n,) at which distance and margin would balance on a linear model, and a learning rate (n,).

    There the change d is `scale` times the gradient g of the margin, and 2 d = c g. A step of Adam changes each value
    by about lr: a fraction of the largest change.
    """
    x = state.x[rows]
    evaluation = state.evaluate_with_grad(x, rows)
    grad = zero_grad_at_bounds(evaluation.grad, x, state.box.inputs.clip)  # (n, ...)
    has_grad = grad.flatten(1).any(1)
    scale = (kappa - evaluation.score) / grad.flatten(1).square().sum(1).clamp_min(MIN_DENOMINATOR)  # (n,)
    c = torch.where(has_grad, 2 * scale, 1).clamp(1e-6, 1e6)
    max_change = (broadcast_rows(scale, x) * grad.abs() / space.half_range).flatten(1).amax(1)
    max_lr = MAX_DEFAULT_LR * (1 + torch.where(space.is_bounded, 0, x.abs()).flatten(1).amax(1))
    return c, torch.where(has_grad, DEFAULT_LR_FRACTION_OF_CHANGE * max_change, max_lr).minimum(max_lr)


@dataclass(frozen=True, eq=False)
class CWDescent:
    """Adam on |x' - x|^2 + c max(kappa - margin, 0) in w."""

    state: AttackState
    space: TanhSpace
    rows: Tensor  # (n,)
    lr: Tensor  # (n,) learning rate
    final_lr_factor: float  # of the learning rate, to which it falls along a cosine
    steps: int
    kappa: float
    abort_early: bool

    def run(self, c: Tensor) -> Tensor:
        """One descent with this c (n,), from the nearest images so far; where it gave a nearer one (n,)."""
        has_nearer = torch.zeros_like(self.rows, dtype=torch.bool)
        w = self.space.to_w(self.state.images[self.rows])  # (n, ...)
        mean = square = torch.zeros_like(w)
        lowest_loss = checked_loss = torch.full_like(c, math.inf)
        i = torch.arange(len(c), device=c.device)  # the rows that are still optimized
        (beta1, beta2), check_every = (
            ADAM_BETAS,
            max(MIN_STEPS_BETWEEN_ABORT_CHECKS, self.steps // N_ABORT_CHECKS_PER_DESCENT),
        )
        for step in range(1, self.steps + 1):
            loss, grad, is_nearer = self.evaluate(w, self.rows[i], c[i])
            has_nearer[i] |= is_nearer
            lowest_loss = lowest_loss.minimum(loss)
            mean, square = beta1 * mean + (1 - beta1) * grad, beta2 * square + (1 - beta2) * grad.square()
            update = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + ADAM_EPS)
            w = self.space.clip_w(w - broadcast_rows(self.lr_at(step)[i], w) * update)
            if self.abort_early and step % check_every == 0:
                falls = lowest_loss < checked_loss * (1 - MIN_RELATIVE_LOSS_DECREASE)
                i, w, mean, square, lowest_loss = (v[falls] for v in (i, w, mean, square, lowest_loss))
                checked_loss = lowest_loss
            if not len(i):
                break
        return has_nearer

    def lr_at(self, step: int) -> Tensor:
        cosine = (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
        return self.lr * (self.final_lr_factor + (1 - self.final_lr_factor) * cosine)

    def evaluate(self, w: Tensor, rows: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n,), its gradient in w (n, ...), and which images are adversarial and nearer (n,)."""
        x, images = self.state.x[rows], self.state.box.inputs.clip(self.space.to_x(w))
        evaluation = self.state.evaluate_with_grad(images, rows)
        is_nearer = self.state.update_nearest(images, rows, evaluation.success_score > 0)
        margin_gap = (self.kappa - evaluation.score).clamp_min(0)
        loss = (images - x).flatten(1).square().sum(1) + c * margin_gap
        grad = 2 * (images - x) - broadcast_rows(c * (margin_gap > 0), images) * evaluation.grad
        return loss, grad * self.space.input_derivative_in_w(w), is_nearer


class TanhSpace:
    """Inputs as middle + half_range * tanh(w) where they have bounds, and as w itself where they have none."""

    def __init__(self, box: Box, x: Tensor) -> None:
        lower, upper = (box.inputs.clip(torch.full_like(x[:1], bound)) for bound in (-math.inf, math.inf))  # (1, ...)
        self.is_bounded = (upper - lower).isfinite()
        self.middle = torch.where(self.is_bounded, (lower + upper) / 2, 0)
        self.half_range = torch.where(
            self.is_bounded, (upper - lower) / 2 * (1 + TANH_RANGE_MARGIN_FRACTION), 1
        ).clamp_min(MIN_DENOMINATOR)
        self.max_w = torch.full_like(lower, math.inf).masked_fill(
            self.is_bounded, math.atanh(1 / (1 + TANH_RANGE_MARGIN_FRACTION))
        )

    def to_w(self, x: Tensor) -> Tensor:
        u = (x - self.middle) / self.half_range
        return self.clip_w(torch.where(self.is_bounded, u.clamp(-1, 1).atanh(), u))

    def clip_w(self, w: Tensor) -> Tensor:
        """The nearest w of a valid input."""
        return w.clamp(-self.max_w, self.max_w)

    def to_x(self, w: Tensor) -> Tensor:
        return self.middle + self.half_range * torch.where(self.is_bounded, w.tanh(), w)

    def input_derivative_in_w(self, w: Tensor) -> Tensor:
        return torch.where(self.is_bounded, self.half_range * (1 - w.tanh().square()), 1)
