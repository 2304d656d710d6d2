"""Confused inputs in the Trainer of transformers.

Its callbacks never see a batch. So when a look is due, a hook before the model's next forward keeps a copy of what the
model is given, and is gone again; the look follows before the optimizer's step, at the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MissingPackageError, warn
from .watching import BatchFn, BatchWatcher, SheetPNGWriter

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingPackageError(
        'transformers is not installed: pip install "unboxed[training]" (or pip install transformers accelerate)'
    ) from error

NO_BATCH_SEEN_TEXT = (
    "no batch came by, so no confused inputs are looked for: hooks of a compiled model don't run (torch_compile=True?)"
)


class ConfusedLogitsCallback(TrainerCallback):
    """Batches are counted from 0 through all epochs, each part of an accumulated step for itself."""

    def __init__(self, watcher: BatchWatcher, batch_fn: BatchFn | None = None) -> None:
        self.watcher, self._batch_fn = watcher, batch_fn
        self._batch_index = 0  # that runs now, or next
        self._captured: tuple[Tensor, Tensor | None, str | None] | None = None  # x, y and the name that x was passed by
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._model: SingleInputModel | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batch_index = state.global_step * args.gradient_accumulation_steps
        self._reset()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._install_hook(kwargs["model"])

    def _install_hook(self, model: nn.Module) -> None:
        self._reset()
        if self.watcher.needs_batch(self._batch_index):
            self._hook = model.register_forward_pre_hook(self._capture_batch, with_kwargs=True)

    def _capture_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled():
            x, y, input_name = self._input_labels_and_input_name(model, args, kwargs)
            self._captured = x.detach().clone(), None if y is None else y.detach().clone(), input_name
            self._remove_hook()

    def _input_labels_and_input_name(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, str | None]:
        input_name = getattr(model, "main_input_name", "pixel_values")
        if self._batch_fn is not None:
            x, y = self._batch_fn(kwargs)
            return x, y, next((k for k, v in kwargs.items() if v is x), None)
        if isinstance(kwargs.get(input_name), Tensor):
            return kwargs[input_name], kwargs.get("labels"), input_name
        if args and isinstance(args[0], Tensor):
            return args[0], kwargs.get("labels"), None
        raise InputError(
            f"the model is given {', '.join(kwargs) or 'nothing by name'}, "
            f"and no {input_name!r}. Say what is the input and "
            'what the label: ConfusedLogits(...).huggingface(batch_fn=lambda given: (given["image"], given["labels"]))'
        )

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch_and_count_batch(args, kwargs["model"])
        self._install_hook(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch_captured_batch(args, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._watch_and_count_batch(args, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._reset()

    def _watch_and_count_batch(self, args: TrainingArguments, model: nn.Module) -> None:
        self._watch_captured_batch(args, model)
        if self._hook is not None:
            warn(NO_BATCH_SEEN_TEXT)
        self._reset()
        self._batch_index += 1

    def _reset(self) -> None:
        self._remove_hook()
        self._captured = None

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _watch_captured_batch(self, args: TrainingArguments, model: nn.Module) -> None:
        if self._captured is None:
            return
        (x, y, input_name), self._captured = self._captured, None
        if self._model is None or self._model.model is not model or self._model.input_name != input_name:
            self._model = SingleInputModel(model, input_name)
        sink = self.watcher.to or SheetPNGWriter(Path(args.output_dir or ".") / "confused")
        self.watcher.watch(self._model, x, y, self._batch_index, to=sink)


class SingleInputModel(nn.Module):
    """The model as a function of its one input, outside of the mixed precision that accelerate puts in its forward."""

    def __init__(self, model: nn.Module, input_name: str | None) -> None:
        super().__init__()
        self.model, self.input_name = model, input_name

    def forward(self, x: Tensor) -> Any:
        with running_original_forward(self.model):
            return self.model(x) if self.input_name is None else self.model(**{self.input_name: x})


@contextmanager
def running_original_forward(model: nn.Module) -> Iterator[None]:
    """While open, the model runs the forward that accelerate keeps beside the one that it wrapped."""
    wrapped_forward, unwrapped_forward = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if wrapped_forward is None or unwrapped_forward is None:
        yield
        return
    model.forward = unwrapped_forward
    try:
        yield
    finally:
        model.forward = wrapped_forward
