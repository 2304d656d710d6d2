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
from tqdm import tqdm

from ..box import Box
from ..checkpointing import CHANGED_MODEL_MESSAGE, CheckpointFile, is_equal_up_to_rounding
from ..engine.read.class_labels import LabelMatcher, label_matcher
from ..engine.read.examples import labeled_batches, open_labeled_path
from ..engine.read.training_batches import TrainingBatches, open_examples
from ..engine.stable_repr import cast_outputs_for_comparison
from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.examples import make_repeatable
from ..model import state as rng
from ..model.embedding_feed import refuse_training_on_texts
from ..rng import derive_seed, keyed_generator
from ..validation import check_float, check_int, valid_seed
from .checkpoint import (
    data_digest,
    model_structure_text,
    open_training_checkpoint,
    restore_rng_states,
    rng_states,
    setting_checkpoint_repr,
)
from .defense import Defense, check_defense, check_trainable_outputs, raw_output
from .ema import ModelEMA

ACCURACY_BATCH_EXAMPLES = 1000
TrainStepCallback = Callable[[nn.Module, Tensor, Tensor, int], object]
AugmentFn = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class History:
    """What a training did: losses, accuracies, steps and time."""

    loss: tuple[float, ...]  # (epochs,) mean training loss
    accuracy: tuple[float, ...]  # (epochs,) on the test data after each epoch; empty without test data
    steps: int  # batches that the model learned from
    seconds: float  # spent on training, looks at the test data left out
    interrupted: bool = False
    cpu_seconds: float = 0.0  # of all threads: on a shared machine, the figure to compare


def fit(
    model: nn.Module,
    inputs: Inputs,
    train: Any,
    test: Any = None,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    augment: AugmentFn | None = None,
    defend: Defense | None = None,
    ema_decay: float | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    quiet: bool = False,
    watch: TrainStepCallback | None = None,
) -> History:
    """Train a model on labeled examples, with AdamW and a one-cycle learning rate.

    The plain loop that the zoo's models were trained with, with or without a defense against attacks. The model is
    changed in place and left in eval mode; global RNGs are left alone. Ctrl-C stops it: the history then says
    `interrupted`.

    Args:
        model: A module that gives logits (N, K).
        inputs: What its inputs are.
        train: Labeled examples to train on: (x, y), a Dataset of (image, class), or a DataLoader, which keeps its own
            batches and order.
        test: Labeled examples to measure accuracy on after each epoch. None measures nothing.
        epochs: Passes over the training data, 1 or more.
        batch_size: Examples per step, 1 or more; a DataLoader has its own.
        lr: Largest learning rate of the one-cycle schedule, above 0.
        weight_decay: Of AdamW.
        seed: Seed of the order of the data, of dropout and of attacks.
        augment: `augment(x, generator)` changes each batch; see `engine.optimize.transforms`.
        defend: What is learned of a batch in place of its cross-entropy: `training.PGD(eps)`, `Fast`, `Trades`.
        ema_decay: Decay of an exponential moving average of the weights, such as 0.999: what is measured and returned.
            None keeps none.
        autocast: torch.bfloat16 or torch.float16 trains in mixed precision.
        checkpoint: File that is written after each epoch; the same call then goes on to the same weights.
        quiet: No progress bar.
        watch: `watch(model, z, y, step)` is called after each batch, with the model's own encoded inputs.

    Returns:
        Losses and accuracies per epoch, steps and seconds.

    Raises:
        InputError: for settings out of range, a loss that is not finite, a model of texts or without parameters to
            train.
        DataError: for an empty data set, or one without labels.
        ModelError: for a checkpoint of another training.
        OutputError: for a model that gives no logits.
        WriteError: where the checkpoint cannot be written.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> data = ub.data.digits("test")
        >>> history = ub.training.fit(model, inputs, data, epochs=1, quiet=True)
        >>> history.steps
        3
    """
    epochs, batch_size = check_int("epochs", epochs, minimum=1), check_int("batch_size", batch_size, minimum=1)
    _check_settings(lr, ema_decay)
    check_float("weight_decay", weight_decay, minimum=0)
    refuse_training_on_texts(inputs)
    box, seed = check_trainable_outputs(Box(model, inputs, autocast=autocast)), valid_seed(seed)
    batches, defense = TrainingBatches(box, train, batch_size, seed), check_defense(defend)
    trainer = _Trainer(box, batches, epochs * len(batches), lr, weight_decay, seed, augment, defense, ema_decay, watch)
    test, file = None if test is None else make_repeatable(open_labeled_path(box, test), box.inputs), None
    if checkpoint is not None:
        held_out = [] if test is None else open_examples(box, test)
        sizes = {"examples": len(batches.examples), "held_out": len(held_out)}
        data = {"training data": data_digest(batches.examples, box.device)}
        if test is not None:
            data["test data"] = data_digest(held_out, box.device)
        settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed}
        file = open_training_checkpoint(Path(checkpoint), settings | sizes | trainer.settings() | data)
    with (
        rng.forking_rngs(seed, box.device),
        rng.setting_grad_mode(True),
        _make_progress_bar(trainer.total_steps, quiet) as bar,
    ):
        try:
            trainer.run(epochs, test, bar, file)
        except KeyboardInterrupt:
            trainer.interrupted = True
        finally:
            trainer.finalize()
    return trainer.make_history()


