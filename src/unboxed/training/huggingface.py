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

from ..errors import InputError, MissingError, warn
from .watching import BatchFn, Files, Watcher

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingError(
        'transformers is not installed: pip install "unboxed[training]" (or pip install transformers accelerate)'
    ) from error

NOT_SEEN = (
    "no batch came by, so no confused inputs are looked for: hooks of a compiled model don't run (torch_compile=True?)"
)


class Watching(TrainerCallback):
    """Batches are counted from 0 through all epochs, each part of an accumulated step for itself."""

    def __init__(self, watcher: Watcher, batch_fn: BatchFn | None = None) -> None:
        self.watcher, self._batch_fn = watcher, batch_fn
        self._batch = 0  # that runs now, or next
        self._caught: tuple[Tensor, Tensor | None, str | None] | None = None  # x, y and the name that x was passed by
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._model: Plain | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batch = state.global_step * args.gradient_accumulation_steps
        self._forget()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._prepare(kwargs["model"])

    def _prepare(self, model: nn.Module) -> None:
        self._forget()
        if self.watcher.wants(self._batch):
            self._hook = model.register_forward_pre_hook(self._catch, with_kwargs=True)

    def _catch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled():
            x, y, name = self._take(model, args, kwargs)
            self._caught = x.detach().clone(), None if y is None else y.detach().clone(), name
            self._unhook()

    def _take(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, str | None]:
        name = getattr(model, "main_input_name", "pixel_values")
        if self._batch_fn is not None:
            x, y = self._batch_fn(kwargs)
            return x, y, next((k for k, v in kwargs.items() if v is x), None)
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name], kwargs.get("labels"), name
        if args and isinstance(args[0], Tensor):
            return args[0], kwargs.get("labels"), None
        raise InputError(
            f"the model is given {', '.join(kwargs) or 'nothing by name'}, and no {name!r}. Say what is the input and "
            'what the label: ConfusedLogits(...).huggingface(batch_fn=lambda given: (given["image"], given["labels"]))'
        )

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end(args, kwargs["model"])
        self._prepare(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._look(args, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._end(args, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget()

    def _end(self, args: TrainingArguments, model: nn.Module) -> None:
        self._look(args, model)
        if self._hook is not None:
            warn(NOT_SEEN)
        self._forget()
        self._batch += 1

    def _forget(self) -> None:
        self._unhook()
        self._caught = None

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _look(self, args: TrainingArguments, model: nn.Module) -> None:
        if self._caught is None:
            return
        (x, y, name), self._caught = self._caught, None
        if self._model is None or self._model.model is not model or self._model.name != name:
            self._model = Plain(model, name)
        to = self.watcher.to or Files(Path(args.output_dir or ".") / "confused")
        self.watcher.watch(self._model, x, y, self._batch, to=to)


class Plain(nn.Module):
    """The model as a function of its one input, outside of the mixed precision that accelerate puts in its forward."""

    def __init__(self, model: nn.Module, name: str | None) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Any:
        with own_forward(self.model):
            return self.model(x) if self.name is None else self.model(**{self.name: x})


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """While open, the model runs the forward that accelerate keeps beside the one that it wrapped."""
    wrapped, own = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = wrapped
