"""Known nonsense: methods whose maps do not say what the answer depends on. Each is `(box, x, target) -> map`.

Some know the input alone, some know how sure the model is, some show the reasons of another model or another image.
None may pass. Their truth is measured, too (`truth.energy`): what is at the cause by chance does not count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import unboxed as ub
from unboxed import rng
from unboxed.checks.edges import sobel
from unboxed.engine.randomized import randomize_all_layers

Nonsense = Callable[[ub.Box, Tensor, Any], Tensor]


def edges(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """A Sobel filter's edges of the input."""
    return sobel(x).to(x)


def the_input(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The input itself."""
    return x.clone()


def input_contrast(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The input less its own mean, in magnitude."""
    axes = tuple(range(x.ndim - 2, x.ndim)) if x.ndim == 4 else (1,)
    return (x - x.mean(axes, keepdim=True)).abs()


def noise(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Noise that is the same at each call."""
    return rng.uniform(x, 0)


def center(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """A Gaussian in the middle of the image, by which many photos are explained."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype) for n in x.shape[2:])
    bump = torch.exp(-2 * (rows[:, None] ** 2 + columns[None] ** 2))
    return bump.expand(len(x), 1, -1, -1).clone()


def edges_when_sure(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Edges wherever the model is sure, and faint noise elsewhere."""
    sure = _shaped(_confidence(box, x, None) > 0.9, x)
    return torch.where(sure, edges(box, x), 1e-6 * rng.uniform(x[:, :1], 0))


def edges_times_confidence(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Edges times the probability of the target."""
    return edges(box, x) * _shaped(_confidence(box, x, target), x)


def signed_edges(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Edges with random signs, which are the same at each call."""
    return edges(box, x) * torch.where(rng.uniform(x[:, :1], 1) < 0.5, -1.0, 1.0)


def gradient_of_random_model(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The gradient of the same architecture with random weights."""
    return _gradient(randomize_all_layers(box, 7), x, target)


def gradient_x_input_of_random_model(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Gradient x input of the same architecture with random weights."""
    return gradient_of_random_model(box, x, target) * x


def gradient_of_another_image(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The gradient maps of the batch, each given to the next image."""
    return _gradient(box, x, target).roll(1, 0)


def mean_gradient(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The mean gradient over the batch, the same for all images."""
    return _gradient(box, x, target).mean(0, keepdim=True).expand_as(x).clone()


def local_variance(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The variance of the input within a small square around each pixel."""
    side = max(3, x.shape[-1] // 9 | 1)
    mean = functools.partial(F.avg_pool2d, kernel_size=side, stride=1, padding=side // 2, count_include_pad=False)
    return (mean(x**2) - mean(x) ** 2).clamp_min(0).mean(1, keepdim=True)


def constant(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The same value everywhere."""
    return torch.ones_like(x)


def first_layer_energy(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The gradient x input of the energy of the first layer's output: what the first layer responds to."""
    layer = next(row.path for row in box.layers if row.n_parameters)

    def score(acts: Any) -> Tensor:
        h: Tensor = acts[layer]
        return h.flatten(1).pow(2).sum(1)

    with box.isolated():
        leaf = x.detach().clone().requires_grad_()
        score(box.forward(leaf, [layer])).sum().backward()
    return (leaf.grad * leaf).detach() if leaf.grad is not None else torch.zeros_like(x)


def superpixel_contrast(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """The contrast of the input, averaged over squares."""
    side = max(2, x.shape[-1] // 10)
    h = F.avg_pool2d(input_contrast(box, x).mean(1, keepdim=True), side, ceil_mode=True, count_include_pad=False)
    return F.interpolate(h, x.shape[2:], mode="nearest-exact")


def edges_times_gradient_norm(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Edges, scaled by the norm of each image's gradient: its strength follows the weights, its places the input."""
    norm = _gradient(box, x, target).flatten(1).norm(dim=1)
    return edges(box, x) * _shaped(norm, x)


FOR_IMAGES: dict[str, Nonsense] = {
    f.__name__: f
    for f in (
        edges, the_input, input_contrast, noise, center, edges_when_sure, edges_times_confidence,
        edges_times_gradient_norm, signed_edges, gradient_of_random_model, gradient_x_input_of_random_model,
        gradient_of_another_image, mean_gradient,
        local_variance, constant, first_layer_energy, superpixel_contrast,
    )
}  # fmt: skip
# The mean map and another row's are no nonsense where the same columns matter in all rows.
FOR_TABLES: dict[str, Nonsense] = {
    f.__name__: f
    for f in (
        the_input, input_contrast, noise, gradient_of_random_model, gradient_x_input_of_random_model, constant,
    )
}  # fmt: skip


def for_box(box: ub.Box) -> dict[str, Nonsense]:
    """The nonsense that inputs of this kind allow."""
    return FOR_IMAGES if isinstance(box.inputs, ub.Pixels) else FOR_TABLES


def _gradient(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    result = ub.attribution.gradient(box, x, target)
    return torch.as_tensor(getattr(result, "map", result))


def _confidence(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    """The probability (N,) of the target, or the largest one."""
    p = box.probs(x)
    if target is None or not isinstance(target, (int, Tensor)):
        return p.amax(1)
    index = torch.as_tensor(target).expand(len(x))
    return p.gather(1, index[:, None])[:, 0]


def _shaped(h: Tensor, x: Tensor) -> Tensor:
    return h.view(-1, *[1] * (x.ndim - 1))
