"""Receptive fields: against hand arithmetic, against brute force, and on models that make probing hard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.activations import receptive_field
from unboxed.errors import InputError, LayerError

Span = tuple[int, int]


def opened(*layers: nn.Module, side: tuple[int, int] = (24, 18)) -> ub.Box:
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()  # those it was made with may be dead
    body = nn.Sequential(*layers)
    out = body(torch.rand(1, 1, *side)).flatten(1).shape[1]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(out, 3)).eval()
    return ub.Box(model, ub.Pixels((1, *side)))


def by_hand(steps: list[tuple[int, int, int, int]], side: int) -> list[Span]:
    """Positions' spans of input, weight by weight, from (kernel, stride, padding, dilation) of each layer."""
    seen = [{i} for i in range(side)]
    for kernel, stride, padding, dilation in steps:
        n = (len(seen) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        taps = [[p * stride - padding + k * dilation for k in range(kernel)] for p in range(n)]
        seen = [set().union(*(seen[t] for t in some if 0 <= t < len(seen))) for some in taps]
    return [(min(s), max(s) + 1) for s in seen]


STACKS: dict[str, list[tuple[nn.Module, tuple[int, int, int, int] | None]]] = {
    "a convolution": [(nn.Conv2d(1, 2, 3), (3, 1, 0, 1))],
    "padded": [(nn.Conv2d(1, 2, 5, padding=2), (5, 1, 2, 1))],
    "strided": [(nn.Conv2d(1, 2, 4, stride=2, padding=1), (4, 2, 1, 1))],
    "dilated": [(nn.Conv2d(1, 2, 3, dilation=3, padding=3), (3, 1, 3, 3))],
    "pooled": [
        (nn.Conv2d(1, 2, 3), (3, 1, 0, 1)),
        (nn.ReLU(), None),
        (nn.MaxPool2d(2), (2, 2, 0, 1)),
        (nn.Conv2d(2, 3, 3), (3, 1, 0, 1)),
        (nn.ReLU6(), None),
        (nn.AvgPool2d(3, stride=2, padding=1), (3, 2, 1, 1)),
    ],
    "deep": [
        (nn.Conv2d(1, 2, 3, stride=2, padding=1), (3, 2, 1, 1)),
        (nn.BatchNorm2d(2), None),
        (nn.GELU(), None),
        (nn.Conv2d(2, 2, 3, dilation=2, padding=2, groups=2), (3, 1, 2, 2)),
        (nn.MaxPool2d(3, stride=2, padding=1), (3, 2, 1, 1)),
    ],
}


@pytest.mark.parametrize("name", STACKS)
def test_hand_arithmetic(name: str) -> None:
    layers, steps = [m for m, _ in STACKS[name]], [s for _, s in STACKS[name] if s]
    field = receptive_field(opened(*layers), str(len(layers) - 1))
    rows, columns = by_hand(steps, 24), by_hand(steps, 18)
    want = [[[t, left, b, right] for left, right in columns] for t, b in rows]
    assert field.probe == "NaN"
    assert field.bounds.tolist() == want


def test_the_central_size_and_stride() -> None:
    field = receptive_field(opened(*(m for m, _ in STACKS["pooled"])), "5")
    assert field.size == (12, 12)
    assert field.stride == (4, 4)
    top, left, bottom, right = field.bounds_at(torch.tensor([1, 2])).tolist()
    x = torch.rand(3, 1, 24, 18)
    assert torch.equal(field.patch(x, (1, 2)), x[:, :, top:bottom, left:right])


def brute(box: ub.Box, path: str) -> Tensor:
    """Change every pixel by itself: the bounds of those that changed a position, (h, w, 4)."""
    x = torch.rand(1, *box.inputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    base = box.read(x, path)[path][0]
    hits = torch.zeros(*base.shape[1:], *x.shape[2:], dtype=torch.bool)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            y = x.clone()
            y[..., i, j] = 1 - y[..., i, j]
            hits[..., i, j] = (box.read(y, path)[path][0] != base).any(0)
    rows, columns = hits.any(-1), hits.any(-2)
    ends = [[h.int().argmax(-1), h.shape[-1] - h.flip(-1).int().argmax(-1)] for h in (rows, columns)]
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], -1)


def smooth(side: tuple[int, int] = (8, 6)) -> ub.Box:
    """No max and no ReLU, so that every pixel in a field makes a difference."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 2)]
    out = nn.Sequential(*body)(torch.rand(1, 1, *side)).numel()
    return ub.Box(nn.Sequential(*body, nn.Flatten(), nn.Linear(out, 3)).double().eval(), ub.Pixels((1, *side)))


@pytest.mark.parametrize("path", ["0", "2", "3"])
def test_brute_force(path: str) -> None:
    box = smooth()
    assert torch.equal(receptive_field(box, path).bounds, brute(box, path))


def test_wider_bands_round_up() -> None:
    box = opened(*(m for m, _ in STACKS["pooled"]))
    fine, coarse = (receptive_field(box, "5", resolution=s).bounds for s in (1, 5))
    low, high = fine[..., :2], fine[..., 2:]
    assert torch.equal(coarse[..., :2], low - low % 5)
    assert torch.equal(coarse[..., 2:], torch.minimum(high + -high % 5, torch.tensor([24, 18])))


class Masked(nn.Module):
    """A ReLU that swallows NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


