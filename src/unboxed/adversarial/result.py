"""What every attack gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Adversarial:
    images: Tensor  # (N, ...) inside the ball and inside the valid range
    success: Tensor  # (N,) bool: the net's answer is wrong (targeted: is the target; with an objective: its score rose)
    queries: Tensor  # (N,) forward passes spent on each
    distance: Tensor  # (N,) from the original, in the ball's norm
    interrupted: bool = False
