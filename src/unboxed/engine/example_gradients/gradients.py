"""Per-example gradients: one row per example over the parameters of a choice of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...box import Box
from ...errors import LayerError
from .losses import ExampleLoss, loss_address, resolve_loss

Parameters = Mapping[str, Tensor]


class ExampleGradients:
    """Gradients of each example's loss with respect to a model's parameters.

    Args:
        box: The opened model.
        layers: Modules whose parameters are meant. None: all parameters that require a gradient; where none does, all.
        loss: (outputs, labels) -> losses (N,). None: the one that fits `box.outputs`.
    """

    def __init__(self, box: Box, layers: Sequence[str] | str | None = None, loss: ExampleLoss | None = None) -> None:
        self.box, self.loss = box, resolve_loss(box, loss)
        self.parameters = _chosen_parameters(box, layers)  # {name: tensor}, without a graph
        self._forward = _BoxForward(box)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def losses(self, x: Tensor, y: Tensor, parameters: Parameters | None = None) -> Tensor:
        """Losses (N,) of a batch, with a graph into `parameters`, inside `box.isolated()`."""
        replaced = {f"model.{name}": p for name, p in (parameters or self.parameters).items()}
        return self.loss(functional_call(self._forward, replaced, (x,)), y)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradients (N, P) of each example's loss, all parameters side by side."""
        return torch.stack([self._row(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])

    def dot(self, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
        """Inner products (N1, N2) of the gradients of two batches."""
        return self.matrix(x1, y1) @ self.matrix(x2, y2).T

    def project(self, vectors: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Inner products (K, N) of vectors {name: (K, ...)} with each example's gradient."""
        return self.flatten(vectors) @ self.matrix(x, y).T

    def mean(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The gradient {name: tensor} of the mean loss of a batch."""
        parameters = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        with self.box.isolated():
            grads = torch.autograd.grad(
                self.losses(x, y, parameters).mean(), list(parameters.values()), materialize_grads=True
            )
        return dict(zip(parameters, grads, strict=True))

    def flatten(self, vectors: Parameters) -> Tensor:
        """Vectors {name: (K, ...)} side by side, (K, P)."""
        return torch.cat([vectors[name].flatten(1) for name in self.parameters], 1)

    def unflatten(self, matrix: Tensor) -> dict[str, Tensor]:
        """The inverse of `flatten`."""
        parts = torch.split(matrix, [p.numel() for p in self.parameters.values()], 1)
        return {n: part.reshape(-1, *p.shape) for (n, p), part in zip(self.parameters.items(), parts, strict=True)}

    def _row(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in self.mean(x, y).values()])


class _BoxForward(nn.Module):
    """The logits of a box, as a module whose parameters `functional_call` can replace."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.model = box.model
        self._box = [box]  # in a list: no attribute of a module

    def forward(self, x: Tensor) -> Tensor:
        address = loss_address(self._box[0])
        return self._box[0].forward(x, [address])[address]


def _chosen_parameters(box: Box, layers: Sequence[str] | str | None) -> dict[str, Tensor]:
    parameters = {n: p for n, p in box.model.named_parameters() if p.is_floating_point()}
    if layers is not None:
        names = [layers] if isinstance(layers, str) else list(layers)
        prefixes = tuple(f"{box.layers.resolve(name)}." for name in names)
        parameters = {n: p for n, p in parameters.items() if n.startswith(prefixes)}
    chosen = {n: p.detach() for n, p in parameters.items() if p.requires_grad}
    if chosen := chosen or {n: p.detach() for n, p in parameters.items()}:
        return chosen
    where = "the model has" if layers is None else f"{', '.join(names)} have"
    raise LayerError(f"{where} no parameters, so that there are no gradients of them")
