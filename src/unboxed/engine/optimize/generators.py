"""Parameterizations by models: a generator's latent code, and images as functions of coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...model import buffer_writes, state
from ...objectives import RowIndex
from ...rng import normal
from .colors import Palette
from .parameterizations import Canvas

DecodeFn = Callable[[Tensor], Tensor]


class LatentCanvas(Canvas):
    """Images that a generator makes of codes: decode(generator(z)), of which z is optimized.

    Nguyen et al. 2016, arXiv:1605.09304, section 2. `decode` brings what the generator gives to valid inputs. The
    generator runs in eval and is left as it was; its parameters are no part of the canvas.
    """

    def __init__(self, generator: nn.Module, z: Tensor, decode: DecodeFn) -> None:
        super().__init__()
        self.z = nn.Parameter(z.detach().clone())  # (N, ...)
        self._generator_and_decode = (generator, decode)  # in a tuple, so that its parameters are not registered

    @classmethod
    def noise(cls, generator: nn.Module, like: Tensor, seed: int, decode: DecodeFn) -> LatentCanvas:
        """Standard normal codes, one sample per row, shaped like `like` (N, ...)."""
        return cls(generator, normal(like, seed), decode)

    def forward(self) -> Tensor:
        generator, decode = self._generator_and_decode
        modules = tuple(generator.modules())
        first_param = next((p for p in generator.parameters() if p.is_floating_point()), self.z)
        with ExitStack() as stack:
            stack.enter_context(state.setting_train_flags(modules, "eval"))
            stack.enter_context(buffer_writes.preserving_buffer_registration(modules))
            stack.enter_context(buffer_writes.preserving_tensor_values(tuple(generator.buffers())))
            stack.enter_context(state.forking_rngs_with_lock(0, self.z.device))
            stack.enter_context(state.combined_context(state.hook_safe_contexts(self.z.device.type)))
            output = generator(self.z.to(first_param.dtype, copy=True))  # an in-place op must not change the code
        image: Tensor = decode(output).to(self.z.dtype)
        return image

    def rows(self, index: RowIndex) -> LatentCanvas:
        return LatentCanvas(self._generator_and_decode[0], self.z[index], self._generator_and_decode[1])


class CPPN(Canvas):
    """Images as functions of coordinates: a small model per row, from coordinates to colors.

    Mordvintsev et al. 2018, "Differentiable Image Parameterizations", section "Compositional pattern producing
    networks", with its activation and its start: the last layer is zero, so all begins in the palette's mean color.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], size: tuple[int, int], palette: Palette
    ) -> None:
        super().__init__()
        self.size, self.palette = size, palette.to_like(weights[0])
        self.weights = nn.ParameterList(w.detach().clone() for w in weights)  # (N, in, out) each
        self.biases = nn.ParameterList(b.detach().clone() for b in biases)  # (N, 1, out) each

    @classmethod
    def noise(cls, like: Tensor, seed: int, palette: Palette | None = None, *, width: int = 24, depth: int = 8) -> CPPN:
        """A start with `depth` hidden layers of `width` units, one sample per row, shaped like `like` (N, C, H, W)."""
        n, c, h, w = like.shape
        layer_shapes = [(2, width), *[(2 * width, width)] * (depth - 1)]
        weight_counts = [a * b for a, b in layer_shapes]
        flat_weights = torch.split_with_sizes(normal(like.new_empty(n, sum(weight_counts)), seed), weight_counts, 1)
        weights = [d.view(n, a, b) / a**0.5 for d, (a, b) in zip(flat_weights, layer_shapes, strict=True)]
        weights.append(like.new_zeros(n, 2 * width, c))
        biases = [like.new_zeros(n, 1, v.shape[2]) for v in weights]
        return cls(weights, biases, (h, w), palette or Palette(like.new_full((c,), 0.5)))

    def forward(self) -> Tensor:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        h = pixel_coordinates(self.size, self.weights[0]).expand(len(self.weights[0]), -1, -1)  # (N, H * W, 2)
        for w, b in hidden:
            h = _odd_even_activation(h @ w + b)
        return self.palette.to_colors((h @ last[0] + last[1]).mT.unflatten(2, self.size))

    def rows(self, index: RowIndex) -> CPPN:
        return CPPN([w[index] for w in self.weights], [b[index] for b in self.biases], self.size, self.palette)

    def resized(self, height: int, width: int) -> CPPN:
        """The same images in another resolution."""
        return CPPN(list(self.weights), list(self.biases), (height, width), self.palette)


def pixel_coordinates(size: tuple[int, int], like: Tensor) -> Tensor:
    """The (x, y) of each pixel's center, (H * W, 2): of variance 1 along the longer side."""
    longer_side = max(size)
    y, x = ((2 * torch.arange(s, device=like.device, dtype=like.dtype) + 1 - s) * (3**0.5 / longer_side) for s in size)
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1).flatten(0, 1)


def _odd_even_activation(h: Tensor) -> Tensor:
    """Odd and even nonlinearities of equal variance, (N, P, C) -> (N, P, 2 C)."""
    arctan = h.atan()
    return torch.cat([arctan / 0.67, arctan * arctan / 0.6], -1)
