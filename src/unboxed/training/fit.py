"""The plain training loop, with or without a defense."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..box import Box
from ..checkpointing import OTHERWISE, Saved, alike
from ..engine.stable_repr import box_answers
from ..errors import DataError, InputError
from ..inputs.base import Inputs
from ..model import state as rng
from ..validation import check_seed
from .average import Average
from .checkpoint import compared, looked_at, put_rng_states, rng_states, saved, structure
from .defense import Defense, output, trainable

Batches = DataLoader[Any]  # of (x, y)
Watch = Callable[[nn.Module, Tensor, Tensor, int], object]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class History:
    loss: tuple[float, ...]  # (epochs,) mean training loss
    accuracy: tuple[float, ...]  # (epochs,) on the test data after each epoch; empty without test data
    steps: int  # batches that the model learned from
    seconds: float  # spent on training, looks at the test data left out
    interrupted: bool = False
    cpu_seconds: float = 0.0  # of all threads: on a shared machine, the figure to compare


def fit(
    model: nn.Module,
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
    defend: Defense | None = None,
    average: float | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    quiet: bool = False,
    watch: Watch | None = None,
) -> History:
    """Train a model that gives logits (N, K) on a Dataset of (image, class), with AdamW and a one-cycle learning rate.

    The model is changed in place and left in eval mode, without gradients; the global RNGs are left alone. `augment(x,
    generator)` changes each batch (see `engine.optimize.transforms`), `defend` says what is learned of it in place of
    the cross-entropy (see `training.defense`). `average` is the decay, such as 0.999, of an exponential moving average
    of the weights, which is what the test data meets and what is left in the model. `autocast` trains in mixed
    precision. `watch(model, z, y, step)` is called after each batch, with the model's own encoded inputs.

    `checkpoint` names a file, written after each epoch, from which a fit with the same settings goes on, to the same
    weights. On Ctrl-C the model stays as it is and the history says `interrupted`.
    Raises InputError, DataError, OutputError, WriteError, and ModelError for a checkpoint of another training.
    """
    _check(epochs, batch_size, lr, average)
    box, seed = trainable(Box(model, inputs, autocast=autocast)), check_seed(seed)
    batches = _batches(train, batch_size, seed)
    training = _Training(box, batches, epochs * len(batches), lr, weight_decay, seed, augment, defend, average, watch)
    file = None
    if checkpoint is not None:
        sizes = {"examples": len(train), "held_out": 0 if test is None else len(test)}  # type: ignore[arg-type]
        data = {"training data": looked_at(train, box.device)}
        if test is not None:
            data["test data"] = looked_at(test, box.device)
        settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed}
        file = saved(Path(checkpoint), settings | sizes | training.settings() | data)
    with rng.forked(seed, box.device), rng.gradients_on(True), _bar(training.of, quiet) as bar:
        try:
            training.go(epochs, test, bar, file)
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
        batches: Batches,
        of: int,
        lr: float,
        weight_decay: float,
        seed: int,
        augment: Augment | None,
        defend: Defense | None,
        average: float | None,
        watch: Watch | None,
    ) -> None:
        self.box, self.batches, self.of = box, batches, of
        self.augment, self.defend, self.watch = augment, defend, watch
        fused = box.device.type in ("cpu", "cuda")  # one pass over the weights: a tenth of the time
        self.optimizer = AdamW(_learnable(box), lr, weight_decay=weight_decay, fused=fused)
        self.schedule = OneCycleLR(self.optimizer, lr, total_steps=of)
        self.average = None if average is None else Average(box.model, average)
        self.generator = torch.Generator(box.device).manual_seed(seed)
        self.loss, self.accuracy = list[float](), list[float]()
        self.steps, self.seconds, self.cpu_seconds, self.interrupted = 0, 0.0, 0.0, False

    def go(self, epochs: int, test: Dataset[Any] | None, bar: tqdm[Any], file: Saved | None) -> None:
        """All epochs, or those that a checkpoint lacks."""
        if file is not None and (state := file.read()) is not None:
            self._restore(state, file)
            bar.initial = bar.n = self.steps
        while len(self.loss) < epochs:
            self._epoch(bar)
            if test is not None:
                self._look(test, bar)
            if file is not None:
                file.write(self._state())

    def _epoch(self, bar: tqdm[Any]) -> None:
        self.box.model.train()
        started, cpu, losses = time.perf_counter(), time.process_time(), list[Tensor]()
        try:
            for x, y in self.batches:
                losses.append(self._step(self.box.accept(x), self.box.labels(y, len(x))))
                bar.update()
        finally:
            self.seconds += time.perf_counter() - started
            self.cpu_seconds += time.process_time() - cpu
        self._note(torch.stack(losses).mean().item())

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from one batch (N, ...), (N,); the loss, left on the device."""
        box, seen = self.box, x
        if self.augment is not None:
            seen = x = box.inputs.clip(self.augment(x, self.generator))
        if self.defend is None:
            loss = F.cross_entropy(output(box, x), y)
        else:
            seen = self.defend.attack(box, x, y, (self.steps + 1) / self.of, seed=self.steps)
            loss = self.defend.loss(box, x, y, seen)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        if self.average is not None:
            self.average.update(self.steps)
        if self.watch is not None:
            self.watch(box.model, box.inputs.encode(seen).to(box.model_dtype), y, self.steps)
        return loss.detach()

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(f"the loss became {loss} in epoch {len(self.loss) + 1}: train with a smaller lr")
        self.loss.append(loss)

    def _look(self, test: Dataset[Any], bar: tqdm[Any]) -> None:
        with nullcontext() if self.average is None else self.average.in_place():
            self.accuracy.append(accuracy(self.box, test))
        bar.set_postfix_str(f"loss {self.loss[-1]:.3f}, test accuracy {self.accuracy[-1]:.2%}")

    def close(self) -> None:
        self.optimizer.zero_grad()
        if self.average is not None and self.steps:
            self.average.put()
        self.box.model.eval()

    def history(self) -> History:
        loss, right = tuple(self.loss), tuple(self.accuracy)
        return History(loss, right, self.steps, self.seconds, self.interrupted, self.cpu_seconds)

    # -- to a checkpoint, and from it --------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What decides where a training goes, beside the numbers."""
        return {
            "model": structure(self.box.model), "inputs": compared("inputs", self.box.inputs),
            "augment": compared("augment", self.augment), "defend": compared("defend", self.defend),
            "average": None if self.average is None else self.average.decay, "autocast": str(self.box.autocast),
        }  # fmt: skip

    def _state(self) -> dict[str, Any]:
        return {
            "model": [h.detach() for h in self._tensors()],
            "answers": self._answers(),
            "average": None if self.average is None else self.average.kept,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": [g.get_state() for g in (self.generator, self.batches.generator)],
            "rng": rng_states(self.box.device),
            "done": {name: getattr(self, name) for name in DONE},
        }

    @torch.no_grad()
    def _restore(self, state: dict[str, Any], file: Saved) -> None:
        before = [h.clone() for h in self._tensors()]
        self._put(state["model"])
        if not alike(state["answers"], self._answers()):
            self._put(before)
            raise file.refusal(OTHERWISE.format("answers"))
        if self.average is not None:
            self.average.restore(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for g, value in zip((self.generator, self.batches.generator), state["generators"], strict=True):
            g.set_state(value)
        put_rng_states(state["rng"], self.box.device)
        for name, value in state["done"].items():
            setattr(self, name, value)

    def _answers(self) -> Tensor:
        """What the model says of noise, with the weights as they are."""
        noise = self.box.inputs.sample(PROBES, torch.Generator(self.box.device).manual_seed(0))
        return box_answers(self.box, self.box(noise.to(self.box.dtype)))

    def _put(self, values: Iterable[Tensor]) -> None:
        for h, value in zip(self._tensors(), values, strict=True):
            h.data.copy_(value)

    def _tensors(self) -> list[Tensor]:
        return [*self.box.model.parameters(), *self.box.model.buffers()]


PROBES = 4  # rows of noise
DONE = ("loss", "accuracy", "steps", "seconds", "cpu_seconds")


def _check(epochs: int, batch_size: int, lr: float, average: float | None) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number, 1 or more; got {value!r}")
    if not 0 < lr < math.inf:
        raise InputError(f"lr must be positive and finite; got {lr!r}")
    if average is not None and not 0 < average < 1:
        raise InputError(f"average is the decay of a moving average, between 0 and 1, such as 0.999; got {average!r}")


def _batches(dataset: Dataset[Any], size: int, seed: int | None = None) -> Batches:
    """Batches (x, y) in memory order, or in an order shuffled anew each time by `seed`."""
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise DataError("the data set is empty: there is nothing to learn from")
    generator = torch.Generator().manual_seed(seed or 0)
    return DataLoader(dataset, size, shuffle=seed is not None, generator=generator)


def _bar(of: int, quiet: bool) -> tqdm[Any]:
    return tqdm(total=of, desc="training", unit="batch", disable=quiet)


def _learnable(box: Box) -> list[nn.Parameter]:
    if parameters := [p for p in box.model.parameters() if p.requires_grad]:
        return parameters
    raise InputError("the model has no parameter that requires a gradient: there is nothing to train")
