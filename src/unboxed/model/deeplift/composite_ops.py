"""Ops that DeepLIFT decomposes into elementwise ops and products: softmax, normalizations, attention."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...errors import RuleError
from ..attention import (
    AttentionHeads,
    apply_output_projection,
    bind_multi_head_arguments,
    unpack_multi_head,
    unpack_scaled_dot_product,
)
from ..lrp.composite_ops import affine
from .reference_run import ActivationPair, OpCall, with_gradient_of

Func = Callable[..., Any]


def activation_pair_of_argument(x_call: OpCall, ref_call: OpCall, arg_index: int = 0) -> ActivationPair:
    return ActivationPair(x_call.args[arg_index], ref_call.args[arg_index])


def arguments_by_name(call: OpCall, names: str, **defaults: Any) -> SimpleNamespace:
    """The arguments by name, however they were passed."""
    return SimpleNamespace(**defaults | dict(zip(names.split(), call.args, strict=False)) | call.kwargs)


# -- softmax -----------------------------------------------------------------------------------------------------------


def softmax_pair(z: ActivationPair, dim: int, log: bool = False) -> ActivationPair:
    """exp, its sum, and their quotient, each by its own rule, so that completeness holds."""
    dtype = z.x.dtype
    if z.x.device.type != "mps":
        z = z.apply_affine_function(lambda t: t.double())  # the two may differ much
    shift = torch.maximum(z.x.detach(), z.ref).amax(dim, keepdim=True)
    z = z.apply_affine_function(lambda t: t - shift)
    exps = z.apply_elementwise(torch.exp)
    total = exps.apply_affine_function(lambda t: t.sum(dim, keepdim=True))
    if log:
        out = ActivationPair(z.x - (log_total := total.apply_elementwise(torch.log)).x, z.ref - log_total.ref)
    else:
        out = exps.multiply(total.apply_elementwise(torch.reciprocal))
    return out.apply_affine_function(lambda t: t.to(dtype))


def softmax_rule(func: Func, x_call: OpCall, ref_call: OpCall, log: bool = False) -> Any:
    settings = arguments_by_name(x_call, "input dim _stacklevel dtype", dim=-1)
    dim = settings.dim if isinstance(settings.dim, int) else 1
    out = softmax_pair(activation_pair_of_argument(x_call, ref_call), dim, log).x
    value = func(*x_call.args, **x_call.kwargs).detach()
    return with_gradient_of(value, out.to(value.dtype))


def logsumexp_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    settings = arguments_by_name(x_call, "input dim keepdim", keepdim=False)
    z = activation_pair_of_argument(x_call, ref_call)
    shift = torch.maximum(z.x.detach(), z.ref).amax(settings.dim, keepdim=True)
    total = (
        z.apply_affine_function(lambda t: t - shift)
        .apply_elementwise(torch.exp)
        .apply_affine_function(lambda t: t.sum(settings.dim, keepdim=True))
    )
    out = total.apply_elementwise(torch.log).x + shift
    return out if settings.keepdim else out.squeeze(settings.dim)


def cross_entropy_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    settings = arguments_by_name(
        x_call,
        "input target weight size_average ignore_index reduce reduction label_smoothing",
        weight=None,
        reduction="mean",
        label_smoothing=0.0,
    )
    is_plain = settings.weight is None and settings.reduction == "none" and settings.label_smoothing == 0.0
    if not is_plain or settings.target.is_floating_point():
        raise RuleError("DeepLIFT's rule for cross-entropy needs reduction='none' and class numbers as targets")
    return (
        -softmax_pair(activation_pair_of_argument(x_call, ref_call), 1, log=True)
        .x.gather(1, settings.target.unsqueeze(1))
        .squeeze(1)
    )


# -- normalizations ----------------------------------------------------------------------------------------------------


def _normalize_pair(x: ActivationPair, dims: list[int], eps: float, centered: bool = True) -> ActivationPair:
    """(x - mean) / sqrt(var + eps): the mean is linear, the rest two elementwise ops and a product."""
    if centered:
        x = x.apply_affine_function(lambda t: t - t.mean(dims, keepdim=True))
    inverse_std = (
        x.apply_elementwise(torch.square)
        .apply_affine_function(lambda t: t.mean(dims, keepdim=True) + eps)
        .apply_elementwise(torch.rsqrt)
    )
    return x.multiply(inverse_std)


def _op_output_with_gradient_of(func: Func, x_call: OpCall, h: Tensor) -> Tensor:
    """The op's own value, with the gradient of h."""
    with torch.no_grad():
        value: Tensor = func(*x_call.args, **x_call.kwargs)
    return with_gradient_of(value, h)


