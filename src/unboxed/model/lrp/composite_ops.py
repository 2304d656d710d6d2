"""Normalizations and attention, decomposed into ops that have rules.

The divisor of a normalization is constant, and so are attention's weights: Ali et al. 2022,
"XAI for Transformers: Better Explanations through Conservative Propagation", arXiv:2202.07304. Relevance is then
conserved except for the share of biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_rows import AttentionCall


def _normalize_by_constant_std(x: Tensor, axes: tuple[int, ...], eps: float, center: bool = True) -> Tensor:
    """(x - mean) / std over these axes, the std (or the root of the mean square) held constant."""
    x = x - x.mean(axes, keepdim=True) if center else x
    square: Tensor = x.detach().square()
    return x / square.mean(axes, keepdim=True).add(eps).sqrt()


def affine(h: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    """h * weight + bias, either of which may be missing, broadcast by `shape`."""
    h = h if weight is None else h * weight.view(*shape)
    return h if bias is None else h + bias.view(*shape)


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any, **__: Any
) -> Tensor:
    return affine(_normalize_by_constant_std(x, tuple(range(-len(shape), 0)), eps), weight, bias, shape)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return affine(_normalize_by_constant_std(x, tuple(range(-len(shape), 0)), eps, center=False), weight, None, shape)


def group_norm(
    x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any, **__: Any
) -> Tensor:
    h = _normalize_by_constant_std(x.reshape(len(x), groups, -1), (2,), eps).reshape(x.shape)
    return affine(h, weight, bias, (1, -1, *[1] * (x.ndim - 2)))


def instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    channel_shape = (1, -1, *[1] * (x.ndim - 2))
    h = (
        _normalize_by_constant_std(x, tuple(range(2, x.ndim)), eps)
        if use_input_stats
        else (x - mean.view(channel_shape)) / (var.view(channel_shape) + eps).sqrt()
    )
    return affine(h, weight, bias, channel_shape)


def batch_norm_scale_and_shift(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C,), of batch norm as an affine map; statistics of the batch are held constant."""
    if training:
        h = x.detach().transpose(0, 1).flatten(1)
        mean, var = h.mean(1), h.var(1, correction=0)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale.detach(), (shift if bias is None else shift + bias).detach()


def glu(x: Tensor, dim: int = -1) -> Tensor:
    a, gate = x.chunk(2, dim)
    return a * gate.detach().sigmoid()


def std_or_var_mean(op_name: str, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """std_mean or var_mean."""
    reduce_fn = torch.std if op_name.startswith("std") else torch.var
    dim = kwargs.get("dim", args[0] if args and not isinstance(args[0], bool) else None)
    keepdim_kwargs = {"keepdim": kwargs["keepdim"]} if "keepdim" in kwargs and dim is not None else {}
    mean = x.mean() if dim is None else x.mean(dim, **keepdim_kwargs)
    return reduce_fn(x, *args, **kwargs), mean


def attention_weights_and_values(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """The weights (..., L, S) of an attention in elementary ops, and its values, one for each head."""
    q, k, v, mask = call.query, call.key, call.value, call.attn_mask
    if call.enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = (q * (1 / math.sqrt(q.shape[-1]) if call.scale is None else call.scale)) @ k.transpose(-1, -2)
    if call.is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1) if mask is None else _softmax_of_masked(scores)
    return torch.dropout(weights, call.dropout_p, call.dropout_p > 0), v


def _softmax_of_masked(scores: Tensor) -> Tensor:
    """The softmax over keys; zero for a query that sees none, such as padding on the left of a causal text."""
    sees_none = (scores.detach() == -math.inf).all(-1, keepdim=True)
    if not sees_none.any():
        return scores.softmax(-1)
    return scores.masked_fill(sees_none, 0).softmax(-1).masked_fill(sees_none, 0)
