"""Adversarial training: the losses of models that learn from adversarial examples of themselves.

Each defense is a function on any training loop, in place of the cross-entropy:

    defense = PGD(eps=0.3)
    for x, y in loader:
        loss = defense(box, x, y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()

The attack runs the model in eval, as every method of a box does: its gradients are those of the model that will be
used, and batch norm's statistics stay. The loss runs it in its present mode, so in train mode after
`model.train()`: that forward updates batch norm and draws dropout as any training step does, and nothing else of the
model, its .grad and the RNGs changes. With `Box(..., autocast=torch.bfloat16)` both run in mixed
precision.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..box import Box
from ..engine.optimize.constraints import BALL_BY_NORM, Linf, NormBall, ball_constraint, resolve_ball
from ..errors import InputError, OutputError
from ..parameters import Norm
from ..validation import check_float, check_int, valid_seed

DEFAULT_DIGITS_EPS = 0.3  # for images of digits, where no eps is given
TRADES_START_NOISE_STD = 1e-3  # standard deviation of the start of TRADES' attack: at x itself its gradient is zero


class Defense(Protocol):
    """A defense by training on adversarial examples: the examples that it makes of a batch, and the loss on them."""

    @property
    def eps(self) -> float: ...
    @property
    def norm(self) -> Norm: ...

    def attack(self, box: Box, x: Tensor, y: Tensor, progress: float = 1.0, *, seed: int | None = None) -> Tensor:
        """Adversarial examples (N, ...) of x, without a graph."""

    def loss(self, box: Box, x: Tensor, y: Tensor, adversarial: Tensor) -> Tensor:
        """The mean loss, a scalar with a graph into the model's parameters."""

    def __call__(self, box: Box, x: Tensor, y: Tensor, progress: float = 1.0, *, seed: int | None = None) -> Tensor:
        """The mean loss of a batch x (N, ...), y (N,), a scalar with a graph into the model's parameters.

        Args:
            box: The model.
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            y: Correct classes (N,).
            progress: Fraction of the training that is done, 0 to 1, with which eps grows.
            seed: Seed of the random start, such as the number of the step. None: made from the batch.

        Raises:
            InputError: for progress out of its range.
            OutputError: for a model whose outputs are neither logits nor log-probabilities.
        """


class _DefenseBase:
    """The call of a defense: attack, then loss."""

    def __call__(
        self: Defense, box: Box, x: Tensor, y: Tensor, progress: float = 1.0, *, seed: int | None = None
    ) -> Tensor:
        x, y = box.validate_inputs(x), box.class_labels(y, len(x))
        return self.loss(box, x, y, self.attack(box, x, y, progress, seed=seed))


class _AdversarialLossDefense(_DefenseBase):
    """Trains on the adversarial examples in place of the batch."""

    def loss(self, box: Box, x: Tensor, y: Tensor, adversarial: Tensor) -> Tensor:
        """The cross-entropy of the adversarial examples."""
        return F.cross_entropy(raw_output(box, adversarial), y)


@dataclass(frozen=True)
class Fast(_AdversarialLossDefense):
    """The cross-entropy of FGSM's examples from a random start: adversarial training in one step.

    The cheapest defense: one more forward and backward pass per step.

    Args:
        eps: Largest distance from x.
        norm: Norm in which the distance from x is measured.
        step: Length of a step, in the norm. None: 1.25 eps.
        ramp: Fraction of the training over which eps grows from 0.

    Example:
        >>> import unboxed as ub
        >>> from unboxed.training.defense import Fast
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("train").first(8)
        >>> Fast(eps=0.1)(box, x, y).shape
        torch.Size([])

    Source:
        Wong et al. 2020, arXiv:2001.03994, algorithm 3. The growth of eps is an addition.
    """

    eps: float
    norm: Norm = "linf"
    step: float | None = None
    ramp: float = 0.3

    def __post_init__(self) -> None:
        _check_settings(self.eps, self.norm, 1, self.step, self.ramp)

    def attack(self, box: Box, x: Tensor, y: Tensor, progress: float = 1.0, *, seed: int | None = None) -> Tensor:
        """x (N, ...) after one step up the cross-entropy."""
        ball = _ball_at_progress(self.eps, self.norm, self.ramp, progress)
        step = 1.25 * ball.eps if self.step is None else self.step
        return _run_pgd(
            box, box.validate_inputs(x), box.class_labels(y, len(x)), ball, 1, step, _random_start_in_ball, seed
        )


