"""Vector-Jacobian products for many vectors at once, through a graph that was made before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def batched_vjp(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients (K, ...) of the inputs for K vectors (K, ...) per output; zeros where none reaches an input.

    Raises RuntimeError where an operation has no rule for many at once: see `vjp_one_by_one`.
    """
    reached = list[bool]()

    def vjp(*single: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(outputs, inputs, single, retain_graph=True, allow_unused=True)
        reached[:] = [g is not None for g in grads]
        return tuple(g for g in grads if g is not None)

    # torch.func's own: `is_grads_batched` takes an older one, which does more operations one after another
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        used = iter(torch.func.vmap(vjp)(*vectors))
    n = len(vectors[0])
    return [next(used) if hit else i.new_zeros(n, *i.shape) for i, hit in zip(inputs, reached, strict=True)]


def vjp_one_by_one(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """What `batched_vjp` gives, of one vector after another."""
    rows = [
        torch.autograd.grad(outputs, inputs, single, retain_graph=True, allow_unused=True, materialize_grads=True)
        for single in zip(*vectors, strict=True)
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]
