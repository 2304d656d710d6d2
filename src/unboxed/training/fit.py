"""The plain training loop, with or without attacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import adversarial
from ..box import Box
from ..engine.balls import ball_of
from ..errors import DataError, InputError, OutputError
from ..inputs import Inputs
from ..net import quiet as rng

Batches = DataLoader[Any]  # of (x, y)
Watch = Callable[[nn.Module, Tensor, Tensor, int], object]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attack:
    """PGD on every training batch (Madry et al. 2018): `step` is 2.5 eps / steps by default.

    eps grows from 0 over the first `ramp` of the training; from the start, a small net learns nothing at all.
    """

    eps: float
    steps: int = 7
    norm: str = "linf"
    step: float | None = None
    ramp: float = 0.3

    def __post_init__(self) -> None:
        ball_of(self.eps, self.norm, None)  # which refuses what is no ball
        if not 0 <= self.ramp <= 1:
            raise InputError(f"ramp is a share of the training, 0 to 1; got {self.ramp}")

    def __call__(self, box: Box, x: Tensor, y: Tensor, step: int, of: int) -> Tensor:
        """Images (N, ...) for step number `step` of a training that takes `of`."""
        eps = self.eps * min(1.0, (step + 1) / max(1.0, self.ramp * of))
        found = adversarial.pgd(
            box, x, y, eps=eps, norm=self.norm, steps=self.steps, step=self.step, keep_going=True, seed=step
        )
        if found.interrupted:  # an attack keeps Ctrl-C to itself
            raise KeyboardInterrupt
        return found.images


@dataclass(frozen=True)
class History:
    loss: tuple[float, ...]  # (epochs,) mean training loss
    accuracy: tuple[float, ...]  # (epochs,) on the test data after each epoch; empty without test data
    steps: int  # batches that the net learned from
    seconds: float  # spent on training, looks at the test data left out
    interrupted: bool = False


def fit(
    net: nn.Module,
    inputs: Inputs,
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    augment: Augment | None = None,
    attack: Attack | None = None,
    quiet: bool = False,
    watch: Watch | None = None,
) -> History:
    """Train a net that gives logits (N, K) on a Dataset of (image, class), with AdamW and a one-cycle learning rate.

    The net is changed in place and left in eval mode, without gradients; the global RNGs are left alone. `augment(x,
    generator)` changes each batch (see `engine.transforms`). `watch(net, z, y, step)` is called after each batch, with
    the net's own encoded inputs. On Ctrl-C the net stays as it is and the history says `interrupted`.
    Raises InputError, DataError and OutputError.
    """
    _check(epochs, batch_size, lr)
    box, batches = Box(net, inputs), _batches(train, batch_size, seed)
    training = _Training(box, epochs * len(batches), lr, weight_decay, seed, augment, attack, watch)
    with rng.seeded(seed, box.device), rng.gradients_on(True), _bar(training.of, quiet) as bar:
        try:
            for _ in range(epochs):
                training.epoch(batches, bar)
                if test is not None:
                    training.look(test, bar)
        except KeyboardInterrupt:
            training.interrupted = True
        finally:
            training.close()
    return training.history()


def accuracy(box: Box, dataset: Dataset[Any]) -> float:
    """The share of a Dataset of (image, class) that the box names right. Raises InputError and DataError."""
    right = seen = 0
    for x, y in _batches(dataset, 1000):
        right += int((box.predict(x) == box.labels(y, len(x))).sum())
        seen += len(x)
    return right / seen


class _Training:
    """One training under way."""

    def __init__(
        self,
        box: Box,
        of: int,
        lr: float,
        weight_decay: float,
        seed: int,
        augment: Augment | None,
        attack: Attack | None,
        watch: Watch | None,
    ) -> None:
        self.box, self.of = box, of
        self.augment, self.attack, self.watch = augment, attack, watch
        self.optimizer = AdamW(_learnable(box), lr, weight_decay=weight_decay)
        self.schedule = OneCycleLR(self.optimizer, lr, total_steps=of)
        self.generator = torch.Generator(box.device).manual_seed(seed)
        self.loss, self.accuracy = list[float](), list[float]()
        self.steps, self.seconds, self.interrupted = 0, 0.0, False

    def epoch(self, batches: Batches, bar: tqdm[Any]) -> None:
        self.box.net.train()
        started, losses = time.perf_counter(), list[Tensor]()
        try:
            for x, y in batches:
                losses.append(self._step(self.box.accept(x), self.box.labels(y, len(x))))
                bar.update()
        finally:
            self.seconds += time.perf_counter() - started
        self._note(torch.stack(losses).mean().item())

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from one batch (N, ...), (N,); the loss, left on the device."""
        box = self.box
        if self.augment is not None:
            x = box.inputs.clip(self.augment(x, self.generator))
        if self.attack is not None:
            x = self.attack(box, x, y, self.steps, self.of)
        z = box.inputs.encode(x).to(box.net_dtype)
        loss = F.cross_entropy(_logits(box.net(z.clone())), y)  # a net may write over its input
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        if self.watch is not None:
            self.watch(box.net, z, y, self.steps)
        return loss.detach()

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(f"the loss became {loss} in epoch {len(self.loss) + 1}: train with a smaller lr")
        self.loss.append(loss)

    def look(self, test: Dataset[Any], bar: tqdm[Any]) -> None:
        self.accuracy.append(accuracy(self.box, test))
        bar.set_postfix_str(f"loss {self.loss[-1]:.3f}, test accuracy {self.accuracy[-1]:.2%}")

    def close(self) -> None:
        self.optimizer.zero_grad()
        self.box.net.eval()

    def history(self) -> History:
        return History(tuple(self.loss), tuple(self.accuracy), self.steps, self.seconds, self.interrupted)


def _check(epochs: int, batch_size: int, lr: float) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number, 1 or more; got {value!r}")
    if not 0 < lr < math.inf:
        raise InputError(f"lr must be positive and finite; got {lr!r}")


def _batches(dataset: Dataset[Any], size: int, seed: int | None = None) -> Batches:
    """Batches (x, y) in memory order, or in an order shuffled anew each time by `seed`."""
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise DataError("the data set is empty: there is nothing to learn from")
    generator = torch.Generator().manual_seed(seed or 0)
    return DataLoader(dataset, size, shuffle=seed is not None, generator=generator)


def _bar(of: int, quiet: bool) -> tqdm[Any]:
    return tqdm(total=of, desc="training", unit="batch", disable=quiet)


def _learnable(box: Box) -> list[nn.Parameter]:
    if box.outputs not in ("logits", "logprobs"):
        raise OutputError(f"training needs a net that gives logits or log-probabilities; its outputs are {box.outputs}")
    if parameters := [p for p in box.net.parameters() if p.requires_grad]:
        return parameters
    raise InputError("the net has no parameter that requires a gradient: there is nothing to train")


def _logits(output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output  # (N, K)
    raise OutputError(f"training needs a net that gives a tensor of logits; it gives {type(output).__name__}")
