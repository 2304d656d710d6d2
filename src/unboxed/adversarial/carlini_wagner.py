"""Carlini & Wagner's attack in L2: Adam on distance and margin together, with a search for their balance c.

Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", arXiv:1608.04644, section VI.A: minimize
|x' - x|^2 + c f(x'), where f = max(kappa - margin, 0) and x' = (tanh(w) + 1) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, unbounded_ball
from ..engine.rows import broadcast_rows
from ..parameters import AttackObjective, AttackTarget, BatchSize, Bits, EarlyStop, Eps, Inputs, Labels, OnlyL2, Steps
from ..settings import Above, AtLeast, Unit, check_settings
from .attack_state import AttackState
from .quantization import quantize_images
from .result import Adversarial

RANGE_SLACK = 0.01  # of half the range, beyond each of its ends
CHECKS, MIN_CHECK_STEPS = 10, 10  # times in a descent that rows are dropped; no more often than every so many steps
LR_FACTOR, MAX_LR, FINAL_LR_FACTOR = 0.3, 0.1, 0.1  # default lr: share of the largest change, at most; at the end
MIN_LOSS_GAIN, MIN_DISTANCE_GAIN = 1e-3, 0.01  # relative gains below which a row is dropped: per check, per c
C_GROWTH = 10  # factor of a c that was too small, until one is large enough
ADAM_BETAS = 0.9, 0.999


@card(
    name="Carlini & Wagner L2",
    source="Carlini & Wagner 2017, arXiv:1608.04644, section VI.A",
    shows="About the smallest change, in L2, that alters the model's answer.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3, binary_search_steps=2),
    runs=lambda s: 2 + s["binary_search_steps"] * s["steps"],
    minimal=True,
    order=24,
    exempt={"partial results": "only adversarial images are kept, and the first steps may find none"},
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
        lr: Learning rate of Adam. None: by the distance that a linear model would need, falling along a
            cosine.
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
        (tanh(w) + 1) / 2. Deviations: w is measured on a range wider by 1 %, and clipped, because values at the ends of
        the range would need an infinite w; the first c and the default lr are those of a linear model, per example, and
        that lr falls along a cosine; each example starts the next c from its nearest image, and is dropped where it
        gets no nearer.
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

    def lr_factor(self, step: int) -> float:
        """Of the learning rate at a step: the one given is constant, the default falls along a cosine."""
        fraction = 0.0 if self.lr is not None else step / self.steps
        return FINAL_LR_FACTOR + (1 - FINAL_LR_FACTOR) * (1 + math.cos(math.pi * fraction)) / 2


# -- the search for c --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CWState:
    """The rows that are still searched."""

    rows: Tensor  # (n,)
    start_w: Tensor  # (n, ...) start of the next descent
    c: Tensor  # (n,) the next to try
    c_lower: Tensor  # (n,) the largest that was too small
    c_upper: Tensor  # (n,) the smallest that was large enough
    lr: Tensor  # (n,)

    def select_rows(self, index: Tensor) -> CWState:
        return CWState(*(getattr(self, f.name)[index] for f in fields(self)))

    def update_c(self, w: Tensor, has_success: Tensor) -> CWState:
        """Ten times c until one is large enough, then the middle of the interval."""
        c_lower = torch.where(has_success, self.c_lower, self.c)
        c_upper = torch.where(has_success, self.c, self.c_upper)
        c = torch.where(c_upper.isinf(), C_GROWTH * self.c, (c_lower + c_upper) / 2)
        return replace(self, start_w=w, c=c, c_lower=c_lower, c_upper=c_upper)


def _search_c(state: AttackState, rows: Tensor, config: CWConfig, n_searches: int) -> None:
    if not len(rows):
        return
    space = TanhSpace.from_box(state.box, state.x)
    search = _init_search(state, rows, space, config)
    for _ in range(n_searches):
        old_distance = state.distance[search.rows]
        w, has_success = _descend(state, search, space, config)
        is_adversarial, new_distance = state.success[search.rows], state.distance[search.rows]
        nearest_w = space.to_w(state.images[search.rows])
        search = search.update_c(torch.where(broadcast_rows(is_adversarial, w), nearest_w, w), has_success)
        if config.early_stop:
            search = search.select_rows(~is_adversarial | (new_distance < old_distance * (1 - MIN_DISTANCE_GAIN)))
        if not len(search.rows):
            return


def _init_search(state: AttackState, rows: Tensor, space: TanhSpace, config: CWConfig) -> CWState:
    """The first c, at which distance and margin would balance on a linear model, and the learning rate.

    At the boundary the gradient of the distance, 2 |d|, is c times that of the margin. And a step of Adam changes each
    value by about lr: a share of the largest change that a linear model would need.
    """
    x = state.x[rows]
    evaluation = state.evaluate_with_grad(x, rows)
    free_grad = (evaluation.grad * (state.box.inputs.clip(x + 1e-3 * evaluation.grad.sign()) != x)).flatten(1)  # (n, D)
    grad_norm_squared, has_grad = free_grad.square().sum(1), free_grad.any(1)
    scale = (config.kappa - evaluation.score) / grad_norm_squared.clamp_min(TINY)  # (n,) d = scale * gradient
    c = torch.where(has_grad, 2 * scale, 1).clamp(1e-6, 1e6)
    max_change = (free_grad.abs() * scale[:, None] / space.dx_dw.flatten(1)).amax(1)
    max_lr = MAX_LR * (1 + torch.where(space.is_bounded, 0, x.abs()).flatten(1).amax(1))  # for a range of one
    lr = torch.where(has_grad, LR_FACTOR * max_change, max_lr).minimum(max_lr)
    c = c if config.initial_c is None else torch.full_like(c, config.initial_c)
    lr = lr if config.lr is None else torch.full_like(lr, config.lr)
    return CWState(rows, space.to_w(x), c, torch.zeros_like(c), torch.full_like(c, math.inf), lr)


def _descend(state: AttackState, search: CWState, space: TanhSpace, config: CWConfig) -> tuple[Tensor, Tensor]:
    """Minimize |x' - x|^2 + c f(x') by Adam with this c: the best w (n, ...), and whether it gave a nearer image (n,).

    Like the paper's "abort early", rows whose loss no longer falls are dropped at every few steps.
    """
    best_w, has_success = search.start_w.clone(), torch.zeros_like(search.rows, dtype=torch.bool)
    lowest_loss = checked_loss = torch.full_like(search.c, math.inf)
    i = torch.arange(len(search.rows), device=search.rows.device)  # the rows that are not dropped
    w, mean, square = search.start_w, torch.zeros_like(best_w), torch.zeros_like(best_w)
    (beta1, beta2), check_every = ADAM_BETAS, max(MIN_CHECK_STEPS, config.steps // CHECKS)
    for step in range(1, config.steps + 1):
        loss, grad, is_nearer = _evaluate_loss(state, search.select_rows(i), w, space, config.kappa)
        has_success[i[is_nearer]] = True
        is_lower = loss < lowest_loss[i]
        best_w[i[is_lower]], lowest_loss = w[is_lower], lowest_loss.index_copy(0, i, loss.minimum(lowest_loss[i]))
        mean, square = beta1 * mean + (1 - beta1) * grad, beta2 * square + (1 - beta2) * grad.square()
        direction = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + 1e-8)
        w = space.clip_w(w - broadcast_rows(search.lr[i] * config.lr_factor(step - 1), w) * direction)
        if config.early_stop and step % check_every == 0:
            falls = lowest_loss[i] < checked_loss[i] * (1 - MIN_LOSS_GAIN)
            i, w, mean, square, checked_loss = i[falls], w[falls], mean[falls], square[falls], lowest_loss
        if not len(i):
            break
    return best_w, has_success


def _evaluate_loss(
    state: AttackState, search: CWState, w: Tensor, space: TanhSpace, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (n,), its gradient in w (n, ...), and where an image is adversarial and nearer (n,), which is kept."""
    x, (z, dz) = state.x[search.rows], space.to_x(w)
    z = state.box.inputs.clip(z)
    evaluation = state.evaluate_with_grad(z, search.rows)
    is_adversarial = (evaluation.success_score > 0) & (evaluation.score >= kappa)
    is_nearer = state.keep_nearer(z, search.rows, is_adversarial)
    margin_gap = (kappa - evaluation.score).clamp_min(0)
    grad = 2 * (z - x) - broadcast_rows(search.c * (margin_gap > 0), z) * evaluation.grad
    return (z - x).flatten(1).square().sum(1) + search.c * margin_gap, grad * dz, is_nearer


# -- the variable ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TanhSpace:
    """Valid inputs as middle + half_range * tanh(w) where they have bounds; w itself where they have none."""

    middle: Tensor  # (1, ...)
    half_range: Tensor  # (1, ...) with RANGE_SLACK
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