def layer_norm_rule(func: Func, x_call: OpCall, ref_call: OpCall, centered: bool = True) -> Any:
    x = activation_pair_of_argument(x_call, ref_call)
    names = "input normalized_shape weight bias eps" if centered else "input normalized_shape weight eps"
    settings = arguments_by_name(x_call, names, weight=None, bias=None, eps=1e-5 if centered else None)
    shape = list(settings.normalized_shape)
    eps = torch.finfo(x.x.dtype).eps if settings.eps is None else settings.eps
    h = _normalize_pair(x, [-i - 1 for i in range(len(shape))], eps, centered)
    return _op_output_with_gradient_of(func, x_call, affine(h.x, settings.weight, settings.bias, shape))


def group_norm_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    x = activation_pair_of_argument(x_call, ref_call)
    settings = arguments_by_name(x_call, "input num_groups weight bias eps", weight=None, bias=None, eps=1e-5)
    h = _normalize_pair(
        x.apply_affine_function(lambda t: t.reshape(len(t), settings.num_groups, -1)), [2], settings.eps
    )
    channels = [-1, *[1] * (x.x.ndim - 2)]
    return _op_output_with_gradient_of(func, x_call, affine(h.x.view_as(x.x), settings.weight, settings.bias, channels))


def instance_norm_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    names = "input running_mean running_var weight bias use_input_stats momentum eps"
    settings = arguments_by_name(x_call, names, weight=None, bias=None, use_input_stats=True, eps=1e-5)
    if not settings.use_input_stats:
        return NotImplemented
    x = activation_pair_of_argument(x_call, ref_call)
    h = _normalize_pair(x, list(range(2, x.x.ndim)), settings.eps)
    return _op_output_with_gradient_of(
        func, x_call, affine(h.x, settings.weight, settings.bias, [-1, *[1] * (x.x.ndim - 2)])
    )


def batch_norm_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    """Linear with running statistics; with batch statistics, a normalization over the batch."""
    names = "input running_mean running_var weight bias training momentum eps"
    settings = arguments_by_name(x_call, names, running_mean=None, weight=None, bias=None, training=False, eps=1e-5)
    if not settings.training and settings.running_mean is not None:
        return NotImplemented
    x = activation_pair_of_argument(x_call, ref_call)
    h = _normalize_pair(x, [0, *range(2, x.x.ndim)], settings.eps)
    return _op_output_with_gradient_of(
        func, x_call, affine(h.x, settings.weight, settings.bias, [-1, *[1] * (x.x.ndim - 2)])
    )


def normalize_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    settings = arguments_by_name(x_call, "input p dim eps", p=2.0, dim=1, eps=1e-12)
    if settings.p != 2.0:
        raise RuleError("DeepLIFT's rule for normalize is for the Euclidean length")
    x = activation_pair_of_argument(x_call, ref_call)
    squares = x.apply_elementwise(torch.square).apply_affine_function(lambda t: t.sum(settings.dim, keepdim=True))
    return x.multiply(squares.apply_elementwise(lambda t: 1 / t.sqrt().clamp_min(settings.eps))).x


def glu_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    dim = arguments_by_name(x_call, "input dim", dim=-1).dim
    x = activation_pair_of_argument(x_call, ref_call)
    return (
        x.apply_affine_function(lambda t: t.chunk(2, dim)[0])
        .multiply(x.apply_affine_function(lambda t: t.chunk(2, dim)[1]).apply_elementwise(torch.sigmoid))
        .x
    )


# -- attention ---------------------------------------------------------------------------------------------------------


def _attention_output_and_weights(
    x_heads: AttentionHeads, ref_heads: AttentionHeads
) -> tuple[ActivationPair, ActivationPair]:
    """The output of the heads, and their weights."""
    q, k, v = (ActivationPair(getattr(x_heads, n), getattr(ref_heads, n)) for n in "qkv")
    qk = q.multiply(k.apply_affine_function(lambda t: t.mT), torch.matmul)
    weights = softmax_pair(ActivationPair(x_heads.logits(qk.x), ref_heads.logits(qk.ref)), -1)
    return weights.multiply(v, torch.matmul), weights


def multi_head_attention_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    x_arguments = bind_multi_head_arguments(x_call.args, x_call.kwargs)
    ref_arguments = bind_multi_head_arguments(ref_call.args, ref_call.kwargs)
    out, weights = _attention_output_and_weights(unpack_multi_head(x_arguments), unpack_multi_head(ref_arguments))
    with torch.no_grad():
        value, attn_weights = func(*x_call.args, **x_call.kwargs)
    if attn_weights is not None:
        w = weights.x.mean(1) if x_arguments["average_attn_weights"] else weights.x
        attn_weights = with_gradient_of(attn_weights, w.view_as(attn_weights))
    return with_gradient_of(value, apply_output_projection(x_arguments, out.x)), attn_weights


def scaled_dot_product_attention_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    heads = (unpack_scaled_dot_product(*c.args, **c.kwargs) for c in (x_call, ref_call))
    return _op_output_with_gradient_of(func, x_call, _attention_output_and_weights(*heads)[0].x)
