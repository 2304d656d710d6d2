"""Layers whose weight multiplies their inputs: the gradient of each example is a sum of products.

At each position t (a token of a Linear, a place of a convolution) the layer receives a_t and the loss has the gradient
s_t with respect to what it gives; the gradient with respect to the weight is sum_t s_t a_t^T. The bias is the weight of
a constant input of 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .routes import ClosedFormRoute
from .rules import unfold_conv_windows


@dataclass(frozen=True, eq=False)
class MatrixLayer:
    """A Linear or convolution layer, its weight seen as matrices (G, O, I), one per group; I counts the bias's 1."""

    module: Any
    weight: str  # the parameters' names
    bias: str | None

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def n_groups(self) -> int:
        return 1 if isinstance(self.module, nn.Linear) else int(self.module.groups)

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """(G, O, I)."""
        weight, groups = self.module.weight, self.n_groups
        return groups, len(weight) // groups, weight[0].numel() + (self.bias is not None)

    def input_rows(self, n: int, calls: Sequence[Tensor]) -> Tensor:
        """What the weight multiplies (N, T, G, I), all calls side by side, of the module's inputs."""
        is_linear = isinstance(self.module, nn.Linear)
        parts = [h if is_linear else unfold_conv_windows(self.module, h).mT for h in calls]  # (..., I), (N, T, C K)
        rows = self._to_rows_per_group(n, parts)
        return rows if self.bias is None else F.pad(rows, (0, 1), value=1.0)

    def output_gradient_rows(self, n: int, calls: Sequence[Tensor]) -> Tensor:
        """Gradients (N, T, G, O) with respect to what the weight gives, all calls side by side."""
        axis = -1 if isinstance(self.module, nn.Linear) else 1
        return self._to_rows_per_group(n, [h.movedim(axis, -1) for h in calls])

    def to_matrices(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """The parts of vectors {name: (K, ...)} that are this layer's, (K, G, O, I)."""
        groups, n_outputs, _ = self.matrix_shape
        parts = [vectors[self.weight].reshape(-1, groups, n_outputs, self.module.weight[0].numel())]
        if self.bias is not None:
            parts.append(vectors[self.bias].reshape(-1, groups, n_outputs, 1))
        return torch.cat(parts, 3)

    def to_vectors(self, matrices: Tensor) -> dict[str, Tensor]:
        """The inverse of `to_matrices`."""
        if self.bias is None:
            return {self.weight: matrices.reshape(-1, *self.module.weight.shape)}
        weight = matrices[..., :-1].reshape(-1, *self.module.weight.shape)
        return {self.weight: weight, self.bias: matrices[..., -1].flatten(1)}

    def _to_rows_per_group(self, n: int, parts: Sequence[Tensor]) -> Tensor:
        """(N, T, G, D) of parts (..., G D) whose other axes are examples, and positions of each."""
        return torch.cat([h.reshape(n, -1, self.n_groups, h.shape[-1] // self.n_groups) for h in parts], 1)


def matrix_layers(forms: ClosedFormRoute) -> list[MatrixLayer]:
    """The Linear and convolution layers for whose weight and bias products are right, and that share neither."""
    uses = Counter(name for layer in forms.layers.values() for name in layer.names.values())
    return [
        MatrixLayer(module, names["weight"], names.get("bias"))
        for module, _, names in forms.layers.values()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and "weight" in names
        and all(uses[name] == 1 and name in forms.names for name in names.values())
    ]
