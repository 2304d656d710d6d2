"""Carlini & Wagner's attack in L2: Adam on distance and margin together, over a search for the price of the margin.

Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", arXiv:1608.04644, section VI.A: minimize
|x' - x|^2 + c f(x'), where f = max(kappa - margin, 0) and x' = (tanh(w) + 1) / 2.

Three things are done otherwise, for the same images at less cost. An image at the very edge of the range would need an
infinite w, and near it nothing moves: w is measured on a range that is wider by `SLACK`, and what lies beyond the edge
is cut. The first c is that at which, were the model linear, distance and margin would balance at the boundary. And each
row has its own search: it starts the next c from the nearest image that it has, and leaves when it gets no nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, broadcast_rows, unbounded_ball
from ..parameters import AttackObjective, AttackTarget, BatchSize, Bits, EarlyStop, Eps, Inputs, Labels, OnlyL2, Steps
from ..settings import Above, AtLeast, Unit, check_settings
from .attack_state import AttackState
from .quantization import quantize_images
from .result import Adversarial

RANGE_SLACK = 0.01  # of half the range, beyond each of its ends
PATIENCE_DIVISOR = 25  # after this part of the steps without gain, a row goes on in smaller ones, or stops
INITIAL_LR_FACTOR, MAX_LR_FACTOR, LR_DECAY, TOTAL_LR_DECAY = (
    0.3,
    0.1,
    3.0,
    10.0,
)  # of lr: the first; by how much finer then, and at last
MIN_LOSS_GAIN, MIN_DISTANCE_GAIN = (
    1e-3,
    0.01,
)  # what counts as gain, of the loss in a step; of the distance in a search step
C_GROWTH = 10  # of a c that was too small, while none is known that is not
ADAM_BETAS = 0.9, 0.999


@card(
    name="Carlini & Wagner L2",
    source="Carlini & Wagner 2017, arXiv:1608.04644, section VI.A",
    shows="About the smallest change, in L2, that makes the model answer otherwise.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3, binary_search_steps=2),
    runs=lambda s: 2 + s["binary_search_steps"] * s["steps"],
    minimal=True,
    order=24,
    exempt={"partial results": "only an image that fools is kept, and the first steps may lead to none"},
)
def carlini_wagner(
    box: Box,
    x: Inputs,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: OnlyL2 = "l2",
    target: AttackTarget = None,
    objective: AttackObjective = None,
    kappa: Annotated[float, AtLeast(0), Unit("logits"), "Margin by which the wrong class must win."] = 0.0,
    binary_search_steps: Annotated[int, AtLeast(1), Unit("searches"), "Number of values of c that are tried."] = 5,
    steps: Steps = 500,
    lr: Annotated[float | None, Above(0), "Learning rate of Adam."] = None,
    initial_c: Annotated[float | None, Above(0), "First value of c."] = None,
    early_stop: EarlyStop = True,
    bits: Bits = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images in L2: Adam on distance and margin together, with a search for their balance.

    The classical strong attack in L2. Slow: `ddn` and `fab` find much the same images in a fraction of the time; use
    this to compare with published figures, or for a margin `kappa`.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. Needed unless `target` or `objective` is given.
        eps: Largest distance from x. An image farther away is no success, and the original is returned for it. None:
            any distance will do.
        norm: Norm in which the distance from x is measured.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. It is to be above kappa. Not together with
            `target`.
        kappa: Margin by which the wrong class must win. Larger ones give images that fool other models more often.
        binary_search_steps: Number of values of c that are tried. c weighs the margin against the distance.
        steps: Number of iterations. Of Adam, for each c.
        lr: Learning rate of Adam. None: by the distance that a linear model would need, decreased where the loss
            stalls.
        initial_c: First value of c. None: that at which distance and margin would balance on a linear model.
        early_stop: Stop examples as soon as they are good enough. That is, when they get no nearer. False: they use all
            steps.
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
        (tanh(w) + 1) / 2. @DEV@
    """
    check_settings(carlini_wagner, locals())
    state = AttackState(
        box,
        x,
        y,
        norm=unbounded_ball(norm, ("l2",)),
        target=target,
        objective=objective,
        loss_name="margin",
        batch_size=batch_size,
    )
    config = CWConfig(steps, lr, kappa, initial_c, early_stop)
    with state:
        _search_c(state, state.evaluate_originals(), config, binary_search_steps)
    quantize_images(state, bits)
    return state.to_result(math.inf if eps is None else eps)


