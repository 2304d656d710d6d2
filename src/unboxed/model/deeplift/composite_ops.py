"""Ops that DeepLIFT takes apart into elementwise ones and products: softmax, normalizations, attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import RuleError
from ..attention import AttentionHeads, bind_arguments, project_out, unpack_multi_head, unpack_scaled_dot_product
from .reference_run import Call, Pair, instead

Func = Callable[..., Any]


def pair_of(now: Call, then: Call, i: int = 0) -> Pair:
    return Pair(now.args[i], then.args[i])


def arguments(call: Call, names: str, **defaults: Any) -> dict[str, Any]:
    """The arguments by name, given by place or by name."""
    return {**defaults, **dict(zip(names.split(), call.args, strict=False)), **call.kwargs}


# -- softmax -----------------------------------------------------------------------------------------------------------


def softmax(z: Pair, dim: int, log: bool = False) -> Pair:
    """exp, its sum, and their quotient, each by its own rule; so the shares are complete."""
    kind = z.now.dtype
    if z.now.device.type != "mps":
        z = z.linear(lambda t: t.double())  # the two may lie far apart
    shift = torch.maximum(z.now.detach(), z.then).amax(dim, keepdim=True)
    z = z.linear(lambda t: t - shift)
    powers = z.by(torch.exp)
    total = powers.linear(lambda t: t.sum(dim, keepdim=True))
    if log:
        out = Pair(z.now - (below := total.by(torch.log)).now, z.then - below.then)
    else:
        out = powers.times(total.by(torch.reciprocal))
    return out.linear(lambda t: t.to(kind))


def of_softmax(func: Func, now: Call, then: Call, log: bool = False) -> Any:
    given = arguments(now, "input dim _stacklevel dtype", dim=-1)
    dim = given["dim"] if isinstance(given["dim"], int) else 1
    out = softmax(pair_of(now, then), dim, log).now
    value = func(*now.args, **now.kwargs).detach()
    return instead(value, out.to(value.dtype))


def of_logsumexp(func: Func, now: Call, then: Call) -> Any:
    given = arguments(now, "input dim keepdim", keepdim=False)
    z = pair_of(now, then)
    shift = torch.maximum(z.now.detach(), z.then).amax(given["dim"], keepdim=True)
    total = z.linear(lambda t: t - shift).by(torch.exp).linear(lambda t: t.sum(given["dim"], keepdim=True))
    out = total.by(torch.log).now + shift
    return out if given["keepdim"] else out.squeeze(given["dim"])


def of_cross_entropy(func: Func, now: Call, then: Call) -> Any:
    given = arguments(now, "input target weight size_average ignore_index reduce reduction label_smoothing",
                  weight=None, reduction="mean", label_smoothing=0.0)  # fmt: skip
    plain = given["weight"] is None and given["reduction"] == "none" and given["label_smoothing"] == 0.0
    if not plain or given["target"].is_floating_point():
        raise RuleError("DeepLIFT's rule for cross-entropy is for one score an example and whole classes")
    return -softmax(pair_of(now, then), 1, log=True).now.gather(1, given["target"].unsqueeze(1)).squeeze(1)


# -- normalizations ----------------------------------------------------------------------------------------------------


def _normalized(x: Pair, dims: list[int], eps: float, centered: bool = True) -> Pair:
    """(x - mean) / sqrt(var + eps): the mean is linear, the rest two elementwise ops and a product."""
    if centered:
        x = x.linear(lambda t: t - t.mean(dims, keepdim=True))
    below = x.by(torch.square).linear(lambda t: t.mean(dims, keepdim=True) + eps).by(torch.rsqrt)
    return x.times(below)


def _scaled(h: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    h = h if weight is None else h * weight.view(*shape)
    return h if bias is None else h + bias.view(*shape)


def _exactly(func: Func, now: Call, h: Tensor) -> Tensor:
    """The op's own value, on these rules."""
    with torch.no_grad():
        value: Tensor = func(*now.args, **now.kwargs)
    return instead(value, h)


