"""What is particular to class activation maps: which layer, which grid, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from models import seeded
from unboxed.engine.gradients.score import gradients
from unboxed.engine.read.position_grids import token_grid
from unboxed.errors import InputError, LayerError, UnboxedWarning

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")  # that a row's map is blank
COLOR = ub.Pixels((3, 16, 8))


def cam(box: ub.Box, x: Tensor, target: Any = 0, **more: Any) -> Tensor:
    return ub.attribution.layer_cam(box, x, target, upsample=False, **more)  # of the four, the least often blank


def images(n: int = 2) -> Tensor:
    return torch.rand(n, *COLOR.shape, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Blocks that end with a functional ReLU of a sum, and one ReLU module for all of a block, as many ResNets do."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(4)

        def forward(self, h: Tensor) -> Tensor:
            return self.relu(self.bn(self.conv(self.relu(h))) + h)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Sequential(self.Block(), self.Block())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


def test_a_residual_block_is_read_after_its_sum() -> None:
    box, x = ub.Box(seeded(Residual), COLOR), images()
    assert torch.equal(cam(box, x), cam(box, x, layer="layer"))
    assert not torch.allclose(cam(box, x), cam(box, x, layer="layer.1.bn"))
    assert cam(box, x).shape == (2, 1, 8, 4)


def test_pooling_and_dropout_are_passed_over() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(84, 3)
    model = nn.Sequential(*layers).double().eval()
    box = ub.Box(model, COLOR)
    assert torch.equal(cam(box, images()), cam(box, images(), layer="1"))


def test_a_hidden_unit_is_explained_by_layers_below_it() -> None:
    c = make_case("plain", torch.float64)
    unit = ub.channel("conv2", 1)
    assert torch.equal(cam(c.box, c.x, unit), cam(c.box, c.x, unit, layer="relu1"))
    f = make_case("functional_relu", torch.float64)
    assert torch.equal(cam(f.box, f.x, ub.channel(":relu#1", 1)), cam(c.box, c.x, ub.channel("relu2", 1)))
    assert torch.equal(cam(f.box, f.x, ub.channel(":relu#1", 1), layer=":relu#0"),
                       cam(c.box, c.x, ub.channel("relu2", 1), layer="relu1"))  # fmt: skip


class Gated(nn.Module):
    """A spatial gate last: the convolution that runs last makes the gate, which has one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 1, 7, padding=3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        self.last = h * self.gate(h).sigmoid()
        return self.fc(self.last.mean((2, 3)))


class Inline(nn.Module):
    """A residual sum written in the forward: the convolution that runs last is a branch of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        self.last = h + self.branch(h)
        return self.fc(self.last.mean((2, 3)))


class Block(nn.Module):
    """As in ConvNeXt: linear layers over the last axis, a scale, and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.wide = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6, 12)
        self.narrow, self.gamma = nn.Linear(12, 6), nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(x).permute(0, 2, 3, 1)
        h = self.gamma * self.narrow(torch.nn.functional.gelu(self.wide(h)))
        return x + h.permute(0, 3, 1, 2)


