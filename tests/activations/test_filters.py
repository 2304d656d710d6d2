"""Filters are the first layer's weights, whatever the model does to the pixels before it that leaves them pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import LayerError


class Behind(nn.Module):
    """A first convolution behind something, and others of as many channels."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.conv1 = before, nn.Conv2d(3, 3, 3, stride=2)
        self.conv2, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(self.before(x)).relu())
        return self.fc(h.mean((2, 3)))  # type: ignore[no-any-return]


def normalization() -> nn.Module:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.copy_(torch.tensor([-100.0, 0.0, 100.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 9.0]))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    return norm


def same(x: Tensor) -> Tensor:
    """TensorFlow's SAME, for stride 2 and a kernel of 3: one more below and to the right."""
    return F.pad(x, (0, 1, 0, 1))


KEEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "identity": nn.Identity(),
    "ZeroPad2d": nn.ZeroPad2d(3),
    "pad": lambda x: F.pad(x, (1, 2, 3, 0)),
    "same": same,
    "reflected": nn.ReflectionPad2d((2, 1, 0, 3)),
    "replicated": nn.ReplicationPad2d(1),
    "a wide pad": lambda x: F.pad(x, (9, 2, 0, 7), value=0.5),
    "normalization": normalization(),
    "mean and std": lambda x: (x - torch.tensor([9.0, 0.4, -9.0]).view(3, 1, 1)) / 0.2,
    "instance norm": nn.InstanceNorm2d(3),
    "permuted and back": lambda x: (x.permute(0, 2, 3, 1) * torch.tensor([1.0, 2.0, 3.0])).permute(0, 3, 1, 2),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "all of them": nn.Sequential(nn.Identity(), normalization(), nn.ZeroPad2d((1, 0, 2, 0))),
}


def box(before: Callable[[Tensor], Tensor]) -> ub.Box:
    return ub.Box(Behind(before), ub.Pixels((3, 9, 7), mean=0.5, std=0.25))


@pytest.mark.parametrize("before", KEEPS)
def test_the_first_convolution_is_found(before: str) -> None:
    opened = box(KEEPS[before])
    assert torch.equal(ub.activations.filters(opened).weights, opened.model.conv1.weight.detach())
    assert torch.equal(ub.activations.filters(opened, "conv1").weights, opened.model.conv1.weight.detach())


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_filters_are_in_the_order_of_the_inputs_channels(order: tuple[int, ...]) -> None:
    """A model that was trained on BGR first permutes the channels; its filters are images in RGB nevertheless."""
    opened = box(lambda x: x[:, list(order)])
    want = torch.empty(3, 3, 3, 3)
    want[:, list(order)] = opened.model.conv1.weight.detach()  # weight i is multiplied with pixel channel order[i]
    assert torch.equal(ub.activations.filters(opened).weights, want)


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "other pixels": lambda x: x.flip(3),
    "rolled": lambda x: x.roll(2, 2),
    "turned": lambda x: x.mT,
    "channels mixed": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "resized": lambda x: F.interpolate(x, scale_factor=2.0),
    "cut": lambda x: x[:, :, 2:, 2:],
}


@pytest.mark.parametrize("before", MIXES)
def test_a_layer_after_mixed_pixels_is_not_taken(before: str) -> None:
    with pytest.raises(LayerError, match="pixels"):
        ub.activations.filters(box(MIXES[before]))


@pytest.mark.parametrize("name", ["flat", "padded and flat"])
def test_a_linear_layer(name: str) -> None:
    torch.manual_seed(0)
    first = nn.Linear(63 if name == "flat" else 80, 5)
    pad = nn.Identity() if name == "flat" else nn.ZeroPad2d((0, 1, 0, 1))
    opened = ub.Box(nn.Sequential(pad, nn.Flatten(), first, nn.ReLU(), nn.Linear(5, 4)), ub.Pixels((1, 9, 7)))
    if name == "flat":
        assert torch.equal(ub.activations.filters(opened).weights, first.weight.detach().view(5, 1, 9, 7))
    else:
        with pytest.raises(LayerError):
            ub.activations.filters(opened)


def test_a_table_has_no_filters_and_is_told_what_to_use() -> None:
    """It has no pixels that a layer could take."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    box = ub.Box(model, ub.Features(tuple("abcdef")), outputs="logits")
    with pytest.raises(LayerError, match=r"this model takes a table: .* use ub\.attribution\.gradient_x_input"):
        ub.activations.filters(box)
    assert tuple(ub.attribution.gradient_x_input(box, torch.rand(2, 6)).shape) == (2, 6)