@dataclass(frozen=True)
class PGD(_AdversarialLossDefense):
    """The cross-entropy of PGD's examples: the standard adversarial training.

    More robust than `Fast`, and `steps` times as slow.

    Args:
        eps: Largest distance from x.
        steps: Number of iterations.
        norm: Norm in which the distance from x is measured.
        step: Length of a step, in the norm. None: 2.5 eps / steps.
        ramp: Fraction of the training over which eps grows from 0. With 0, a small model may learn nothing at all.

    Source:
        Madry et al. 2018, arXiv:1706.06083, section 2.1. The growth of eps is an addition.
    """

    eps: float
    steps: int = 7
    norm: Norm = "linf"
    step: float | None = None
    ramp: float = 0.3

    def __post_init__(self) -> None:
        _check_settings(self.eps, self.norm, self.steps, self.step, self.ramp)

    def attack(self, box: Box, x: Tensor, y: Tensor, progress: float = 1.0, *, seed: int | None = None) -> Tensor:
        """x (N, ...) after `steps` steps up the cross-entropy, from a random point of the ball."""
        ball = _ball_at_progress(self.eps, self.norm, self.ramp, progress)
        step = 2.5 * ball.eps / self.steps if self.step is None else self.step
        return _run_pgd(
            box,
            box.validate_inputs(x),
            box.class_labels(y, len(x)),
            ball,
            self.steps,
            step,
            _random_start_in_ball,
            seed,
        )


@dataclass(frozen=True)
class Trades(_DefenseBase):
    """TRADES: CE(x, y) + beta KL(p(x) || p(x')), correct on x and the same around it.

    x' maximizes that divergence, without y. Prefer it to `PGD` to trade clean for robust accuracy, by `beta`.

    Args:
        eps: Largest distance from x.
        steps: Number of iterations.
        beta: Weight of the divergence.
        norm: Norm in which the distance from x is measured.
        step: Length of a step, in the norm. None: 2.5 eps / steps.
        ramp: Fraction of the training over which eps grows from 0.

    Source:
        Zhang et al. 2019, arXiv:1901.08573, equation 5 and algorithm 1. The growth of eps is an addition.
    """

    eps: float
    steps: int = 7
    beta: float = 6.0
    norm: Norm = "linf"
    step: float | None = None
    ramp: float = 0.3

    def __post_init__(self) -> None:
        _check_settings(self.eps, self.norm, self.steps, self.step, self.ramp)
        check_float("beta", self.beta, above=0)

    def attack(self, box: Box, x: Tensor, y: Tensor, progress: float = 1.0, *, seed: int | None = None) -> Tensor:
        """x (N, ...) after `steps` steps up the divergence from the prediction for x. y is not used."""
        ball = _ball_at_progress(self.eps, self.norm, self.ramp, progress)
        step, x = 2.5 * ball.eps / self.steps if self.step is None else self.step, box.validate_inputs(x)
        with box.isolated(grad=False):
            clean_probs = raw_output(check_trainable_outputs(box), x).softmax(1)  # (N, K)
        return _run_pgd(box, x, clean_probs, ball, self.steps, step, _start_near_input, seed)

    def loss(self, box: Box, x: Tensor, y: Tensor, adversarial: Tensor) -> Tensor:
        """CE(x, y) + beta KL(p(x) || p(x')), with gradients through both parts."""
        # two forwards: batch norm must not mix them
        clean_output, adversarial_output = raw_output(box, x), raw_output(box, adversarial)
        divergence = F.kl_div(
            adversarial_output.log_softmax(1), clean_output.log_softmax(1), reduction="batchmean", log_target=True
        )
        return F.cross_entropy(clean_output, y) + self.beta * divergence


DEFENSES: dict[str, type[Fast | PGD | Trades]] = {"fast": Fast, "pgd": PGD, "trades": Trades}


