"""Deep visualization: the regularizers one by one, the loop against a literal twin, and what may be asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

import awkward
import unboxed as ub
from contracts.common import make_case
from unboxed.errors import InputError, LayerError, OutputError
from unboxed.rng import normal
from unboxed.synthesis import Regularization, deep_visualization
from unboxed.synthesis.deep_visualization import DEEP_VISUALIZATION_RECIPE_BY_NAME, gaussian_blur


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("size", [(9, 14), (3, 2), (1, 30)])
def test_the_blur_is_scipys(width: float, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    want = np.stack([[gaussian_filter(c, width) for c in row] for row in x.numpy()])
    assert np.allclose(gaussian_blur(x, width).numpy(), want, rtol=0, atol=1e-12)


def literal(x: np.ndarray, grad: np.ndarray, theta: Regularization, step: int) -> np.ndarray:
    """The paper's r_theta of one image (C, H, W), as its own code does it."""
    x = x * (1 - theta.decay)
    if theta.blur_every and step % theta.blur_every == 0:
        x = np.stack([gaussian_filter(c, theta.blur_width) for c in x])
    if theta.small_norm:
        norms = np.sqrt((x**2).sum(0))
        x = x * ~(norms < np.percentile(norms, theta.small_norm))
    if theta.small_contribution:
        benefit = np.abs((grad * -x).sum(0))
        x = x * ~(benefit < np.percentile(benefit, theta.small_contribution))
    return x


ALL = Regularization(0.1, 0.7, 2, 30, 40)


@pytest.mark.parametrize(
    "recipe", [*DEEP_VISUALIZATION_RECIPE_BY_NAME, ALL], ids=[*DEEP_VISUALIZATION_RECIPE_BY_NAME, "all"]
)
def test_the_loop_is_the_papers(recipe: str | Regularization) -> None:
    """x <- r_theta(x + eta da/dx) around the mean, clipped to the range of pixels, an image at a time."""
    entry = awkward.get_model("color" if "color" in awkward.MODELS else "plain", torch.float64)
    box = ub.Box(entry.model, entry.inputs)
    theta = recipe if isinstance(recipe, Regularization) else DEEP_VISUALIZATION_RECIPE_BY_NAME[recipe].regularization
    result = deep_visualization(box, [0, 2], recipe=recipe, steps=6, step=0.05, frame_every=1)
    mean = np.broadcast_to(np.asarray(entry.inputs.mean), entry.inputs.shape[0]).reshape(-1, 1, 1)
    start = 10 / 255 * normal(torch.zeros(2, *entry.inputs.shape, dtype=torch.float64), 0).numpy()
    for i, k in enumerate((0, 2)):
        x = (mean + start[i]).clip(0, 1) - mean
        for step in range(6):
            leaf = torch.from_numpy(x + mean)[None].requires_grad_()
            (grad,) = torch.autograd.grad(entry.model(entry.inputs.encode(leaf))[0, k], leaf)
            g = grad[0].numpy()
            eta = 0.05 * np.sqrt(g.size) / np.sqrt((g**2).sum())  # a step of that root mean square
            x = (literal(x + eta * g, g, theta, step) + mean).clip(0, 1) - mean
            assert np.allclose(result.frames[step + 1, i].numpy(), x + mean, rtol=0, atol=1e-9)


def test_the_settings_are_those_of_table_1() -> None:
    table = {name: tuple(vars(r.regularization).values()) for name, r in DEEP_VISUALIZATION_RECIPE_BY_NAME.items()}
    assert table == {
        "sparse": (0, 0.5, 4, 50, 0),
        "decay": (0.3, 0, 0, 20, 0),
        "smooth": (0.0001, 1.0, 4, 0, 0),
        "focus": (0, 0.5, 4, 0, 90),
    }


def test_what_is_zeroed_is_the_mean() -> None:
    """Half of the pixels (but for the last blur) are at the data's mean color."""
    c = make_case("plain", torch.float64)
    result = deep_visualization(c.box, 0, recipe=Regularization(small_norm=50), steps=3)
    assert int((result.images == 0.4).sum()) == 32


def test_hidden_units_and_rows() -> None:
    c = make_case("plain")
    result = deep_visualization(c.box, ub.channel("conv2", torch.tensor([0, 3])), steps=3)
    assert result.images.shape == (2, 1, 8, 8)
    assert deep_visualization(c.box, ub.channel("conv2", 1), steps=3).images.shape == (1, 1, 8, 8)
    assert deep_visualization(c.box, steps=0).images.shape == (4, 1, 8, 8)
    assert (result.scores > result.history[0]).all()


def test_refusals() -> None:
    c = make_case("plain")
    table = ub.Box(torch.nn.Linear(2, 3), ub.Features(("a", "b")))
    with pytest.raises(InputError, match="images"):
        deep_visualization(table, 0)
    with pytest.raises(LayerError, match="conv1"):
        deep_visualization(c.box, ub.channel("conv9", 0))
    number = ub.Box(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1)), awkward.GRAY_INPUTS, outputs="regression"
    )
    with pytest.raises(OutputError, match="regression"):
        deep_visualization(number, 0)
    for bad in ({"small_norm": 100}, {"decay": 1.5}, {"decay": float("nan")}, {"blur_every": 1.5}, {"blur_width": -1}):
        with pytest.raises(InputError, match="must be"):
            Regularization(**bad)  # type: ignore[arg-type]