@dataclass(frozen=True)
class CWConfig:
    steps: int
    lr: float | None
    kappa: float
    initial_c: float | None
    early_stop: bool

    @property
    def patience(self) -> int:
        """Steps without gain that tire a row."""
        return max(10, self.steps // PATIENCE_DIVISOR)  # as many as Adam remembers, at least


# -- the search for c --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CWState:
    """Where the rows stand that are still in it."""

    rows: Tensor  # (n,)
    start_w: Tensor  # (n, ...) where the next descent starts
    c: Tensor  # (n,) the next to try
    c_lower: Tensor  # (n,) the largest that was too small
    c_upper: Tensor  # (n,) the smallest that was not
    lr: Tensor  # (n,) that a descent starts with
    final_lr: Tensor  # (n,) and the one that it ends with

    def select_rows(self, index: Tensor) -> CWState:
        return CWState(*(getattr(self, f.name)[index] for f in fields(self)))

    def update_c(self, w: Tensor, has_success: Tensor) -> CWState:
        """With the bounds that the last c gave, and the next one."""
        c_lower, c_upper = (
            torch.where(has_success, self.c_lower, self.c),
            torch.where(has_success, self.c, self.c_upper),
        )
        c = torch.where(c_upper.isinf(), C_GROWTH * self.c, (c_lower + c_upper) / 2)
        return replace(self, start_w=w, c=c, c_lower=c_lower, c_upper=c_upper)


def _search_c(state: AttackState, rows: Tensor, config: CWConfig, n_rounds: int) -> None:
    if not len(rows):
        return
    space = TanhSpace.from_box(state.box, state.x)
    search = _init_search(state, rows, space, config)
    for _ in range(n_rounds):
        old_distance = state.distance[search.rows]
        w, has_success = _descend(state, search, space, config)
        is_adversarial, new_distance = state.success[search.rows], state.distance[search.rows]
        best_w = space.to_w(state.images[search.rows])
        search = search.update_c(torch.where(broadcast_rows(is_adversarial, w), best_w, w), has_success)
        if config.early_stop:
            search = search.select_rows(~is_adversarial | (new_distance < old_distance * (1 - MIN_DISTANCE_GAIN)))
        if not len(search.rows):
            return


def _init_search(state: AttackState, rows: Tensor, space: TanhSpace, config: CWConfig) -> CWState:
    """c and lr of each row as they would do for a linear model.

    At the boundary the pull to the original, 2 |d|, is c times the slope of the margin. And a step of Adam's changes
    each value by about lr: that is a part of how far the value that moves most has to go.
    """
    x = state.x[rows]
    evaluation = state.evaluate_with_grad(x, rows)
    free_grad = (evaluation.grad * (state.box.inputs.clip(x + 1e-3 * evaluation.grad.sign()) != x)).flatten(1)  # (n, D)
    margin_gap, grad_norm_squared = config.kappa - evaluation.score, free_grad.square().sum(1)
    c = torch.where(grad_norm_squared > 0, 2 * margin_gap / grad_norm_squared.clamp_min(TINY), 1).clamp(1e-6, 1e6)
    max_change = (
        free_grad.abs() * (margin_gap / grad_norm_squared.clamp_min(TINY))[:, None] / space.dx_dw.flatten(1)
    ).amax(1)
    max_lr = MAX_LR_FACTOR * (
        1 + torch.where(space.is_bounded, 0, x.abs()).flatten(1).amax(1)
    )  # the range is one wide, or unknown
    lr = torch.where(grad_norm_squared > 0, INITIAL_LR_FACTOR * max_change, max_lr).minimum(max_lr)
    final_lr = lr / TOTAL_LR_DECAY
    if config.lr is not None:
        lr = final_lr = torch.full_like(lr, config.lr)
    c = c if config.initial_c is None else torch.full_like(c, config.initial_c)
    return CWState(rows, space.to_w(x), c, torch.zeros_like(c), torch.full_like(c, math.inf), lr, final_lr)


# -- the variable ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TanhSpace:
    """Valid inputs as middle + half * tanh(w), where they have bounds; as w itself where they have none."""

    middle: Tensor  # (1, ...)
    half_range: Tensor  # (1, ...) of the range, and a little more
    is_bounded: Tensor  # (1, ...) bool

    @classmethod
    def from_box(cls, box: Box, x: Tensor) -> TanhSpace:
        lower, upper = (box.inputs.clip(torch.full_like(x[:1], bound)) for bound in (-math.inf, math.inf))
        is_bounded, zeros = (upper - lower).isfinite(), torch.zeros_like(lower)
        middle = torch.where(is_bounded, (lower + upper) / 2, zeros)
        half_range = torch.where(is_bounded, (upper - lower) / 2 * (1 + RANGE_SLACK), zeros).clamp_min(TINY)
        return cls(middle, half_range, is_bounded)

    @property
    def dx_dw(self) -> Tensor:
        """dx/dw in the middle of the range."""
        return torch.where(self.is_bounded, self.half_range, 1)

    def to_w(self, x: Tensor) -> Tensor:
        max_abs = 1 / (1 + RANGE_SLACK)
        return torch.where(self.is_bounded, ((x - self.middle) / self.half_range).clamp(-max_abs, max_abs).atanh(), x)

    def clip_w(self, w: Tensor) -> Tensor:
        """The nearest w of a valid input."""
        max_abs = math.atanh(1 / (1 + RANGE_SLACK))
        return torch.where(self.is_bounded, w.clamp(-max_abs, max_abs), w)

    def to_x(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """x and dx/dw."""
        tanh_w = w.tanh()
        dx = torch.where(self.is_bounded, self.half_range * (1 - tanh_w.square()), 1)
        return torch.where(self.is_bounded, self.middle + self.half_range * tanh_w, w), dx


# -- one descent -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AdamState:
    """The rows that are still moving."""

    search_index: Tensor  # (n,) their places in the search
    rows: Tensor  # (n,)
    c: Tensor  # (n,)
    final_lr: Tensor  # (n,) step at which a row stops
    lr: Tensor  # (n,)
    n_steps: Tensor  # (n,) steps at this lr
    steps_without_gain: Tensor  # (n,) of them, since the loss fell below `mark`
    reference_loss: Tensor  # (n,)
    lowest_loss: Tensor  # (n,) loss, that of `best`
    best_w: Tensor  # (n, ...)
    w: Tensor  # (n, ...)
    grad_mean: Tensor  # (n, ...) of the gradients, as Adam keeps it
    grad_square: Tensor  # (n, ...)

    @classmethod
    def from_search(cls, search: CWState) -> AdamState:
        search_index, zeros, zero_moments = (
            torch.arange(len(search.rows), device=search.rows.device),
            search.c * 0,
            search.start_w * 0,
        )
        infinite, lr = zeros + math.inf, search.lr
        return cls(
            search_index,
            search.rows,
            search.c,
            search.final_lr,
            lr,
            zeros,
            zeros,
            infinite,
            infinite,
            search.start_w,
            search.start_w,
            zero_moments,
            zero_moments,
        )

    def select_rows(self, index: Tensor) -> AdamState:
        return AdamState(*(getattr(self, f.name)[index] for f in fields(self)))

    def record_loss(self, loss: Tensor) -> AdamState:
        is_lower, has_gain = loss < self.lowest_loss, loss < self.reference_loss * (1 - MIN_LOSS_GAIN)
        return replace(
            self,
            lowest_loss=torch.where(is_lower, loss, self.lowest_loss),
            best_w=torch.where(broadcast_rows(is_lower, self.w), self.w, self.best_w),
            reference_loss=torch.where(has_gain, loss, self.reference_loss),
            steps_without_gain=torch.where(has_gain, 0, self.steps_without_gain + 1),
        )

    def adam_step(self, grad: Tensor) -> AdamState:
        """By Adam; not yet made valid."""
        beta1, beta2 = ADAM_BETAS
        grad_mean, grad_square = (
            beta1 * self.grad_mean + (1 - beta1) * grad,
            beta2 * self.grad_square + (1 - beta2) * grad.square(),
        )
        n_steps = self.n_steps + 1
        denominator = (grad_square / broadcast_rows(1 - beta2**n_steps, grad)).sqrt() + 1e-8
        w = self.w - grad_mean * broadcast_rows(self.lr / (1 - beta1**n_steps), grad) / denominator
        return replace(self, w=w, grad_mean=grad_mean, grad_square=grad_square, n_steps=n_steps)

    def decay_lr(self, is_stalled: Tensor) -> AdamState:
        """Those that gain no more go back to their best, and on from there in smaller steps."""
        stalled_mask = broadcast_rows(is_stalled, self.w)
        reset_counts = {k: torch.where(is_stalled, 0, getattr(self, k)) for k in ("n_steps", "steps_without_gain")}
        reset_moments = {k: torch.where(stalled_mask, 0, getattr(self, k)) for k in ("grad_mean", "grad_square")}
        w = torch.where(stalled_mask, self.best_w, self.w)
        return replace(
            self, w=w, lr=torch.where(is_stalled, self.lr / LR_DECAY, self.lr), **reset_counts, **reset_moments
        )


def _descend(state: AttackState, search: CWState, space: TanhSpace, config: CWConfig) -> tuple[Tensor, Tensor]:
    """Minimize |x' - x|^2 + c f(x') with this c: the best w of each row, and whether it led to a nearer image."""
    final_w, has_success = search.start_w.clone(), torch.zeros_like(search.rows, dtype=torch.bool)
    descent = AdamState.from_search(search)
    for _ in range(config.steps):
        loss, grad, is_nearer = _evaluate_loss(state, descent, space, config.kappa)
        has_success[descent.search_index[is_nearer]] = True
        descent = descent.record_loss(loss).adam_step(grad)
        descent = replace(descent, w=space.clip_w(descent.w))
        final_w[descent.search_index] = descent.best_w
        if (is_stalled := descent.steps_without_gain >= config.patience).any():
            descent = descent.decay_lr(is_stalled) if config.lr is None else descent
            is_finished = descent.lr < descent.final_lr if config.lr is None else is_stalled
            descent = descent if not config.early_stop else descent.select_rows(~is_finished)
        if not len(descent.rows):
            break
    return final_w, has_success


def _evaluate_loss(
    state: AttackState, descent: AdamState, space: TanhSpace, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (n,), its gradient in w (n, ...), and where a nearer image fools (n,), which is kept."""
    x, (z, dz) = state.x[descent.rows], space.to_x(descent.w)
    z = state.box.inputs.clip(z)
    evaluation = state.evaluate_with_grad(z, descent.rows)
    is_adversarial = (evaluation.success_score > 0) & (evaluation.score >= kappa)
    is_nearer = state.keep_nearer(z, descent.rows, is_adversarial)
    margin_gap = (kappa - evaluation.score).clamp_min(0)
    grad = 2 * (z - x) - broadcast_rows(descent.c * (margin_gap > 0), z) * evaluation.grad
    return (z - x).flatten(1).square().sum(1) + descent.c * margin_gap, grad * dz, is_nearer
