"""Snapshots: the weights of a model while it trains, for pictures over the epochs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..validation import check_int
from .files import save_weights


class Snapshots:
    """Keeps the weights every `every` batches: `fit(..., watch=snapshots)`, then `epochs(box, snapshots.kept)`.

    In memory, or as .safetensors files in the folder `to`. Any loop can call it: `snapshots(model, x, y, step)`; x and
    y are not looked at. Raises WriteError where a file can't be written.
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
