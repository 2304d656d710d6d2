"""Confused inputs in Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InputError, MissingError
from .watch import BatchFn, ConfusedLogits, Files

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
    the net had no chance to write over. Batches are counted through all epochs."""

    def __init__(self, watcher: ConfusedLogits, batch_fn: BatchFn | None = None) -> None:
        self.watcher, self._pair = watcher, batch_fn or pair

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.total_batch_idx
        if not self.watcher.wants(step):
            return
        x, y = self._pair(batch)

        def log(sheet: Image.Image, step: int) -> None:
            to_loggers(trainer, sheet, step)

        self.watcher.watch(pl_module, x, y, step, to=self.watcher.to or log)


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
        'ConfusedLogits(...).lightning(batch_fn=lambda batch: (batch["image"], batch["label"]))'
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
