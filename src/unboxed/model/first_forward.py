"""A model's first forward, on noise: what it is made of, what it writes and draws, whether rows couple."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import InputError
from . import state
from .batch_dependence import SEEDS, RandomOps, rows_couple
from .isolation import Isolated
from .layers import Survey, mixing, survey

Call = Callable[[Tensor], Any]


def first_forward(
    model: Isolated, call: Call, noise: Tensor, apart: Tensor, rows: tuple[int, int]
) -> tuple[Survey, bool]:
    """The survey of a model, and whether its rows are coupled. Raises InputError where it can't take such inputs.

    `noise` (3, ...) and `apart` (4, ...: of `coupling.levels`) are valid inputs; `rows` are the least rows (an exported
    model pads its batches to as many) and the most that the model takes.
    """

    mixed: set[tuple[str, str]] = set()

    def run(x: Tensor) -> Any:
        with model.run(grad=False):
            return call(x)

    def drawing(x: Tensor, seed: int) -> tuple[Any, object]:
        """What the model gives for rows, and all that it drew for them; an axis of 3 may be the batch by chance."""
        with mixing(model.named, max(rows[0], len(x))) as seen:
            found = drawn(x, seed)
        mixed.update(seen)
        return found

    def drawn(x: Tensor, seed: int) -> tuple[Any, object]:
        if not model.draws:
            return run(x), None
        with model.run(grad=False, seed=seed), state.SharedNoise(), RandomOps(model.device) as ops:
            return call(x), (ops.shapes, state.host_states())

    with refusing(f"take a batch of inputs of shape {tuple(noise.shape[1:])}"):
        with model.discovering():
            found = survey(run, noise, model.named, rows[0])
        coupled = rows_couple(drawing, apart, SEEDS if model.draws else SEEDS[:1], rows[1])
        return replace(found, layers=found.layers.without_rows(mixed, max(rows[0], len(noise)))), coupled


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """An InputError that the model can't do `what` in place of what it raises itself."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"the model can't {what}: {first}") from error
