"""Where the units of a layer are: models of tokens, channels-last blocks, and what the report says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.activations import statistics
from unboxed.engine.read.channel_axes import channels_first_layers
from unboxed.errors import LayerError
from unboxed.report import report
from unboxed.report.channels import SECTION as CHANNELS
from unboxed.report.units import SECTION as UNITS

PIXELS = ub.Pixels((1, 8, 8), mean=0.4, std=0.5)


class Permute(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXt(nn.Module):
    """A block of ConvNeXt between its stem and its head."""

    def __init__(self, width: int, stride: int = 2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, stride, stride), LayerNorm2d(width)
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), Permute(0, 2, 3, 1), nn.LayerNorm(width),
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), Permute(0, 3, 1, 2),
        )  # fmt: skip
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x))
        return self.fc(self.drop(h + self.block(h)).mean((2, 3)))


class Recurrent(nn.Module):
    """Reads the image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.act, self.fc = nn.LSTM(8, 5, batch_first=True), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.rnn(x[:, 0])[0])[:, -1])


def box(model: nn.Module, classes: str | None = None) -> ub.Box:
    return ub.Box(model.eval(), PIXELS, classes=classes and list(classes))


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(1)


def test_channels_last_layers_and_what_follows_them_are_left_out() -> None:
    assert [r.path for r in channels_first_layers(box(ConvNeXt(6)))] == ["stem", "norm", "block.0", "drop", "fc"]
    alike = [
        r.path for r in channels_first_layers(box(ConvNeXt(8, 1)))
    ]  # as many channels as rows: what follows can't be told
    assert alike == ["stem", "norm", "block.0", "fc"]
    assert [r.path for r in channels_first_layers(box(Recurrent()))] == ["fc"]


def test_a_plain_model_is_left_whole() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    found = box(nn.Sequential(*layers))
    assert tuple(channels_first_layers(found)) == found.layers.leaves


def test_the_default_layers_have_their_units_on_the_axis_asked_for() -> None:
    found = box(Recurrent())
    assert [s.path for s in statistics(found, images())] == ["fc"]
    assert [len(s.dead) for s in statistics(found, images(), axis=-1)] == [5, 3]
    tokens = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 4), nn.Dropout(0.1))
    with pytest.raises(LayerError, match="give axis=-1"):
        statistics(box(tokens, "abcd"), images())


@pytest.mark.parametrize(("model", "count"), [(ConvNeXt(6), 6), (Recurrent(), 3)], ids=["convnext", "rnn"])
def test_the_report_speaks_of_true_channels(model: nn.Module, count: int, tmp_path: Path) -> None:
    written = report(box(model), images(24), tmp_path, sections=[UNITS, CHANNELS], quiet=True)
    assert written.failures == {}
    page = written.path.read_text()
    assert f"{count} units" in page
    assert "8 units" not in page
    assert "4 units" not in page
