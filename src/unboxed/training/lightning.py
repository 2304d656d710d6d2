"""Confused inputs and adversarial training in Lightning's Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..box import Box
from ..errors import InputError, MissingError
from ..inputs.base import Inputs
from ..rng import key
from .defense import PGD, Fast
from .watching import BatchFn, Files, ModelState, Watcher

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise MissingError(
        'Lightning is not installed: pip install "unboxed[training]" (or pip install lightning)'
    ) from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from PIL import Image

TAG = "confused inputs"


class Watching(Callback):
    """Looks at a batch before the step that trains on it: at the weights that step starts from, and at inputs that
    the model had no chance to write over. Batches are counted through all epochs."""

    def __init__(self, watcher: Watcher, batch_fn: BatchFn | None = None) -> None:
        self.watcher, self._pair = watcher, batch_fn or pair

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.total_batch_idx
        if not self.watcher.wants(step):
            return
        x, y = self._pair(batch)

        def log(sheet: Image.Image, step: int) -> None:
            to_loggers(trainer, sheet, step)

        self.watcher.watch(pl_module, x, y, step, to=self.watcher.to or log)


class Defending(Callback):
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
        self.defense, self.inputs, self.autocast, self._pair = defense, inputs, autocast, batch_fn or pair
        self._box: Box | None = None
        self._opened: object = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        z, y = self._pair(batch)
        if y is None:
            raise InputError("attacks need the classes y of a batch; got None")
        box = self._open(pl_module, z)
        seed = key("batch", trainer.fit_loop.total_batch_idx, trainer.global_rank)
        x = self.inputs.clip(self.inputs.decode(z.detach().to(box.dtype)))
        found = self.defense.attack(box, x, y, progress(trainer), seed=seed)
        with torch.no_grad():
            z.copy_(self.inputs.encode(found))

    def _open(self, module: LightningModule, z: Tensor) -> Box:
        """The box on the live module: opened once, and again if it was moved or rebuilt."""
        state = ModelState.of(module, z)
        if self._box is None or state != self._opened:
            self._box, self._opened = Box(module, self.inputs, autocast=self.autocast), state
        return self._box


def progress(trainer: Trainer) -> float:
    """The share of the training that is behind after the step at hand; all of it where nobody says how long it is."""
    steps = trainer.estimated_stepping_batches
    return min(1.0, (trainer.global_step + 1) / steps) if math.isfinite(steps) and steps > 0 else 1.0


def pair(batch: Any) -> tuple[Tensor, Tensor | None]:
    """(x, y) of a batch that is such a pair. Raises InputError otherwise."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    came = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        came += f" with {', '.join(map(str, batch))}"
    elif isinstance(batch, (tuple, list)):
        came += f" of {len(batch)}"
    raise InputError(
        f"wanted batches (x, y); got {came}. Say which is which, for one "
        'batch_fn=lambda batch: (batch["image"], batch["label"])'
    )


def to_loggers(trainer: Trainer, sheet: Image.Image, step: int) -> None:
    """The sheet for each logger in its way; files where a logger takes no images, or where there is none."""
    loggers: list[Any] = trainer.loggers  # each kind has methods of its own
    for logger in loggers:
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(TAG, [sheet], step=trainer.global_step)
        elif hasattr(logger.experiment, "add_image"):  # TensorBoard
            import numpy as np

            logger.experiment.add_image(TAG, np.asarray(sheet), trainer.global_step, dataformats="HWC")
        else:
            Files(Path(logger.log_dir or logger.save_dir or trainer.default_root_dir) / "confused")(sheet, step)
    if not loggers:
        Files(Path(trainer.default_root_dir) / "confused")(sheet, step)
