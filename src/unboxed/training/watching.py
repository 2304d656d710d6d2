"""What `ConfusedLogits` and the trainers' callbacks share: whom a callback calls, where sheets go, what a box was
opened on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..atomic_write import write_bytes

if TYPE_CHECKING:
    from PIL import Image

SheetDestination = Callable[["Image.Image", int], object]  # (sheet, step)
BatchFn = Callable[[Any], tuple[Tensor, Tensor | None]]  # what a trainer passes around -> (x, y)


class BatchWatcher(Protocol):
    """What a trainer's callback calls: `watch` on the batch of each step that it needs (`needs_batch`)."""

    to: SheetDestination | None

    def needs_batch(self, step: int) -> bool: ...
    def watch(
        self, model: nn.Module, x: Tensor, y: Tensor | None, step: int, *, to: SheetDestination | None = None
    ) -> object: ...


@dataclass(frozen=True)
class SheetPNGWriter:
    """Writes each sheet as a PNG file. Raises WriteError when called."""

    folder: Path

    def __call__(self, sheet: Image.Image, step: int) -> Path:
        png_bytes = BytesIO()
        sheet.save(png_bytes, "PNG", compress_level=1)  # training waits for it
        return write_bytes(self.folder / f"confused-{step:06d}.png", png_bytes.getvalue())


@dataclass(frozen=True)
class OpenedModelKey:
    """What a box was opened on."""

    modules: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def from_model(cls, model: nn.Module, x: Tensor) -> OpenedModelKey:
        first = next((p for p in model.parameters() if p.is_floating_point()), x)
        return cls(tuple(map(id, model.modules())), first.device, first.dtype, tuple(x.shape[1:]))
