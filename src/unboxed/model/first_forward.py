"""A model's first forward pass, on noise: its layers, what it writes and draws, whether rows are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import InputError
from . import state
from .batch_dependence import BATCH_DEPENDENCE_PROBE_SEEDS, RandomOpRecorder, is_batch_dependent
from .isolation import IsolatedModel
from .layers import ModelProfile, collecting_unbatched_ops, profile_model
from .locks import holding_locks

IMAGE_CHANNEL_COUNTS = (1, 3, 4)  # of images

ModelCallFn = Callable[[Tensor], Any]


_ORIGINAL_PROFILE: ContextVar[ModelProfile | None] = ContextVar("profile of the original", default=None)


@contextmanager
def opening_copy_of(original: ModelProfile) -> Iterator[None]:
    """Within it, models that are opened are copies of one of this profile: their layers need not be found again."""
    token = _ORIGINAL_PROFILE.set(original)
    try:
        yield
    finally:
        _ORIGINAL_PROFILE.reset(token)


def first_forward(
    model: IsolatedModel, call: ModelCallFn, noise: Tensor, contrast_inputs: Tensor, batch_size_limits: tuple[int, int]
) -> tuple[ModelProfile, bool]:
    """The survey of a model, and whether its rows depend on one another. Raises InputError where it fails on noise.

    `noise` (3, ...) and `contrast_inputs` (4, ...: of `contrasting_input_levels`) are valid inputs; `batch_size_limits`
    are the fewest and most rows of a batch (an exported model pads its batches). Of a copy
    (see `opening_copy_of`), what it gives, draws and writes is found.
    """

    original = _ORIGINAL_PROFILE.get()
    unbatched: set[tuple[str, str]] = set()
    random_ops = RandomOpRecorder(model.device)

    def run(x: Tensor) -> Any:
        with model.run(grad=False), random_ops:
            return call(x)

    def run_collecting_unbatched_ops(x: Tensor, seed: int) -> tuple[Any, object]:
        """The model's output for rows, and what it drew; an axis of length 3 may be the batch by chance.

        As many rows as the survey had show nothing new.
        """
        if len(x) == len(noise) or original is not None:
            return run_recording_rng(x, seed)
        with collecting_unbatched_ops(model.modules_by_name, max(batch_size_limits[0], len(x))) as found_here:
            result = run_recording_rng(x, seed)
        unbatched.update(found_here)
        return result

    def run_recording_rng(x: Tensor, seed: int) -> tuple[Any, object]:
        if not (model.uses_rng or random_ops.sampled_shapes):
            with model.run(grad=False, seed=seed):
                return call(x), None
        shared_masks = state.SharedDropoutMaskMode() if model.uses_rng else state.NULL_CONTEXT
        with model.run(grad=False, seed=seed), shared_masks, RandomOpRecorder(model.device) as ops:
            return call(x), (ops.sampled_shapes, model.rng_states() if model.uses_rng else None)

    with (
        holding_locks(model.locks),  # hooks record every call, of other threads too
        reraising_as_input_error(f"take a batch of inputs of shape {_shape_text(tuple(noise.shape[1:]))}"),
    ):
        with model.detecting_writes_and_rng_use():
            if original is None:
                model_survey = profile_model(run, noise, model.modules_by_name, batch_size_limits[0])
            else:
                with state.SharedDropoutMaskMode():
                    model_survey = original.of_copy(run(noise), model.modules_by_name)
        batch_dependent = is_batch_dependent(
            run_collecting_unbatched_ops,
            contrast_inputs,
            BATCH_DEPENDENCE_PROBE_SEEDS if model.uses_rng else BATCH_DEPENDENCE_PROBE_SEEDS[:1],
            batch_size_limits[1],
        )
        return replace(
            model_survey,
            layers=model_survey.layers.with_unbatched_ops_marked(unbatched, max(batch_size_limits[0], len(noise))),
        ), batch_dependent


def _shape_text(shape: tuple[int, ...]) -> str:
    """The shape of one input; where the channels of an image seem to be last, the shape with them first."""
    if len(shape) == 3 and shape[-1] in IMAGE_CHANNEL_COUNTS and shape[0] not in IMAGE_CHANNEL_COUNTS:
        return f"{shape} (channels come first: did you mean {(shape[-1], *shape[:-1])}?)"
    return str(shape)


@contextmanager
def reraising_as_input_error(action: str) -> Iterator[None]:
    """Raise InputError "the model can't {action}" in place of what the model raises."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"the model can't {action}: {message}") from error