class Modern(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = nn.Conv2d(3, 6, 2, 2), nn.Sequential(Block(), Block()), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.blocks(self.stem(x))
        return self.fc(self.last.mean((2, 3)))


class TwoHeads(nn.Module):
    """The head that runs last is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.last = self.stem(x).relu()
        return {"main": self.fc(self.last.mean((2, 3))), "aux": self.aux(self.last).mean((2, 3))}


@pytest.mark.parametrize("build", [Gated, Inline, Modern, TwoHeads])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_last_map_that_all_of_the_score_passes_through(build: type[nn.Module], k: int) -> None:
    """Grad-CAM by hand, at the map that the model itself pools, up to what the score's scale is."""
    box = ub.Box(seeded(build), COLOR, output="main" if build is TwoHeads else None)
    x = images().double()
    z = box.model(COLOR.encode(x))
    score = (z["main"] if isinstance(z, dict) else z)[:, k].sum()
    (grad,) = torch.autograd.grad(score, box.model.last)
    want = (grad.mean((2, 3), keepdim=True) * box.model.last).sum(1, keepdim=True).relu().detach()
    got = ub.attribution.grad_cam(box, x, k, upsample=False)
    assert torch.allclose(got, want, atol=1e-12)


def test_a_model_with_a_scripted_part_is_reported_or_right() -> None:
    """Whatever the scripted part shows in one forward and not in another."""
    c = make_case("scripted_part", torch.float64)
    found = [either(c) for _ in range(3)]
    made = [m for m in found if isinstance(m, Tensor)]
    assert all(torch.equal(m, made[0]) for m in made)
    assert all("layer=" in m for m in found if isinstance(m, str))


def either(c: Any) -> Tensor | str:
    try:
        return cam(c.box, c.x)
    except LayerError as error:
        return str(error)


def test_which_call() -> None:
    """A module called twice: of the last call by default where it is the last; else each by its own address."""
    c, plain = make_case("relu_called_twice", torch.float64), make_case("plain", torch.float64)
    assert torch.allclose(cam(c.box, c.x, layer="relu1#0"), cam(plain.box, c.x, layer="relu1"))
    assert torch.allclose(cam(c.box, c.x, layer="relu1#1"), cam(plain.box, c.x, layer="relu2"))
    with pytest.raises(LayerError, match="relu1#1"):
        cam(c.box, c.x, layer="relu1")


def test_a_relu_in_place_afterwards_does_no_harm() -> None:
    """The maps are the layer's own, not what a later op wrote over them."""
    plain, over = make_case("plain", torch.float64), make_case("functional_relu_ignored", torch.float64)
    of = {"target": -ub.logit(0), "upsample": False}
    want = ub.attribution.grad_cam(plain.box, plain.x, layer="conv2", **of)
    assert torch.equal(ub.attribution.grad_cam(over.box, over.x, layer="conv2", **of), want)
    assert not torch.allclose(want, ub.attribution.grad_cam(plain.box, plain.x, layer="relu2", **of))


def test_memory_format_changes_nothing() -> None:
    first, last = make_case("color", torch.float64), make_case("channels_last", torch.float64)
    assert torch.allclose(cam(first.box, first.x), cam(last.box, last.x), rtol=1e-9)


@pytest.mark.parametrize("mode", [True, False])
def test_the_training_flag_is_left(mode: bool) -> None:
    c = make_case("plain")
    c.box.model.train(mode)
    cam(c.box, c.x)
    assert c.box.model.training is mode


def test_the_backward_pass_ends_at_the_layer() -> None:
    """And the forward at the score: below and above nothing is asked for."""
    met: list[str] = []
    c = make_case("plain")
    for name in ("conv1", "relu2"):
        c.box.model.get_submodule(name).register_full_backward_hook(lambda m, i, o, name=name: met.append(name))
    cam(c.box, c.x, layer="conv2")
    assert met == ["relu2"]


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "layer_cam", "guided_grad_cam"])
def test_no_positions_no_map(name: str) -> None:
    method = getattr(ub.attribution, name)
    c = make_case("mlp")
    with pytest.raises(LayerError, match="positions"):
        method(c.box, c.x, 0)
    c = make_case("plain")
    with pytest.raises(LayerError, match="'conv2', 'relu2'"):
        method(c.box, c.x, 0, layer="fc")
    table = ub.Box(seeded(nn.Linear, 3, 2).float(), ub.Features(("a", "b", "c")), outputs="logits")
    with pytest.raises(InputError, match="image"):
        method(table, torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), 0)


def test_upsample_is_a_flag() -> None:
    c = make_case("plain")
    with pytest.raises(InputError, match="upsample"):
        ub.attribution.grad_cam(c.box, c.x, upsample="bilinear")


def test_a_blank_map_is_reported() -> None:
    c = make_case("plain")
    with torch.no_grad():
        c.box.model.fc.weight.abs_().neg_()
    with pytest.warns(UnboxedWarning, match="zero everywhere for 3 of 3"):
        made = ub.attribution.grad_cam(c.box, c.x, 0)
    assert not made.any()


# ---- tokens ----------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A small ViT on 16 x 8 images in 4 x 4 patches: a class token, or the mean of all; written by hand."""

    def __init__(self, class_token: bool, by_conv: bool) -> None:
        super().__init__()
        self.class_token, self.by_conv = class_token, by_conv
        self.embed = nn.Conv2d(3, 8, 4, stride=4) if by_conv else nn.Linear(48, 8)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(0.3 * torch.randn(1, 9, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.blocks, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 4, stride=4).mT
        h = self.embed(x).flatten(2).mT if self.by_conv else self.embed(patches)
        h = h + self.place[:, 1:]
        if self.class_token:
            h = torch.cat([self.token.expand(len(x), -1, -1), h], 1)
        h = self.norm(self.blocks(h))
        return self.fc(h[:, 0] if self.class_token else h.mean(1))


@pytest.mark.parametrize("by_conv", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_are_laid_on_their_grid(class_token: bool, by_conv: bool) -> None:
    """Of the last tokens that patches have a say in: behind the last attention only the class token has one."""
    box, x = ub.Box(seeded(Tokens, class_token, by_conv), COLOR, outputs="logits"), images()
    where = "blocks.layers.1.norm1" if class_token else "norm"
    got = cam(box, x)
    assert got.shape == (2, 1, 4, 2)
    assert got.abs().max() > 0
    assert torch.equal(got, cam(box, x, layer=where))
    h, g = box.read(x, where)[where], gradients(box, ub.logit(0), x, wrt=where).map
    h, g = (t[:, -8:].mT.reshape(2, 8, 4, 2) for t in (h, g))
    assert torch.allclose(got, (g.clamp(min=0) * h).sum(1, keepdim=True).clamp(min=0))


def test_grids_of_tokens() -> None:
    """Recognized by square patches, with a class token or without, or by the map that was cut; else not."""
    box = ub.Box(seeded(Residual), COLOR)
    found = {t: token_grid(box, t) for t in (8, 9, 32, 33, 7, 128)}
    assert {t: (g.size, g.n_extra_tokens) if g else None for t, g in found.items()} == {
        8: ((4, 2), 0), 9: ((4, 2), 1), 32: ((8, 4), 0), 33: ((8, 4), 1), 7: None, 128: None,
    }  # fmt: skip
    cut = token_grid(box, 13, (4, 2))
    assert cut is not None
    assert (cut.size, cut.n_extra_tokens) == ((4, 2), 5)
    assert token_grid(box, 7, (4, 2)) is None
