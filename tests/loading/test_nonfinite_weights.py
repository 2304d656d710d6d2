"""Weights that hold NaN or infinite values are named when a model is opened."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cli import app
from unboxed.errors import UnboxedWarning

SOURCE = """
import torch, unboxed as ub
from torch import nn

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("mask", torch.full((4,), -torch.inf))

    def forward(self, x):
        return self.last(self.norm(self.first(x)))

def make():
    torch.manual_seed(0)
    return Masked(), ub.Features(["a", "b", "c"])
"""


def saved(folder: Path, **faults: float) -> list[str]:
    """The model and its weights, with a value in the place of one in each tensor that is named (_ for a dot)."""
    (folder / "mine.py").write_text(SOURCE)
    scope: dict[str, Any] = {}
    exec(SOURCE, scope)
    model: nn.Module = scope["make"]()[0]
    state = model.state_dict()
    for name, value in faults.items():
        state[name.replace("_", ".", 1)].flatten()[0] = value
    torch.save(state, folder / "w.pt")
    return [f"{folder / 'mine.py'}:make", str(folder / "w.pt")]


def test_they_are_named(tmp_path: Path) -> None:
    spec = saved(tmp_path, first_bias=torch.nan, norm_running_mean=torch.nan, last_weight=torch.inf)
    with pytest.warns(UnboxedWarning) as said:
        ub.load(spec[0], spec[1], outputs="logits")
    texts = [str(w.message) for w in said]
    assert any("hold NaN values in first.bias, norm.running_mean:" in text for text in texts)
    assert any("hold infinite values in last.weight:" in text for text in texts)


def test_sound_weights_and_masks_are_not(tmp_path: Path) -> None:
    spec = saved(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ub.load(spec[0], spec[1], outputs="logits")


def test_commands_say_so(tmp_path: Path) -> None:
    model, weights = saved(tmp_path, first_bias=torch.nan)
    (tmp_path / "rows.csv").write_text("a,b,c\n1,2,3\n")
    words = ["predict", "--model", model, "--weights", weights, "--data", str(tmp_path / "rows.csv")]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(app, [*words, "--outputs", "logits"])
    assert "note: the model's weights hold NaN values in first.bias:" in done.output
    assert done.exit_code == 2
