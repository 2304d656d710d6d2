"""Look at confused inputs in the middle of training, and leave the training as it would have been."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..box import Box
from ..engine.gradients.score import gradients
from ..errors import InputError, WriteError, warn
from ..inputs.base import Inputs
from ..model import state
from ..model.outputs import OutputKind
from ..objectives import logit
from ..validation import check_int
from .confused import (
    ConfusedInputs,
    ConfusionRule,
    LogitThresholdScope,
    find_confused_inputs,
    require_single_label_logits,
)
from .watching import BatchFn, OpenedModelKey, SheetDestination, SheetPNGWriter

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from PIL import Image
    from transformers import TrainerCallback

NO_SHEET_DESTINATION_TEXT = (
    "the sheets of confused inputs go nowhere: give ConfusedLogits a folder or a function, to=..., or use what watch "
    "returns"
)


class ConfusedLogits:
    """Inputs that confuse the model, shown while it trains: two nearly equal logits, and where each would grow.

    Every `logging_batch_interval` batches, inputs are searched whose two largest logits differ by less than
    `max_logit_difference` while the largest exceeds `min_logit_value`. A sheet shows each with its label, d logit_a /
    dx, d logit_b / dx, and the input plus `projection_factor` times each. Two logits that a final ReLU clamps to zero
    do not count.

    Training ends in the same weights, bit for bit, as without it: logits and gradients come from extra passes in eval
    and float32. In a loop of your own call `watch` at each step; for trainers pass `callbacks=[confused.lightning()]`
    or `callbacks=[confused.huggingface()]`. Of several devices rank zero looks, at its own part of the batch.
    `print(confused)` says how often it looked, what it found, and the largest logit: of a model that learned little it
    seldom exceeds `min_logit_value`.

    Args:
        top_k: Inputs per sheet, at most.
        projection_factor: Factor of the gradients that are added to the input.
        min_logit_value: What the largest logit must exceed.
        logging_batch_interval: Batches between two checks, 1 or more.
        max_logit_difference: What the difference of the two largest logits must stay below.
        min_logit_scope: "batch" compares the batch's largest logit with `min_logit_value` (the published rule),
            "example" the input's own.
        min_probability: What the largest probability must exceed, in place of `min_logit_value`; needed where the model
            gives (log-)probabilities.
        inputs: What the model's inputs are; used only to decode them to pixels.
        classes: Class names.
        outputs: What the output means, as in `Box`.
        output: Which part of a structured output, as in `Box`.
        to: A folder for PNG files, or `to(sheet, step)`. None hands sheets to the trainer's logger.

    Raises:
        InputError: for settings that cannot be right.

    Example:
        >>> import torch, unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn")
        >>> confused = ub.training.ConfusedLogits(to=lambda sheet, step: None, inputs=inputs)
        >>> x, y = ub.data.digits("test").first(32)
        >>> for step in (19, 20, 21):
        ...     _ = confused.watch(model, inputs.encode(x), y, step)
        >>> confused.n_checks
        1

    Source:
        The confused logit callback of Lightning Bolts (Canziani & Falcon 2020): its rule, settings and defaults.
    """

    def __init__(
        self,
        top_k: int = 1,
        projection_factor: float = 3.0,
        min_logit_value: float = 5.0,
        logging_batch_interval: int = 20,
        max_logit_difference: float = 0.1,
        *,
        min_logit_scope: LogitThresholdScope = "batch",
        min_probability: float | None = None,
        inputs: Inputs | None = None,
        classes: Sequence[str] | None = None,
        outputs: OutputKind | None = None,
        output: object = None,
        to: str | os.PathLike[str] | SheetDestination | None = None,
    ) -> None:
        interval = check_int("logging_batch_interval", logging_batch_interval, minimum=1)
        self.rule = ConfusionRule(top_k, max_logit_difference, min_logit_value, min_logit_scope, min_probability)
        self.projection_factor, self.interval = float(projection_factor), interval
        self.inputs, self.classes = inputs, classes
        self.to: SheetDestination | None = to if to is None or callable(to) else SheetPNGWriter(Path(to))
        self.last_confused: ConfusedInputs | None = None  # what the last look with a confused input found
        self.n_checks, self.n_found, self.largest_logit = 0, 0, -math.inf  # so far
        self._loss_inputs, self._output = outputs, output
        self._box: Box | None = None
        self._box_key: object = None
        self._has_warned = False  # that the sheets go nowhere

    def __repr__(self) -> str:
        message = f"looked {self.n_checks} times, found confused inputs {self.n_found} times"
        if self.n_checks:
            message += f", largest logit {self.largest_logit:.3g}"
        if self.rule.min_probability is None:
            sign = ">" if self.largest_logit > self.rule.min_logit_value else "<="
            message += f" {sign} " if self.n_checks else ", "
            message += f"min_logit_value={self.rule.min_logit_value:g}"
        return f"ConfusedLogits({message})"

    def needs_batch(self, step: int) -> bool:
        """Whether `watch` has something to do at this step, counted from 0. The first call checks the model."""
        return self._box is None or self._is_step_due(step)

    def _is_step_due(self, step: int) -> bool:
        return (step + 1) % self.interval == 0

    def watch(
        self, model: nn.Module, x: Tensor, y: Tensor | None, step: int, *, to: SheetDestination | None = None
    ) -> ConfusedInputs | None:
        """Look at batch x (N, ...), as the model gets it, with labels y (N,), if a look is due at this step.

        Returns what is confused, if anything; its sheet goes `to` this function, or where the object's own go.
        Raises OutputError or InputError, at the first step, where the model can't be watched; it says why.
        """
        if not self.needs_batch(step):
            return None
        with state.setting_grad_mode(False):  # the caller may be in inference_mode
            confused = self._find_confused_if_due(model, x, y, step)
        self._warn_no_destination(x, to or self.to)
        if confused is not None:
            self.last_confused = confused
            self.n_found += 1
            self._draw_and_send_sheet(confused, to or self.to)
        return confused

    def _find_confused_if_due(self, model: nn.Module, x: Tensor, y: Tensor | None, step: int) -> ConfusedInputs | None:
        model, x, y = unwrap_data_parallel(model), _check_batch(x), None if y is None else torch.as_tensor(y)
        if y is not None and len(y) != len(x):
            raise InputError(f"wanted one label an input; got {len(y)} for {len(x)}")
        box = self._open_or_reuse_box(model, x)  # on every rank: if one refuses, all do
        if not self._is_step_due(step) or _process_rank() != 0:
            return None
        logits = require_single_label_logits(box, x)  # (N, K)
        self.n_checks, self.largest_logit = self.n_checks + 1, max(self.largest_logit, logits.max().item())
        return find_confused_inputs(box, x, y, step, self.rule, logits)

    def draw(self, confused: ConfusedInputs) -> Image.Image:
        """The contact sheet of a look. Raises InputError where the inputs are no images."""
        from .confusion_sheet import confusion_sheet

        class_names = self.classes or [str(k) for k in range(confused.logits.shape[1])]
        return confusion_sheet(confused, class_names, self.projection_factor, self.inputs)

    def lightning(self, batch_fn: BatchFn | None = None) -> Callback:
        """A callback for Lightning's Trainer: `batch_fn` gives (x, y) of batches that are no such pair.

        The module's `forward` takes x; it needs no line for this. The sheets go to each of the trainer's loggers:
        images for TensorBoard and Weights & Biases, PNG files in the folder of others, or of the trainer if it has
        none. Raises MissingPackageError without Lightning.
        """
        from .lightning import ConfusedLogitsCallback

        return ConfusedLogitsCallback(self, batch_fn)

    def huggingface(self, batch_fn: BatchFn | None = None) -> TrainerCallback:
        """A callback for the Trainer of transformers: `batch_fn` gives (x, y) of the model's keyword arguments.

        Default: the model's main input (`pixel_values`) and `labels`. The sheets go to `output_dir`/confused.
        Raises MissingPackageError without transformers.
        """
        from .huggingface import ConfusedLogitsCallback

        return ConfusedLogitsCallback(self, batch_fn)

    def _open_or_reuse_box(self, model: nn.Module, x: Tensor) -> Box:
        """The box on the live model: opened once, and again if the model was moved, rebuilt, or gets another shape."""
        box_key = OpenedModelKey.from_model(model, x)
        if self._box is None or box_key != self._box_key:
            check_model_not_sharded(model)
            raw_inputs = UnencodedInputs(x[:3].detach().clone())
            box = Box(model, raw_inputs, classes=self.classes, outputs=self._loss_inputs, output=self._output)
            self.rule.check(box)
            gradients(box, logit(0), x[:2])  # refuses now, not in the middle of training
            self._warn_inputs_are_not_images(x)
            self._box, self._box_key = box, box_key
        return self._box

    def _warn_inputs_are_not_images(self, x: Tensor) -> None:
        from .confusion_sheet import image_shape_or_none, not_images_text

        if image_shape_or_none(tuple(x.shape[1:]), self.inputs) is None:
            warn(not_images_text(x))

    def _warn_no_destination(self, x: Tensor, destination: SheetDestination | None) -> None:
        """Once, that nothing will be drawn."""
        from .confusion_sheet import image_shape_or_none

        if (
            destination is None
            and not self._has_warned
            and image_shape_or_none(tuple(x.shape[1:]), self.inputs) is not None
        ):
            self._has_warned = True
            warn(NO_SHEET_DESTINATION_TEXT)

    def _draw_and_send_sheet(self, confused: ConfusedInputs, destination: SheetDestination | None) -> None:
        from .confusion_sheet import image_shape_or_none

        if destination is None or image_shape_or_none(tuple(confused.inputs.shape[1:]), self.inputs) is None:
            return
        try:
            destination(self.draw(confused), confused.step)
        except WriteError as error:  # a full disk is no reason to end somebody's training
            warn(f"the sheet of step {confused.step} is lost: {error}")


@dataclass(frozen=True, eq=False)
class UnencodedInputs:
    """Inputs of a box as the training loop gives them to the model: there is nothing to encode, and no range to
    keep."""

    examples: Tensor  # (up to 3, ...), at which the box takes its first look

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.examples.shape[1:])

    def check(self, x: Tensor) -> Tensor:
        return x

    def encode(self, x: Tensor) -> Tensor:
        return x.clone()

    def decode(self, z: Tensor) -> Tensor:
        return z

    def clip(self, x: Tensor) -> Tensor:
        return x

    def pack(self, x: Tensor) -> Tensor:
        return x

    def unpack(self, h: Tensor) -> Tensor:
        return h

    def from_unit_interval(self, unit_values: Tensor) -> Tensor:
        """From the least number of the examples to the largest."""
        lower, upper = torch.aminmax(self.examples.to(unit_values.device))
        return lower + (upper - lower) * unit_values

    def random_inputs(self, n_inputs: int, generator: torch.Generator) -> Tensor:
        """Real inputs; where the batch had fewer than n, others like them."""
        x = self.examples.to(generator.device)
        return torch.cat([x, x.flip(-1), -x])[:n_inputs]


def unwrap_data_parallel(model: nn.Module) -> nn.Module:
    """The model inside of data parallelism, whose forward would wait for the other ranks."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def check_model_not_sharded(model: nn.Module) -> None:
    """Raise InputError for a model of which this rank holds only a part: alone it can't run it."""
    sharded_types = [type(m).__name__ for m in model.modules() if type(m).__name__ == "FullyShardedDataParallel"]
    sharded_types += [
        type(p).__name__ for p in model.parameters() if type(p).__name__ == "DTensor" or hasattr(p, "ds_id")
    ]
    if sharded_types:
        raise InputError(
            "the model's parameters are spread over devices "
            f"({sharded_types[0]}), so rank zero alone can't look at it. "
            "Train with data parallelism (DDP), or without this callback"
        )


def _check_batch(x: object) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0:
        description = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"wanted a batch of inputs, a tensor (N, ...) as the model gets it; got {description}")
    if not x.is_floating_point():
        raise InputError(
            f"a logit has no gradient in inputs of {x.dtype}: token ids are no images. Pass what it computes with: "
            "floating point inputs"
        )
    return x


def _process_rank() -> int:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_distributed else 0
