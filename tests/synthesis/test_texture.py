"""Texture and style: the loss against the papers' equations, and what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.common import make_case
from models import uniform as images
from unboxed.errors import InputError, LayerError
from unboxed.synthesis import style_transfer, texture

LAYERS = ("input", "conv1", "relu2")


def units(box: ub.Box, layer: str, x: Tensor) -> np.ndarray:
    """F^l of one image: (N_l channels, M_l positions)."""
    h = x if layer == "input" else box.read(x, layer)[layer]
    return h[0].flatten(1).numpy()


def texture_loss(box: ub.Box, x: Tensor, image: Tensor, layers: tuple[str, ...]) -> float:
    """The papers' sum of w_l E_l (eq. 3 and 4), w_l one over E_l of an image that excites nothing, over the layers."""
    total = 0.0
    for layer in layers:
        f, p = units(box, layer, image), units(box, layer, x)
        n, m = f.shape
        g = [[sum(f[i, k] * f[j, k] for k in range(m)) for j in range(n)] for i in range(n)]
        a = [[sum(p[i, k] * p[j, k] for k in range(m)) for j in range(n)] for i in range(n)]
        e = sum((g[i][j] - a[i][j]) ** 2 for i in range(n) for j in range(n)) / (4 * n**2 * m**2)
        rest = sum(a[i][j] ** 2 for i in range(n) for j in range(n)) / (4 * n**2 * m**2)
        total += e / rest / len(layers)
    return total


def test_the_texture_loss_is_the_papers() -> None:
    c = make_case("plain", torch.float64)
    result = texture(c.box, c.x, LAYERS, steps=2)
    for i in range(3):
        want = -texture_loss(c.box, c.x[i : i + 1], result.images[i : i + 1], LAYERS)
        assert result.scores[i].item() == pytest.approx(want, rel=1e-9)


def test_the_style_loss_is_the_papers() -> None:
    """L = alpha L_content + beta L_style (eq. 7), L_content relative to |P|^2; one style image for all."""
    c = make_case("plain", torch.float64)
    style = images(1, 1, 8, 8)
    result = style_transfer(c.box, c.x, style, layers=LAYERS, content_layer="conv2", content_weight=0.3, steps=2)
    for i in range(3):
        f, p = (units(c.box, "conv2", v[i : i + 1]) for v in (result.images, c.x))
        content = ((f - p) ** 2).sum() / (p**2).sum()
        want = -texture_loss(c.box, style, result.images[i : i + 1], LAYERS) - 0.3 * content
        assert result.scores[i].item() == pytest.approx(want, rel=1e-9)


def test_an_image_has_its_own_texture() -> None:
    c = make_case("plain", torch.float64)
    result = style_transfer(c.box, c.x, c.x, layers=LAYERS, steps=0)
    assert result.scores.abs().max() < 1e-12


def test_the_texture_is_reached() -> None:
    c = make_case("plain", torch.float64)
    result = texture(c.box, c.x, LAYERS, steps=150, smooth=0)
    assert (result.scores > 0.2 * result.history[0]).all()
    assert (result.scores > -0.01).all()
    assert (result.images - c.x).abs().mean() > 0.05  # and it is not the image


def test_a_texture_has_no_positions() -> None:
    """Gram matrices of the pixels don't change when these are shuffled."""
    c = make_case("plain", torch.float64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = c.x.flatten(2)[..., order].view_as(c.x)
    a, b = (texture(c.box, x, "input", steps=3, smooth=0) for x in (c.x, shuffled))
    assert torch.allclose(a.scores, b.scores, atol=1e-12)


def test_images_of_other_sizes() -> None:
    c = make_case("plain", torch.float64)
    x, style = images(1, 1, 12, 9), images(1, 1, 7, 16, seed=2)
    assert texture(c.box, x, LAYERS, steps=1).images.shape == x.shape
    assert style_transfer(c.box, x, style, layers=LAYERS, content_layer="conv2", steps=1).images.shape == x.shape
    for work in (
        lambda: texture(c.box, x, ["logits"]),
        lambda: style_transfer(c.box, x, style, content_layer="fc"),
        lambda: style_transfer(c.box, c.x, style, layers=["fc"]),
    ):
        with pytest.raises(InputError, match="takes no images of"):
            work()


def test_smoothness_is_a_prior() -> None:
    c = make_case("plain", torch.float64)
    rough, smooth = (texture(c.box, c.x, LAYERS, steps=40, smooth=w).images.diff(dim=3).abs().mean() for w in (0, 50))
    assert smooth < 0.7 * rough


def test_a_layer_of_zeros_has_no_weight() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dead = nn.Conv2d(1, 2, 3)
        nn.init.zeros_(dead.weight)
        nn.init.zeros_(dead.bias)
        box = ub.Box(nn.Sequential(dead, nn.Flatten(), nn.Linear(72, 3)), awkward.GRAY_INPUTS)
    result = texture(box, torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), ["input", "0"], steps=3)
    assert torch.isfinite(result.history).all()


def test_refusals() -> None:
    c = make_case("plain")
    table = ub.Box(nn.Linear(2, 3), ub.Features(("a", "b")))
    for work in (lambda: texture(table, torch.zeros(1, 2)), lambda: style_transfer(table, c.x, c.x)):
        with pytest.raises(InputError, match="images"):
            work()
    with pytest.raises(InputError, match="one style image, or one for each of 3"):
        style_transfer(c.box, c.x, c.x[:2])
    with pytest.raises(InputError, match="layers must name a layer"):
        texture(c.box, c.x, [])
    flat = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), awkward.GRAY_INPUTS)
    with pytest.raises(LayerError, match="positions"):
        texture(flat, c.x)


@pytest.mark.parametrize("shape", [(1, 24), (24, 1)])
def test_strips_have_positions(shape: tuple[int, int]) -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    box, x = ub.Box(nn.Sequential(*layers).eval(), ub.Pixels((1, *shape))), torch.rand(2, 1, *shape)
    for result in (texture(box, x, steps=2), style_transfer(box, x, x[:1], steps=2)):
        assert result.images.shape == x.shape
        assert torch.isfinite(result.history).all()


def test_a_single_pixel_has_a_texture() -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    box = ub.Box(nn.Sequential(*layers).eval(), awkward.GRAY_INPUTS)
    result = texture(box, torch.full((2, 1, 1, 1), 0.3), ["input", "0"], steps=3)
    assert torch.isfinite(result.history).all()
    assert torch.isfinite(result.images).all()