class Skipped(nn.Module):
    """NaN passes one branch and is replaced on the one with the wider field."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mask = nn.Conv2d(1, 1, 5, padding=2), Masked()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mask(self.conv(x) + 2)


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise ValueError("NaN in the input")
        return x


@pytest.mark.parametrize("odd", [Masked, Skipped, Refuses])
def test_models_that_drop_or_refuse_nan(odd: type[nn.Module]) -> None:
    field = receptive_field(opened(odd(), nn.Conv2d(1, 2, 3)), "1")
    want = receptive_field(
        opened(nn.Conv2d(1, 1, 5, padding=2) if odd is Skipped else nn.Identity(), nn.Conv2d(1, 2, 3)), "1"
    )
    assert field.probe == "differences"
    assert torch.equal(field.bounds, want.bounds)


def test_layers_with_a_global_field() -> None:
    entry = awkward.get_model("transformer")
    box = ub.Box(entry.model, entry.inputs)
    whole = torch.tensor([0, 0, 8, 8])
    for path in ("fc", "mixer.layers.0", "logits"):
        field = receptive_field(box, path)
        assert bool((field.bounds == whole).all())
    tokens = receptive_field(box, "embed")
    assert tokens.size == (4, 4)
    assert tokens.stride == (4, 4)
    assert receptive_field(box, "mixer.layers.0", axis=-1).bounds.shape == (4, 4)  # the tokens are positions
    assert receptive_field(box, "fc").bounds.shape == (4,)
    assert receptive_field(box, "fc").stride == (0, 0)


def test_a_position_of_padding_alone_has_an_empty_field() -> None:
    box = opened(nn.ZeroPad2d(4), nn.Conv2d(1, 2, 3))
    field = receptive_field(box, "1")
    assert field.bounds[0, 0].tolist() == [0, 0, 0, 0]
    assert field.bounds[2, 2].tolist() == [0, 0, 1, 1]
    assert field.probe == "NaN"


def test_batch_statistics_have_a_global_field() -> None:
    entry = awkward.get_model("batchnorm_without_statistics")
    field = receptive_field(ub.Box(entry.model, entry.inputs), "norm")
    assert bool((field.bounds == torch.tensor([0, 0, 8, 8])).all())


def test_refusals() -> None:
    box = smooth()
    with pytest.raises(InputError, match="resolution"):
        receptive_field(box, "0", resolution=0)
    with pytest.raises(LayerError, match="did you mean"):
        receptive_field(box, "conv")
    with pytest.raises(LayerError, match="axis"):
        receptive_field(box, "0", axis=0)
    table = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c")))
    with pytest.raises(InputError, match="a receptive field needs"):
        receptive_field(table, "logits")


def test_the_callers_kernel_settings_are_restored() -> None:
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
    receptive_field(smooth(), "0")
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark) == before


class MaskedConv(nn.Conv2d):
    """PixelCNN's: its field is above and to the left."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(3, 3)
        mask[1, 2] = mask[2] = 0
        return nn.functional.conv2d(x, self.weight * mask, self.bias, padding=1)


class Causal(nn.Module):
    """Rows of pixels attend to the rows before."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x[:, 0]).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mT


def dirac() -> nn.Module:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.dirac_(conv.weight)
    return conv


UPSAMPLED = nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear"))
ZEROS = {"a mask": lambda: MaskedConv(1, 2, 3), "causal": Causal, "dirac": dirac, "upsampled": lambda: UPSAMPLED}


@pytest.mark.parametrize("name", ZEROS)
def test_a_weight_of_zero_passes_nan_only(name: str) -> None:
    """0 * NaN is NaN."""
    torch.manual_seed(0)
    odd = ZEROS[name]()
    out = odd(torch.rand(1, 1, 8, 6)).numel()
    box = ub.Box(nn.Sequential(odd, nn.Flatten(), nn.Linear(out, 3)).double().eval(), ub.Pixels((1, 8, 6)))
    field = receptive_field(box, "0")
    assert field.probe == "differences"
    assert torch.equal(field.bounds, brute(box, "0"))


def test_noise_is_no_evidence_about_a_dead_layer() -> None:
    conv = nn.Conv2d(1, 2, 3)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, -1e6)
    field = receptive_field(opened(conv, nn.ReLU()), "1")
    assert field.probe == "NaN"
    assert field.size == (3, 3)
