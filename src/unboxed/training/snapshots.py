"""Snapshots: the weights of a model while it trains, for pictures over the epochs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..validation import check_int
from .files import save_weights


class Snapshots:
    """The weights of a model every few batches of a training, for `ub.epochs`.

    Pass it to `fit(..., watch=snapshots)`, or call it in a loop of your own: `snapshots(model, x, y, step)`; x and y
    are not used.

    Args:
        every: Batches between two snapshots, 1 or more.
        to: Folder for .safetensors files. None keeps the weights in memory.

    Raises:
        InputError: for an interval out of range.
        WriteError: where a file cannot be written.

    Example:
        >>> import unboxed as ub
        >>> snapshots = ub.training.Snapshots(every=2)
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> _ = ub.training.fit(model, inputs, ub.data.digits("test"), epochs=1, quiet=True, watch=snapshots)
        >>> list(snapshots.weights)
        ['step 2']
    """

    def __init__(self, every: int, *, to: str | Path | None = None) -> None:
        self.every, self.to = check_int("every", every, minimum=1), None if to is None else Path(to)
        self.weights: dict[str, Path | dict[str, Tensor]] = {}

    def __call__(self, model: nn.Module, x: Tensor | None, y: Tensor | None, step: int) -> None:
        if step % self.every:
            return
        if self.to is not None:
            self.weights[f"step {step}"] = save_weights(model, self.to / f"step-{step:06d}.safetensors", {"step": step})
        else:
            state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
            self.weights[f"step {step}"] = {name: h.detach().cpu().clone() for name, h in state.items()}
