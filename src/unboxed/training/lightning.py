"""Confused inputs and adversarial training in Lightning's Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..box import Box
from ..errors import InputError, MissingPackageError
from ..inputs.base import Inputs
from ..rng import derive_seed
from .defense import PGD, Fast
from .watching import BatchFn, BatchWatcher, OpenedModelKey, SheetPNGWriter

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise MissingPackageError(
        'Lightning is not installed: pip install "unboxed[training]" (or pip install lightning)'
    ) from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from PIL import Image

CONFUSED_INPUTS_LOGGER_TAG = "confused inputs"


class ConfusedLogitsCallback(Callback):
    """Looks at a batch before the step that trains on it: at the weights that step starts from, and at inputs that
    the model had no chance to write over. Batches are counted through all epochs."""

    def __init__(self, watcher: BatchWatcher, batch_fn: BatchFn | None = None) -> None:
        self.watcher, self._batch_fn = watcher, batch_fn or inputs_and_labels_of_batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.total_batch_idx
        if not self.watcher.needs_batch(step):
            return
        x, y = self._batch_fn(batch)

        def log_to_trainer(sheet: Image.Image, step: int) -> None:
            log_sheet(trainer, sheet, step)

        self.watcher.watch(pl_module, x, y, step, to=self.watcher.to or log_to_trainer)


class AdversarialTrainingCallback(Callback):
    """Adversarial training by `Fast` or `PGD`: each batch's inputs become adversarial examples before the step.

        trainer = Trainer(callbacks=[Defending(PGD(eps=8 / 255), Pixels((3, 32, 32), MEAN, STD))])

    The module's `forward` takes the batch's inputs as `inputs` says, normalized by its mean and std. They are written
    over in place: a loader must give out copies of what it keeps, as torch's does when it puts batches together.
    `batch_fn` gives (x, y) of batches that are no such pair, `autocast` the attack's precision.
    `Trades` has a loss of its own, for which a defense is called in the training step, as any may be:

        def training_step(self, batch, batch_idx):
            x, y = batch  # pixels, as `inputs` wants them
            box = Box(self, inputs)  # or once, in on_fit_start
            return defense(box, x, y, progress=self.global_step / self.trainer.estimated_stepping_batches)

    Raises InputError.
    """

    def __init__(
        self,
        defense: Fast | PGD,
        inputs: Inputs,
        batch_fn: BatchFn | None = None,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not isinstance(defense, (Fast, PGD)):
            raise InputError(
                f"{type(defense).__name__} has a loss of its own, which no callback can put in the place of yours: "
                "call it in training_step, return defense(box, x, y, progress=...), where box = Box(self, inputs)"
            )
        self.defense, self.inputs, self.autocast, self._batch_fn = (
            defense,
            inputs,
            autocast,
            batch_fn or inputs_and_labels_of_batch,
        )
        self._box: Box | None = None
        self._box_key: object = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        model_input, y = self._batch_fn(batch)
        if y is None:
            raise InputError("attacks need the classes y of a batch; got None")
        box = self._open_or_reuse_box(pl_module, model_input)
        seed = derive_seed("batch", trainer.fit_loop.total_batch_idx, trainer.global_rank)
        pixels = self.inputs.clip(self.inputs.decode(model_input.detach().to(box.dtype)))
        adversarial = self.defense.attack(box, pixels, y, training_progress_fraction(trainer), seed=seed)
        with torch.no_grad():
            model_input.copy_(self.inputs.encode(adversarial))

    def _open_or_reuse_box(self, module: LightningModule, model_input: Tensor) -> Box:
        """The box on the live module: opened once, and again if it was moved or rebuilt."""
        box_key = OpenedModelKey.from_model(module, model_input)
        if self._box is None or box_key != self._box_key:
            self._box, self._box_key = Box(module, self.inputs, autocast=self.autocast), box_key
        return self._box


def training_progress_fraction(trainer: Trainer) -> float:
    """The share of the training that is behind after the step at hand; all of it where nobody says how long it is."""
    steps = trainer.estimated_stepping_batches
    return min(1.0, (trainer.global_step + 1) / steps) if math.isfinite(steps) and steps > 0 else 1.0


def inputs_and_labels_of_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """(x, y) of a batch that is such a pair. Raises InputError otherwise."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    description = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        description += f" with {', '.join(map(str, batch))}"
    elif isinstance(batch, (tuple, list)):
        description += f" of {len(batch)}"
    raise InputError(
        f"wanted batches (x, y); got {description}. Say which is which, for one "
        'batch_fn=lambda batch: (batch["image"], batch["label"])'
    )


def log_sheet(trainer: Trainer, sheet: Image.Image, step: int) -> None:
    """The sheet for each logger in its way; files where a logger takes no images, or where there is none."""
    loggers: list[Any] = trainer.loggers  # each kind has methods of its own
    for logger in loggers:
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(CONFUSED_INPUTS_LOGGER_TAG, [sheet], step=trainer.global_step)
        elif hasattr(logger.experiment, "add_image"):  # TensorBoard
            import numpy as np

            logger.experiment.add_image(
                CONFUSED_INPUTS_LOGGER_TAG, np.asarray(sheet), trainer.global_step, dataformats="HWC"
            )
        else:
            SheetPNGWriter(Path(logger.log_dir or logger.save_dir or trainer.default_root_dir) / "confused")(
                sheet, step
            )
    if not loggers:
        SheetPNGWriter(Path(trainer.default_root_dir) / "confused")(sheet, step)