def of_layer_norm(func: Func, now: Call, then: Call, centered: bool = True) -> Any:
    x = pair_of(now, then)
    names = "input normalized_shape weight bias eps" if centered else "input normalized_shape weight eps"
    given = arguments(now, names, weight=None, bias=None, eps=1e-5 if centered else None)
    shape = list(given["normalized_shape"])
    eps = torch.finfo(x.now.dtype).eps if given["eps"] is None else given["eps"]
    h = _normalized(x, [-i - 1 for i in range(len(shape))], eps, centered)
    return _exactly(func, now, _scaled(h.now, given["weight"], given["bias"], shape))


def of_group_norm(func: Func, now: Call, then: Call) -> Any:
    x, given = pair_of(now, then), arguments(now, "input num_groups weight bias eps", weight=None, bias=None, eps=1e-5)
    h = _normalized(x.linear(lambda t: t.reshape(len(t), given["num_groups"], -1)), [2], given["eps"])
    channels = [-1, *[1] * (x.now.ndim - 2)]
    return _exactly(func, now, _scaled(h.now.view_as(x.now), given["weight"], given["bias"], channels))


def of_instance_norm(func: Func, now: Call, then: Call) -> Any:
    names = "input running_mean running_var weight bias use_input_stats momentum eps"
    given = arguments(now, names, weight=None, bias=None, use_input_stats=True, eps=1e-5)
    if not given["use_input_stats"]:
        return NotImplemented
    x = pair_of(now, then)
    h = _normalized(x, list(range(2, x.now.ndim)), given["eps"])
    return _exactly(func, now, _scaled(h.now, given["weight"], given["bias"], [-1, *[1] * (x.now.ndim - 2)]))


def of_batch_norm(func: Func, now: Call, then: Call) -> Any:
    """Linear with running statistics; over the batch, a normalization that couples its rows."""
    names = "input running_mean running_var weight bias training momentum eps"
    given = arguments(now, names, running_mean=None, weight=None, bias=None, training=False, eps=1e-5)
    if not given["training"] and given["running_mean"] is not None:
        return NotImplemented
    x = pair_of(now, then)
    h = _normalized(x, [0, *range(2, x.now.ndim)], given["eps"])
    return _exactly(func, now, _scaled(h.now, given["weight"], given["bias"], [-1, *[1] * (x.now.ndim - 2)]))


def of_normalize(func: Func, now: Call, then: Call) -> Any:
    given = arguments(now, "input p dim eps", p=2.0, dim=1, eps=1e-12)
    if given["p"] != 2.0:
        raise RuleError("DeepLIFT's rule for normalize is for the Euclidean length")
    x = pair_of(now, then)
    squares = x.by(torch.square).linear(lambda t: t.sum(given["dim"], keepdim=True))
    return x.times(squares.by(lambda t: 1 / t.sqrt().clamp_min(given["eps"]))).now


def of_glu(func: Func, now: Call, then: Call) -> Any:
    dim = arguments(now, "input dim", dim=-1)["dim"]
    x = pair_of(now, then)
    return x.linear(lambda t: t.chunk(2, dim)[0]).times(x.linear(lambda t: t.chunk(2, dim)[1]).by(torch.sigmoid)).now


# -- attention ---------------------------------------------------------------------------------------------------------


def _attended(now: AttentionHeads, then: AttentionHeads) -> tuple[Pair, Pair]:
    """What the heads give, and their weights."""
    q, k, v = (Pair(getattr(now, n), getattr(then, n)) for n in "qkv")
    qk = q.times(k.linear(lambda t: t.mT), torch.matmul)
    weights = softmax(Pair(now.logits(qk.now), then.logits(qk.then)), -1)
    return weights.times(v, torch.matmul), weights


def of_multi_head_attention(func: Func, now: Call, then: Call) -> Any:
    call, before = bind_arguments(now.args, now.kwargs), bind_arguments(then.args, then.kwargs)
    out, weights = _attended(unpack_multi_head(call), unpack_multi_head(before))
    with torch.no_grad():
        value, seen = func(*now.args, **now.kwargs)
    if seen is not None:
        w = weights.now.mean(1) if call["average_attn_weights"] else weights.now
        seen = instead(seen, w.view_as(seen))
    return instead(value, project_out(call, out.now)), seen


def of_scaled_dot_product_attention(func: Func, now: Call, then: Call) -> Any:
    heads = (unpack_scaled_dot_product(*c.args, **c.kwargs) for c in (now, then))
    return _exactly(func, now, _attended(*heads)[0].now)