def resolve_defense(
    name: str | Defense | None, eps: float | None = None, default: Defense | None = None
) -> Defense | None:
    """A defense by its name, within `eps`; `default` where there is no name. Raises InputError."""
    if isinstance(name, str):
        if name not in DEFENSES:
            raise InputError(f"defend must be one of {', '.join(DEFENSES)}; got {name!r}")
        if not isinstance(default, DEFENSES[name]):
            return DEFENSES[name](
                eps if eps is not None else default.eps if default is not None else DEFAULT_DIGITS_EPS
            )
    elif name is not None:
        if eps is not None:
            raise InputError(f"{name} has its own eps: leave out eps={eps:g}")
        return check_defense(name)
    if eps is None:
        return default
    if default is None:
        raise InputError(f"eps={eps:g} is of a defense: give one of {', '.join(DEFENSES)}")
    return replace(default, eps=eps)  # type: ignore[type-var]


def check_defense(defend: Any) -> Defense | None:
    """A defense, if it is one, or None. Raises InputError."""
    is_made = not isinstance(defend, type) and all(callable(getattr(defend, name, None)) for name in ("attack", "loss"))
    if is_made or defend is None:
        return defend  # type: ignore[no-any-return]
    meant = defend if isinstance(defend, type) else DEFENSES.get(str(defend).lower(), PGD)
    names = ", ".join(f"ub.training.{defense.__name__}" for defense in DEFENSES.values())
    raise InputError(
        f"defend must be a defense with its eps, such as ub.training.{meant.__name__}(eps=8/255); got {defend!r}. "
        f"There are {names}"
    )


def raw_output(box: Box, x: Tensor) -> Tensor:
    """Logits or log-probabilities (N, K) of the model in its present mode, in full precision."""
    return box.output_reader.select_tensor(box.raw_output(x)).to(box.dtype)


def check_trainable_outputs(box: Box) -> Box:
    """Raise OutputError for a model whose outputs are not logits or log-probabilities."""
    if box.outputs not in ("logits", "logprobs"):
        raise OutputError(
            f"training needs a model that gives logits or log-probabilities; its outputs are {box.outputs}"
        )
    box.require_class_scores("training")
    return box


StartFn = Callable[[Tensor, NormBall, int], Tensor]


def _run_pgd(
    box: Box, x: Tensor, target: Tensor, ball: NormBall, steps: int, step: float, start_fn: StartFn, seed: int | None
) -> Tensor:
    """Projected gradient ascent of the cross-entropy with `target`: classes (N,), or probabilities (N, K).

    With probabilities its gradient is that of the KL divergence. Success is not asked for, so there are no further
    forward passes, and no example is dropped.
    """
    seed = _seed_from_batch(x) if seed is None else valid_seed(seed)
    constraint = ball_constraint(ball, x, box.inputs.clip)
    adversarial = constraint.apply(start_fn(x, ball, seed))
    with box.isolated(seed=seed), _without_gradient_sync(check_trainable_outputs(box).model):
        for _ in range(steps):
            adversarial.requires_grad_()
            loss = F.cross_entropy(raw_output(box, adversarial), target, reduction="sum")
            (grad,) = torch.autograd.grad(loss, adversarial)
            adversarial = constraint.step(adversarial.detach(), grad, step)
    return adversarial


def _without_gradient_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Data parallelism must not wait for gradients of parameters: the attack asks for none."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


def _random_start_in_ball(x: Tensor, ball: NormBall, seed: int) -> Tensor:
    """A uniform point of the ball around each row. Batches are never split here, so one generator serves all rows."""
    if not isinstance(ball, Linf):
        return ball.sample(x, seed)
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + ball.eps * (2 * noise - 1)


def _start_near_input(x: Tensor, ball: NormBall, seed: int) -> Tensor:
    """A point very near each row."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return x + TRADES_START_NOISE_STD * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _seed_from_batch(x: Tensor) -> int:
    """A seed made from the values of a batch."""
    return hash(x.sum().item()) % 2**40  # a number's hash is the same in every process


def _ball_at_progress(eps: float, norm: str, ramp: float, progress: float) -> NormBall:
    """The ball at this point of the training."""
    if not 0 <= progress <= 1:
        raise InputError(f"progress is the fraction of the training that is done, 0 to 1; got {progress}")
    return BALL_BY_NORM[norm.lower()](eps * min(1.0, progress / ramp) if ramp else eps)


def _check_settings(eps: float, norm: str, steps: int, step: float | None, ramp: float) -> None:
    resolve_ball(eps, norm, None)  # raises InputError for eps and norm
    check_int("steps", steps, minimum=1)
    if step is not None:
        check_float("step", step, above=0)
    if not 0 <= ramp <= 1:
        raise InputError(f"ramp is a fraction of the training, 0 to 1; got {ramp}")
