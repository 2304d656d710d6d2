"""A model's first forward pass, on noise: its layers, what it writes and draws, whether rows are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import InputError
from . import state
from .batch_dependence import TRIAL_SEEDS, RandomOpRecorder, is_batch_dependent
from .isolation import IsolatedModel
from .layers import ModelSurvey, collect_unbatched, survey_model

ModelCall = Callable[[Tensor], Any]


def first_forward(
    model: IsolatedModel, call: ModelCall, noise: Tensor, contrast_inputs: Tensor, batch_size_limits: tuple[int, int]
) -> tuple[ModelSurvey, bool]:
    """The survey of a model, and whether its rows depend on one another. Raises InputError where it fails on noise.

    `noise` (3, ...) and `contrast_inputs` (4, ...: of `contrast_levels`) are valid inputs; `batch_size_limits` are the
    fewest and most rows of a batch (an exported model pads its batches).
    """

    unbatched: set[tuple[str, str]] = set()

    def run(x: Tensor) -> Any:
        with model.run(grad=False):
            return call(x)

    def run_and_note_axes(x: Tensor, seed: int) -> tuple[Any, object]:
        """The model's output for rows, and what it drew; an axis of length 3 may be the batch by chance."""
        with collect_unbatched(model.modules_by_name, max(batch_size_limits[0], len(x))) as found_here:
            result = run_seeded(x, seed)
        unbatched.update(found_here)
        return result

    def run_seeded(x: Tensor, seed: int) -> tuple[Any, object]:
        if not model.uses_rng:
            return run(x), None
        with model.run(grad=False, seed=seed), state.SharedDropoutMask(), RandomOpRecorder(model.device) as ops:
            return call(x), (ops.sampled_shapes, state.host_rng_states())

    with explain_failure(f"take a batch of inputs of shape {tuple(noise.shape[1:])}"):
        with model.observe_first_run():
            model_survey = survey_model(run, noise, model.modules_by_name, batch_size_limits[0])
        batch_dependent = is_batch_dependent(
            run_and_note_axes, contrast_inputs, TRIAL_SEEDS if model.uses_rng else TRIAL_SEEDS[:1], batch_size_limits[1]
        )
        return replace(
            model_survey,
            layers=model_survey.layers.without_batch_axis(unbatched, max(batch_size_limits[0], len(noise))),
        ), batch_dependent


@contextmanager
def explain_failure(action: str) -> Iterator[None]:
    """Raise InputError "the model can't {action}" in place of what the model raises."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"the model can't {action}: {message}") from error
