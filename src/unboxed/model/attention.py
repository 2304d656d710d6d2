"""Attention: torch's fused calls written as projections, one softmax and two products; and capturing its maps."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import HeadOrderUnknownError, LayerError, RuleError
from .hooks import tracking_running_modules
from .op_mode import OpReplacementMode

_MHA_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


@dataclass(frozen=True, eq=False)
class AttentionHeads:
    """out = softmax(q k^T scale + mask) v, for each example and head."""

    q: Tensor  # (..., L, d)
    k: Tensor  # (..., S, d)
    v: Tensor  # (..., S, e)
    mask: Tensor | None  # added to (..., L, S)
    scale: float

    def logits(self, qk: Tensor) -> Tensor:
        """q k^T scaled and masked."""
        z = qk * self.scale
        return z if self.mask is None else z + self.mask.to(z.dtype)

    def weights(self) -> Tensor:
        """Attention weights (..., L, S); rows sum to one."""
        return self.logits(self.q @ self.k.mT).softmax(-1)


def bind_multi_head_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of F.multi_head_attention_forward by name."""
    call = _MHA_SIGNATURE.bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


def unpack_multi_head(call: Mapping[str, Any]) -> AttentionHeads:
    """The heads (N, H, L, d) of F.multi_head_attention_forward. Raises RuleError for its rare settings."""
    unsupported = [s for s in ("bias_k", "bias_v", "static_k", "static_v") if call[s] is not None]
    unsupported += ["add_zero_attn"] * bool(call["add_zero_attn"])
    unsupported += ["dropout"] * bool(call["training"] and call["dropout_p"] > 0)
    if unsupported:
        raise RuleError(f"attention with {', '.join(unsupported)} is not supported")
    x = [call[name] if call["query"].ndim == 3 else call[name].unsqueeze(1) for name in ("query", "key", "value")]
    q, k, v = (
        _split_heads(F.linear(h, w, b), call["num_heads"])
        for h, (w, b) in zip(x, _qkv_projection_weights(call), strict=True)
    )
    return AttentionHeads(q, k, v, _multi_head_additive_mask(call, q, k), 1 / math.sqrt(q.shape[-1]))


def apply_output_projection(call: Mapping[str, Any], out: Tensor) -> Tensor:
    """The output projection of the heads (N, H, L, d): (L, N, E), or (L, E) for one example."""
    h = F.linear(out.permute(2, 0, 1, 3).flatten(2), call["out_proj_weight"], call["out_proj_bias"])
    return h if call["query"].ndim == 3 else h.squeeze(1)


def _split_heads(h: Tensor, n_heads: int) -> Tensor:
    """(N, H, L, d) of (L, N, E)."""
    return h.reshape(h.shape[0], h.shape[1], n_heads, -1).permute(1, 2, 0, 3)