def accuracy(box: Box, dataset: Any) -> float:
    """The fraction of labeled examples that a model classifies correctly.

    Args:
        box: The opened model.
        dataset: Labeled examples: (x, y), a Dataset of (image, class), or a DataLoader.

    Returns:
        Accuracy in [0, 1].

    Raises:
        InputError: for classes that the model does not have.
        DataError: for an empty data set, or one without labels.

    Example:
        >>> import unboxed as ub
        >>> ub.training.accuracy(ub.load("zoo:digits-cnn"), ub.data.digits("test")) > 0.9
        True
    """
    return _accuracy(box, dataset)


def _accuracy(box: Box, dataset: Any, to_classes: LabelMatcher | None = None) -> float:
    n_correct = n_seen = 0
    for x, y in labeled_batches(box, dataset, ACCURACY_BATCH_EXAMPLES, to_classes):
        n_correct += int((box.predict(x) == y).sum())
        n_seen += len(x)
    return n_correct / n_seen


class _Trainer:
    """One training under way."""

    def __init__(
        self,
        box: Box,
        batches: TrainingBatches,
        total_steps: int,
        lr: float,
        weight_decay: float,
        seed: int,
        augment: AugmentFn | None,
        defend: Defense | None,
        ema_decay: float | None,
        watch: TrainStepCallback | None,
    ) -> None:
        self.box, self.batches, self.total_steps = box, batches, total_steps
        self.augment, self.defend, self.watch = augment, defend, watch
        fused = box.device.type in ("cpu", "cuda")  # one pass over the weights: a tenth of the time
        self.optimizer = AdamW(_trainable_parameters(box), lr, weight_decay=weight_decay, fused=fused)
        self.schedule = OneCycleLR(self.optimizer, lr, total_steps=total_steps)
        self.ema = None if ema_decay is None else ModelEMA(box.model, ema_decay)
        self.seed = seed
        self.losses, self.accuracies = list[float](), list[float]()
        self.to_test_classes: LabelMatcher | None = None
        self.steps, self.seconds, self.cpu_seconds, self.interrupted = 0, 0.0, 0.0, False

    def run(self, epochs: int, test: Any, bar: tqdm[Any], file: CheckpointFile | None) -> None:
        """All epochs, or those that a checkpoint lacks."""
        if file is not None and (state := file.read()) is not None:
            self._restore_checkpoint(state, file)
            bar.initial = bar.n = self.steps
        while len(self.losses) < epochs:
            self._train_epoch(bar)
            if test is not None:
                self._record_test_accuracy(test, bar)
            if file is not None:
                file.write(self._checkpoint_state())

    def _train_epoch(self, bar: tqdm[Any]) -> None:
        self.box.model.train()
        start_time, start_cpu_time, losses = time.perf_counter(), time.process_time(), list[Tensor]()
        try:
            for x, y in self.batches:
                losses.append(self._train_step(x, y))
                bar.update()
        finally:
            self.seconds += time.perf_counter() - start_time
            self.cpu_seconds += time.process_time() - start_cpu_time
        self._record_loss(torch.stack(losses).mean().item())

    def _train_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from one batch (N, ...), (N,); the loss, left on the device."""
        box, trained_on = self.box, x
        rng.seed_rngs(derive_seed("step", self.seed, self.steps), box.device)  # as `ModelTraining` draws
        if self.augment is not None:
            generator = keyed_generator(box.device, "augment", self.seed, self.steps)
            trained_on = x = box.inputs.clip(self.augment(x, generator))
        if self.defend is None:
            batch_loss = F.cross_entropy(raw_output(box, x), y)
        else:
            trained_on = self.defend.attack(box, x, y, (self.steps + 1) / self.total_steps, seed=self.steps)
            batch_loss = self.defend.loss(box, x, y, trained_on)
        self.optimizer.zero_grad()
        torch.autograd.backward(batch_loss)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        if self.ema is not None:
            self.ema.update(self.steps)
        if self.watch is not None:
            self.watch(box.model, box.inputs.encode(trained_on).to(box.model_dtype), y, self.steps)
        return batch_loss.detach()

    def _record_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(f"the loss became {loss} in epoch {len(self.losses) + 1}: train with a smaller lr")
        self.losses.append(loss)

    def _record_test_accuracy(self, test: Any, bar: tqdm[Any]) -> None:
        with nullcontext() if self.ema is None else self.ema.using_averaged_weights():
            self.to_test_classes = self.to_test_classes or label_matcher(self.box, test)
            self.accuracies.append(_accuracy(self.box, test, self.to_test_classes))
        bar.set_postfix_str(f"loss {self.losses[-1]:.3f}, test accuracy {self.accuracies[-1]:.2%}")

    def finalize(self) -> None:
        self.optimizer.zero_grad()
        if self.ema is not None and self.steps:
            self.ema.copy_to_model()
        self.box.model.eval()

    def make_history(self) -> History:
        losses, accuracies = tuple(self.losses), tuple(self.accuracies)
        return History(losses, accuracies, self.steps, self.seconds, self.interrupted, self.cpu_seconds)

    # -- to a checkpoint, and from it --------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What decides where a training goes, beside the numbers."""
        return {
            "model": model_structure_text(self.box.model),
            "inputs": setting_checkpoint_repr("inputs", self.box.inputs),
            "augment": setting_checkpoint_repr("augment", self.augment),
            "defend": setting_checkpoint_repr("defend", self.defend),
            "ema_decay": None if self.ema is None else self.ema.decay,
            "autocast": str(self.box.autocast),
            "draws": "keyed by seed and step",
        }

    def _checkpoint_state(self) -> dict[str, Any]:
        return {
            "model": [h.detach() for h in self._state_tensors()],
            "answers": self._outputs_on_fixed_noise(),
            "average": None if self.ema is None else self.ema.average,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.batches.generator.get_state(),
            "rng": rng_states(self.box.device),
            "done": {name: getattr(self, name) for name in CHECKPOINTED_PROGRESS_FIELDS},
        }

    @torch.no_grad()
    def _restore_checkpoint(self, state: dict[str, Any], file: CheckpointFile) -> None:
        old_tensors = [h.clone() for h in self._state_tensors()]
        self._load_state_tensors(state["model"])
        if not is_equal_up_to_rounding(state["answers"], self._outputs_on_fixed_noise()):
            self._load_state_tensors(old_tensors)
            raise file.mismatch_error(CHANGED_MODEL_MESSAGE.format("answers"))
        if self.ema is not None:
            self.ema.restore(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.batches.generator.set_state(state["order"])
        restore_rng_states(state["rng"], self.box.device)
        for name, value in state["done"].items():
            setattr(self, name, value)

    def _outputs_on_fixed_noise(self) -> Tensor:
        """What the model says of noise, with the weights as they are."""
        noise = self.box.inputs.random_inputs(N_CHECKPOINT_NOISE_ROWS, torch.Generator(self.box.device).manual_seed(0))
        return cast_outputs_for_comparison(self.box, self.box(noise.to(self.box.dtype)))

    def _load_state_tensors(self, values: Iterable[Tensor]) -> None:
        for h, value in zip(self._state_tensors(), values, strict=True):
            h.data.copy_(value)

    def _state_tensors(self) -> list[Tensor]:
        return [*self.box.model.parameters(), *self.box.model.buffers()]


N_CHECKPOINT_NOISE_ROWS = 4  # rows of noise
CHECKPOINTED_PROGRESS_FIELDS = ("losses", "accuracies", "steps", "seconds", "cpu_seconds")


def _check_settings(lr: float, ema_decay: float | None) -> None:
    if not 0 < lr < math.inf:
        raise InputError(f"lr must be positive and finite; got {lr!r}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise InputError(
            f"ema_decay is the decay of a moving average, between 0 and 1, such as 0.999; got {ema_decay!r}"
        )


def _make_progress_bar(total_steps: int, quiet: bool) -> tqdm[Any]:
    return tqdm(total=total_steps, desc="training", unit="batch", disable=quiet)


def _trainable_parameters(box: Box) -> list[nn.Parameter]:
    if parameters := [p for p in box.model.parameters() if p.requires_grad]:
        return parameters
    raise InputError("the model has no parameter that requires a gradient: there is nothing to train")
