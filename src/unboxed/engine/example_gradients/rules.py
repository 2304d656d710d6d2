"""Closed forms: each example's gradient with respect to a layer's parameters, from its inputs and output gradients.

Goodfellow 2015, "Efficient Per-Example Gradient Computations", arXiv:1510.01799: linear layers. Convolutions are linear
layers of the windows that they look at: Rochette et al. 2019, arXiv:1912.06015.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .terms import (
    DenseGradients,
    EmbeddingTableGradients,
    OuterProductGradients,
    PerExampleGradients,
    to_dense_if_smaller,
)


class ClosedFormRule(NamedTuple):
    """The closed form of a type of module.

    `terms(module, N, a, d)` gives {"weight": ..., "bias": ...} from what the weights multiply, a, and the gradient of
    the output, d. The first axis of both is the batch, or N times as long, example by example. `prepare(module, input)`
    makes a, while the module runs.
    """

    terms: Callable[[Any, int, Tensor, Tensor], dict[str, PerExampleGradients]]
    prepare: Callable[[Any, Tensor], Tensor] = lambda module, a: a


def closed_form_rule_of(module: nn.Module) -> ClosedFormRule | None:
    """The closed form of a module, if there is one."""
    return next(
        (rule for types, rule in _RULE_BY_MODULE_TYPES if isinstance(module, types) and _is_rule_applicable(module)),
        None,
    )


def _is_rule_applicable(module: nn.Module) -> bool:
    """Whether an example's gradient is a function of this example alone, and weights are used as they are."""
    return not (getattr(module, "scale_grad_by_freq", False) or getattr(module, "max_norm", None))


def _linear_gradients(
    module: nn.Linear, n: int, a: Tensor, d: Tensor
) -> dict[str, PerExampleGradients]:  # (N, ..., I), (N, ..., O)
    d = d.reshape(n, -1, module.out_features)
    return {
        "weight": to_dense_if_smaller(OuterProductGradients(d, a.reshape(n, -1, module.in_features))),
        "bias": DenseGradients(d.sum(1)),
    }


def _conv_gradients(
    module: Any, n: int, a: Tensor, d: Tensor
) -> dict[str, PerExampleGradients]:  # (N, C, ...), (N, O, ...)
    patches = unfold_conv_windows(module, a)  # (N, C K, T)
    d = d.flatten(2)  # (N, O, T)
    terms: dict[str, PerExampleGradients] = {"bias": DenseGradients(d.sum(2).reshape(n, -1, d.shape[1]).sum(1))}
    if module.groups == 1:
        return terms | {
            "weight": to_dense_if_smaller(
                OuterProductGradients(_positions_to_axis_1(n, d), _positions_to_axis_1(n, patches))
            )
        }
    d, patches = (h.reshape(len(h), module.groups, -1, h.shape[2]) for h in (d, patches))  # (N, G, ..., T)
    rows = (d @ patches.mT).flatten(1)  # (N, O I)
    return terms | {"weight": DenseGradients(rows.reshape(n, -1, rows.shape[1]).sum(1))}


def _positions_to_axis_1(n: int, h: Tensor) -> Tensor:  # (N, C, T) or (N M, C, T)
    h = h.mT
    return h if len(h) == n else h.reshape(n, -1, h.shape[2])


def unfold_conv_windows(module: Any, a: Tensor) -> Tensor:
    """What a convolution multiplies by its weights at each position, (N, C K, T)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    kernel, step, gap = module.kernel_size, module.stride, module.dilation
    sides = [(s - g * (k - 1) - 1) // t + 1 for s, k, t, g in zip(a.shape[2:], kernel, step, gap, strict=True)]
    n, c, *strides = a.stride()
    stride = [
        n,
        c,
        *(s * g for s, g in zip(strides, gap, strict=True)),
        *(s * t for s, t in zip(strides, step, strict=True)),
    ]
    return a.as_strided((*a.shape[:2], *kernel, *sides), stride).reshape(len(a), a.shape[1] * prod(kernel), prod(sides))


def _embedding_gradients(
    module: nn.Embedding, n: int, a: Tensor, d: Tensor
) -> dict[str, PerExampleGradients]:  # (N, ...), (N, ..., D)
    index, d = a.reshape(n, -1), d.reshape(n, -1, module.embedding_dim)
    if module.padding_idx is not None:
        d = d * (index != module.padding_idx)[:, :, None]
    return {"weight": to_dense_if_smaller(EmbeddingTableGradients(d, index, module.num_embeddings))}


def _layer_norm_gradients(
    module: nn.LayerNorm, n: int, a: Tensor, d: Tensor
) -> dict[str, PerExampleGradients]:  # (N, ..., *shape)
    size = prod(module.normalized_shape)
    return {name: DenseGradients(g.reshape(n, -1, size).sum(1)) for name, g in {"weight": d * a, "bias": d}.items()}


def _channel_norm_gradients(module: Any, n: int, a: Tensor, d: Tensor) -> dict[str, PerExampleGradients]:  # (N, C, ...)
    sums = {name: g.reshape(*g.shape[:2], -1).sum(2) for name, g in {"weight": d * a, "bias": d}.items()}  # (N, C)
    return {name: DenseGradients(g.reshape(n, -1, g.shape[1]).sum(1)) for name, g in sums.items()}


def _layer_normalized(module: nn.LayerNorm, a: Tensor) -> Tensor:
    return F.layer_norm(a, module.normalized_shape, eps=module.eps)


def _group_normalized(module: nn.GroupNorm, a: Tensor) -> Tensor:
    return F.group_norm(a, module.num_groups, eps=module.eps)


def _batch_normalized(module: Any, a: Tensor) -> Tensor:
    mean, variance = (h.to(a) for h in (module.running_mean, module.running_var))
    return F.batch_norm(a, mean, variance, eps=module.eps)


_RULE_BY_MODULE_TYPES: tuple[tuple[Any, ClosedFormRule], ...] = (
    (nn.Linear, ClosedFormRule(_linear_gradients)),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ClosedFormRule(_conv_gradients)),
    (nn.Embedding, ClosedFormRule(_embedding_gradients)),
    (nn.LayerNorm, ClosedFormRule(_layer_norm_gradients, _layer_normalized)),
    (nn.GroupNorm, ClosedFormRule(_channel_norm_gradients, _group_normalized)),
    (nn.modules.batchnorm._BatchNorm, ClosedFormRule(_channel_norm_gradients, _batch_normalized)),
)
