"""Batch norm as a pure function: its new running statistics are values with a graph, not a write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MIN_BATCH_NORM_DIMS = 2  # of a batch (N, C, ...)


class PureBatchNormMode(TorchFunctionMode):
    """While open, `F.batch_norm` is differentiable with respect to its running statistics, and does not write them.

    torch writes them in place and without a graph, so that a training can't be differentiated through them, and refuses
    statistics that require a gradient in eval mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self._new_values: dict[int, Tensor] = {}  # {id of a buffer: its value after the last call}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        return self._pure_batch_norm(*args, **kwargs)

    def _pure_batch_norm(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if mean is None or var is None:
            return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
        if not training:
            return _batch_norm_by_given_statistics(x, mean, var, weight, bias, eps)
        axes = [0, *range(MIN_BATCH_NORM_DIMS, x.ndim)]
        batch_var, batch_mean = torch.var_mean(x, axes)
        for buffer, value in ((mean, batch_mean), (var, batch_var)):
            old = self._new_values.get(id(buffer), buffer)
            self._new_values[id(buffer)] = (1 - momentum) * old + momentum * value
        return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)

    def new_buffer_values(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The new values of those of these buffers that a batch norm would have written."""
        return {name: self._new_values[id(b)] for name, b in buffers.items() if id(b) in self._new_values}


def _batch_norm_by_given_statistics(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Batch norm in eval mode, of x (N, C, ...)."""
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *[1] * (x.ndim - MIN_BATCH_NORM_DIMS))
    return x * scale.reshape(shape) + shift.reshape(shape)
