"""Canvases that are models: a generator's latent code, and images as functions of coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...model import buffer_writes, state
from ...objectives import Index
from ...rng import normal
from .colors import Palette
from .constraints import TINY, Constraint, length, per_row
from .parameterizations import Canvas

Decode = Callable[[Tensor], Tensor]


class Latent(Canvas):
    """Images that a generator makes of codes: decode(generator(z)), of which z is optimized.

    Nguyen et al. 2016, arXiv:1605.09304, section 2. `decode` brings what the generator gives to valid inputs. The
    generator runs in eval and is left as it was; its parameters are no part of the canvas.
    """

    def __init__(self, generator: nn.Module, z: Tensor, decode: Decode) -> None:
        super().__init__()
        self.z = nn.Parameter(z.detach().clone())  # (N, ...)
        self._by = (generator, decode)  # in a tuple, where its parameters are not found

    @classmethod
    def noise(cls, generator: nn.Module, like: Tensor, seed: int, decode: Decode) -> Latent:
        """Standard normal codes, one draw a row, shaped like `like` (N, ...)."""
        return cls(generator, normal(like, seed), decode)

    def forward(self) -> Tensor:
        generator, decode = self._by
        modules = tuple(generator.modules())
        first = next((p for p in generator.parameters() if p.is_floating_point()), self.z)
        with ExitStack() as stack:
            stack.enter_context(state.flags(modules, "eval"))
            stack.enter_context(buffer_writes.buffers_in_place(modules))
            stack.enter_context(buffer_writes.restored(tuple(generator.buffers())))
            stack.enter_context(state.seeded(0, self.z.device))
            stack.enter_context(state.all_of(state.own_settings(self.z.device)))
            made = generator(self.z.to(first.dtype, copy=True))  # a first op in place would write over the code
        image: Tensor = decode(made).to(self.z.dtype)
        return image

    def rows(self, index: Index) -> Latent:
        return Latent(self._by[0], self.z[index], self._by[1])


def on_shell(z: Tensor, centre: Tensor | None) -> Tensor:
    """Codes (N, ...) brought to the length that normal draws have, sqrt(D): a generator knows no others."""
    return z * per_row(z[0].numel() ** 0.5 / length(z).clamp_min(TINY), z)


SHELL = Constraint(project=on_shell)
"""Keeps a `Latent` canvas among the codes that its generator was trained on."""


class CPPN(Canvas):
    """Images as functions of coordinates: a small model for each row, from a pixel's place to its color.

    Mordvintsev et al. 2018, "Differentiable Image Parameterizations", section "Compositional pattern producing
    networks", with its activation and its start: the last layer is zero, so all begins in the palette's mean color.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], size: tuple[int, int], palette: Palette
    ) -> None:
        super().__init__()
        self.size, self.palette = size, palette.beside(weights[0])
        self.weights = nn.ParameterList(w.detach().clone() for w in weights)  # (N, in, out) each
        self.biases = nn.ParameterList(b.detach().clone() for b in biases)  # (N, 1, out) each

    @classmethod
    def noise(cls, like: Tensor, seed: int, palette: Palette | None = None, *, width: int = 24, depth: int = 8) -> CPPN:
        """A start with `depth` hidden layers of `width` units, one draw a row, for images like `like` (N, C, H, W)."""
        n, c, h, w = like.shape
        sides = [(2, width), *[(2 * width, width)] * (depth - 1)]
        counts = [a * b for a, b in sides]
        drawn = torch.split_with_sizes(normal(like.new_empty(n, sum(counts)), seed), counts, 1)
        weights = [d.view(n, a, b) / a**0.5 for d, (a, b) in zip(drawn, sides, strict=True)]
        weights.append(like.new_zeros(n, 2 * width, c))
        biases = [like.new_zeros(n, 1, v.shape[2]) for v in weights]
        return cls(weights, biases, (h, w), palette or Palette(like.new_full((c,), 0.5)))

    def forward(self) -> Tensor:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        h = places(self.size, self.weights[0]).expand(len(self.weights[0]), -1, -1)  # (N, H * W, 2)
        for w, b in hidden:
            h = _composite(h @ w + b)
        return self.palette.paint((h @ last[0] + last[1]).mT.unflatten(2, self.size))

    def rows(self, index: Index) -> CPPN:
        return CPPN([w[index] for w in self.weights], [b[index] for b in self.biases], self.size, self.palette)

    def sized(self, height: int, width: int) -> CPPN:
        """The same pictures with other numbers of pixels."""
        return CPPN(list(self.weights), list(self.biases), (height, width), self.palette)


def places(size: tuple[int, int], like: Tensor) -> Tensor:
    """The (x, y) of each pixel's center, (H * W, 2): of variance 1 along the longer side."""
    most = max(size)
    y, x = ((2 * torch.arange(s, device=like.device, dtype=like.dtype) + 1 - s) * (3**0.5 / most) for s in size)
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1).flatten(0, 1)


def _composite(h: Tensor) -> Tensor:
    """Odd and even bends of equal size, (N, P, C) -> (N, P, 2 C)."""
    bent = h.atan()
    return torch.cat([bent / 0.67, bent * bent / 0.6], -1)