def _qkv_projection_weights(call: Mapping[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    is_separate = call["use_separate_proj_weight"]
    weights = [call[name] for name in names] if is_separate else call["in_proj_weight"].chunk(3)
    biases = call["in_proj_bias"].chunk(3) if call["in_proj_bias"] is not None else (None,) * 3
    return list(zip(weights, biases, strict=True))


def _multi_head_additive_mask(call: Mapping[str, Any], q: Tensor, k: Tensor) -> Tensor | None:
    """The mask added to the logits (N, H, L, S); a boolean True excludes a key here."""
    mask, padding, total = call["attn_mask"], call["key_padding_mask"], None
    if mask is not None:
        mask = mask if mask.ndim == 2 else mask.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        total = _bool_to_additive_mask(mask, q)
    if padding is not None:
        padding = _bool_to_additive_mask(padding if padding.ndim == 2 else padding[None], q)[:, None, None]
        total = padding if total is None else total + padding
    return total


def _bool_to_additive_mask(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def unpack_scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionHeads:
    """The heads of F.scaled_dot_product_attention. Raises RuleError for dropout."""
    if dropout_p > 0:
        raise RuleError("attention with dropout is not supported")
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = _bool_to_additive_mask(~attn_mask, query)  # a boolean True includes a key here
    return AttentionHeads(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)


# -- its maps ----------------------------------------------------------------------------------------------------------

OnAttentionFn = Callable[[str, Tensor], Tensor | None]
"""Called with the path of the module that attends, and its attention (n, heads, T, T); may return another one."""


@contextmanager
def capturing_attention(
    modules: Mapping[str, nn.Module],
    n: int,
    on_attention: OnAttentionFn,
    *,
    n_tokens: int | None = None,
    differentiable: bool = False,
    heads_first: Mapping[str, bool] | None = None,
) -> Iterator[None]:
    """While open, call `on_attention` with each layer's attention of n examples, (n, heads, T, T), rows summing to one.

    Captured are nn.MultiheadAttention and F.multi_head_attention_forward, F.scaled_dot_product_attention, and a softmax
    over the last axis of (..., T, T), T being `n_tokens` where that is known. The model goes on with its own, fused
    ops; `differentiable`: with the same in plain ops, so that its output depends on the maps, or on what is returned in
    their place. `heads_first` says of paths whether heads come before examples (`finding_head_orders`). Raises
    LayerError for attention inside windows of an example, and for fused ops of other kinds, whose maps would be
    missing; HeadOrderUnknownError for maps whose order `heads_first` should say.
    """

    def report(path: str, weights: Tensor) -> Tensor:
        """Report weights; gives those that the model goes on with, which depend on what was reported."""
        if not _is_map_of_tokens(weights, n_tokens) or not _is_map_of_examples(weights, n, path):
            return weights
        size = weights.shape[-1]
        is_heads_first = _is_head_axis_ambiguous(weights, n) and _look_up_heads_first(path, heads_first or {})
        maps = weights.view(-1, n, size, size).transpose(0, 1) if is_heads_first else weights.reshape(n, -1, size, size)
        changed = on_attention(path, maps if differentiable else maps.detach())
        maps = maps if changed is None else changed
        return (maps.transpose(0, 1) if is_heads_first else maps).reshape(weights.shape)

    with _intercepting_attention(modules, report, differentiable):
        yield


@contextmanager
def _intercepting_attention(
    modules: Mapping[str, nn.Module], report_at: Callable[[str, Tensor], Tensor], differentiable: bool = False
) -> Iterator[None]:
    """While open, call `report_at` with the path and the weights of each op that attends, as the op has them."""
    with tracking_running_modules(modules) as running:

        def report(weights: Tensor) -> Tensor:
            return report_at(running[-1] if running else "", weights)

        def report_attention_of_op(
            name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if name == "softmax" and _is_softmax_over_last_axis(args, kwargs):
                return report(func(*args, **kwargs))
            if name in FUSED_ATTENTION_OPS:
                with nullcontext() if differentiable else torch.no_grad():
                    return _report_fused_attention(name, args, kwargs, report, differentiable)
            if _is_opaque_attention(name):
                raise LayerError(
                    f"{running[-1] if running else 'the model'!r} attends by {name}, which shows no weights; load the "
                    'model with attn_implementation="sdpa" or "eager"'
                )
            return NotImplemented

        with OpReplacementMode(report_attention_of_op):
            yield


FUSED_ATTENTION_OPS = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention"})
OPAQUE_ATTENTION_OP_PATTERN = re.compile(
    r"(flash|flex|efficient|fused|cudnn|varlen).*(attn|attention)|memory_efficient"
)
"""Names of other ops that attend, of which nothing but their output is seen."""


def _is_opaque_attention(name: str) -> bool:
    return OPAQUE_ATTENTION_OP_PATTERN.search(name) is not None


def _report_fused_attention(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    report: Callable[[Tensor], Tensor],
    differentiable: bool,
) -> Any:
    """Report the weights of a fused call; its output in plain ops where it is to depend on them."""
    call = bind_multi_head_arguments(args, kwargs) if name == "multi_head_attention_forward" else None
    heads = unpack_scaled_dot_product(*args, **kwargs) if call is None else unpack_multi_head(call)
    weights = report(heads.weights())
    if not differentiable:
        return NotImplemented
    out = weights @ heads.v
    if call is None:
        return out
    shown = weights.mean(1) if call["average_attn_weights"] else weights
    shown = shown if call["query"].ndim == 3 else shown[0]
    return apply_output_projection(call, out), (shown if call["need_weights"] else None)


def _is_softmax_over_last_axis(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    z = args[0] if args else kwargs.get("input")
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return isinstance(z, Tensor) and z.ndim >= 3 and isinstance(dim, int) and dim in (-1, z.ndim - 1)


def _is_map_of_tokens(weights: Tensor, n_tokens: int | None) -> bool:
    size, is_square = weights.shape[-1], weights.shape[-1] == weights.shape[-2]
    return is_square and (size > 1 if n_tokens is None else size == n_tokens)


def _is_map_of_examples(weights: Tensor, n: int, path: str) -> bool:
    """Whether maps (..., T, T) can be those of n examples. Raises LayerError for windows of them."""
    if weights.ndim > 3 and len(weights) != n:
        raise LayerError(
            f"{path!r} attends in {len(weights)} windows of {weights.shape[-1]} tokens for {n} examples; wanted "
            "attention of all tokens to all"
        )
    return len(weights) % n == 0


# -- the order of examples and heads -----------------------------------------------------------------------------------


def _is_head_axis_ambiguous(weights: Tensor, n: int) -> bool:
    """Whether maps (n * heads, T, T), or (n, heads, T, T) of as many heads, may as well have the heads first."""
    return n > 1 and (len(weights) > n if weights.ndim == 3 else weights.ndim == 4 and weights.shape[1] == n)


def _look_up_heads_first(path: str, heads_first: Mapping[str, bool]) -> bool:
    if path not in heads_first:
        raise HeadOrderUnknownError(f"{path!r} attends for examples and heads in an order that can't be told")
    return heads_first[path]


@contextmanager
def finding_head_orders(modules: Mapping[str, nn.Module], n: int, n_tokens: int | None) -> Iterator[dict[str, bool]]:
    """While open, and the model runs for n copies of one example, find whether heads come before examples, by path.

    Copies attend alike, so that of (n * heads, T, T) either each n-th map is the same or each block of them.
    """
    heads_first: dict[str, bool] = {}

    def compare(path: str, weights: Tensor) -> Tensor:
        if _is_map_of_tokens(weights, n_tokens) and weights.ndim in (3, 4):
            flat = weights.detach().flatten(0, -3)  # (n * heads, T, T)
            if len(flat) % n == 0 and len(flat) > n:
                heads_first[path] = _has_heads_first(flat, n, path)
        return weights

    with _intercepting_attention(modules, compare):
        yield heads_first


def _has_heads_first(maps: Tensor, n: int, path: str) -> bool:
    """Whether maps (n * heads, T, T) of n copies of an example have the heads first. Raises LayerError if neither."""
    size = maps.shape[-1]
    by_example, by_head = maps.reshape(n, -1, size, size), maps.reshape(-1, n, size, size)
    off_by_example, off_by_head = (by_example - by_example[:1]).abs().max(), (by_head - by_head[:, :1]).abs().max()
    if float(torch.minimum(off_by_example, off_by_head)) > math.sqrt(torch.finfo(maps.dtype).eps):
        raise LayerError(f"{path!r} attends differently for copies of an example, so that its maps can't be told apart")
    return bool(off_by_head < off_by_example)
