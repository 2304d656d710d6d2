"""Grad-CAM, Grad-CAM++, LayerCAM, HiResCAM and Guided Grad-CAM against loops from the equations, and captum."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import awkward
import unboxed as ub
from check_each import each
from models import plain_images as images

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")  # that a row's map is blank
PLAIN = [n for n in awkward.MODELS if awkward.twin_name(n) == "plain"]
NOT = {"exported_flat", "checkpointed_reentrant"}  # without modules; without gradients


def parts(k: Tensor, layer: str = "relu2") -> tuple[Tensor, Tensor]:
    """Maps A (N, K, h, w) of `Plain` and d logit k / d A, by the chain rule."""
    model = awkward.get_model("plain", torch.float64).model
    a1 = model.conv1(awkward.GRAY_INPUTS.encode(images())).detach()
    a2 = model.conv2(a1.relu()).detach()
    g2 = model.fc.weight[k].detach().view(-1, 4, 4, 4)
    if layer == "relu2":
        return a2.relu(), g2
    g1 = F.conv_transpose2d(g2 * (a2 > 0), model.conv2.weight, stride=2, padding=1, output_padding=1)
    return a1.relu(), g1.detach()


def grad_cam(a: Tensor, g: Tensor) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, for one example (K, h, w)."""
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        alpha = sum(g[k, i, j] for i in range(a.shape[1]) for j in range(a.shape[2])) / a[0].numel()
        total += alpha * a[k]
    return total.clamp(min=0)


def grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Chattopadhyay et al. 2018: derivatives of Y = exp(S) literally, divided by exp(S) at the end, for S = 1."""
    y = torch.tensor(1.0).double().exp()
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        weight, volume = torch.tensor(0.0).double(), a[k].sum()
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                first, second, third = y * g[k, i, j], y * g[k, i, j] ** 2, y * g[k, i, j] ** 3
                if first != 0:
                    weight += second / (2 * second + volume * third) * max(first, torch.tensor(0.0))
        total += weight * a[k]
    return total.clamp(min=0) / y


def layer_cam(a: Tensor, g: Tensor) -> Tensor:
    """Jiang et al. 2021: w_kij = relu(g_kij)."""
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                total[i, j] += max(float(g[k, i, j]), 0.0) * a[k, i, j]
    return total.clamp(min=0)


def hires_cam(a: Tensor, g: Tensor) -> Tensor:
    """Draelos & Carin 2020: sum_k g_kij A_kij, with its sign."""
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                total[i, j] += g[k, i, j] * a[k, i, j]
    return total


TWINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": grad_cam, "grad_cam_plus_plus": grad_cam_plus_plus, "layer_cam": layer_cam,
    "hires_cam": hires_cam,
}  # fmt: skip


def twin(name: str, k: Tensor, layer: str, sign: float = 1) -> Tensor:
    a, g = parts(k, layer)
    return torch.stack([TWINS[name](a[n], sign * g[n]) for n in range(len(a))])[:, None]


@each(itertools.product(TWINS, ("relu1", "relu2"), (1, -1)))
def test_by_hand(name: str, layer: str, sign: float) -> None:
    k = torch.tensor([2, 0, 3])
    box = ub.Box(awkward.get_model("plain", torch.float64).model, awkward.GRAY_INPUTS)
    method = getattr(ub.attribution, name)
    want = twin(name, k, layer, sign)
    got = method(box, images(), sign * ub.logit(k), layer=layer, upsample=False)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    up = F.interpolate(want, (8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(method(box, images(), sign * ub.logit(k), layer=layer), up, rtol=1e-9, atol=1e-12)


@cache
def of_the_last_relu(name: str) -> Tensor:
    return twin(name, torch.tensor([2, 0, 3]), "relu2", -1)


@cache
def spelled(model: str) -> ub.Box:
    """A box of a spelling, opened once for all methods."""
    entry = awkward.get_model(model, torch.float64)
    return ub.Box(entry.model, entry.inputs)


@each(itertools.product(TWINS, [n for n in PLAIN if n not in NOT]))
def test_the_default_layer_in_every_spelling(name: str, model: str) -> None:
    """After the last ReLU, whatever it is: module, functional, in place, with its result ignored, clamp, scripted."""
    k = torch.tensor([2, 0, 3])
    got = getattr(ub.attribution, name)(spelled(model), images(), -ub.logit(k), upsample=False)
    want = of_the_last_relu(name)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert float(want.max()) > 0


def test_they_differ() -> None:
    k = torch.tensor([2, 0, 3])
    maps = [twin(name, k, "relu2", -1) for name in TWINS]
    for i, j in itertools.combinations(range(len(maps)), 2):
        assert not torch.allclose(maps[i], maps[j], rtol=1e-2)


@each(["conv1", "relu1", "conv2", "relu2"])
def test_captum(layer: str) -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, k = ub.Box(entry.model, entry.inputs), torch.tensor([2, 0, 3])
    peer = captum.attr.LayerGradCam(entry.model, entry.model.get_submodule(layer))
    want = peer.attribute(awkward.GRAY_INPUTS.encode(images()), target=k, relu_attributions=True).detach()
    got = ub.attribution.grad_cam(box, images(), k, layer=layer, upsample=False)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)


@each(["conv1", "relu1", "conv2", "relu2"])
def test_hires_cam_is_captums_gradient_times_activation(layer: str) -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, k = ub.Box(entry.model, entry.inputs), torch.tensor([2, 0, 3])
    peer = captum.attr.LayerGradientXActivation(entry.model, entry.model.get_submodule(layer))
    want = peer.attribute(awkward.GRAY_INPUTS.encode(images()), target=k).detach().sum(1, keepdim=True)
    got = ub.attribution.hires_cam(box, images(), k, layer=layer, upsample=False)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert float(got.min()) < 0 < float(got.max())


def test_hires_cam_sums_to_the_score_before_a_linear_layer() -> None:
    entry = awkward.get_model("plain", torch.float64)
    box, k = ub.Box(entry.model, entry.inputs), torch.tensor([2, 0, 3])
    a = ub.attribution.hires_cam(box, images(), k, upsample=False)
    assert a.score is not None
    assert torch.equal(ub.attribution.hires_cam(box, images(), k, layer=a.layer, upsample=False), a)
    assert torch.allclose(a.sum((1, 2, 3)), a.score - entry.model.fc.bias[k].detach(), rtol=1e-9)


def test_guided_grad_cam_is_the_product() -> None:
    entry = awkward.get_model("functional_relu_ignored", torch.float64)
    box, k = ub.Box(entry.model, entry.inputs), -ub.logit(torch.tensor([2, 0, 3]))
    where = F.interpolate(twin("grad_cam", torch.tensor([2, 0, 3]), "relu2", -1), (8, 8), mode="bilinear")
    want = ub.attribution.guided_backprop(box, images(), k) * where
    got = ub.attribution.guided_grad_cam(box, images(), k)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert float(got.abs().max()) > 0
