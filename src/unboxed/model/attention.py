"""Attention: torch's fused calls written as projections, one softmax and two products; and capturing its maps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LayerError, RuleError
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


def unpack_fused_attention(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionHeads | None:
    """The heads of a fused call, by the op's plain name; None for other ops."""
    unpackers: dict[str, Callable[[], AttentionHeads]] = {
        "multi_head_attention_forward": lambda: unpack_multi_head(bind_multi_head_arguments(args, kwargs)),
        "scaled_dot_product_attention": lambda: unpack_scaled_dot_product(*args, **kwargs),
    }
    return unpackers[name]() if name in unpackers else None


# -- its maps ----------------------------------------------------------------------------------------------------------

OnAttentionFn = Callable[[Tensor], None]


@contextmanager
def capturing_attention(n: int, on_attention: OnAttentionFn) -> Iterator[None]:
    """While open, call `on_attention` with each layer's attention of n examples, (n, heads, T, T), rows summing to one.

    Captured are nn.MultiheadAttention and F.multi_head_attention_forward, F.scaled_dot_product_attention, and a softmax
    over the last axis of (..., T, T). Raises LayerError for attention inside windows of an example.
    """

    def report_attention_of_op(
        name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with torch.no_grad():
            if (heads := unpack_fused_attention(name, args, kwargs)) is not None:
                _call_with_self_attention(heads.weights(), n, on_attention)
            elif name == "softmax" and _is_softmax_over_last_axis(args, kwargs):
                out = func(*args, **kwargs)
                _call_with_self_attention(out.detach(), n, on_attention)
                return out
        return NotImplemented

    with OpReplacementMode(report_attention_of_op):
        yield


def _is_softmax_over_last_axis(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    z = args[0] if args else kwargs.get("input")
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return isinstance(z, Tensor) and z.ndim >= 3 and isinstance(dim, int) and dim in (-1, z.ndim - 1)


def _call_with_self_attention(weights: Tensor, n_examples: int, on_attention: OnAttentionFn) -> None:
    """Report square maps (n, heads, T, T), also where examples and heads share an axis; skip cross-attention."""
    if weights.shape[-1] != weights.shape[-2] or weights.shape[-1] < 2:
        return
    tokens = weights.shape[-1]
    if weights.ndim > 3 and len(weights) != n_examples:
        raise LayerError(
            f"attention over {len(weights)} windows of {tokens} tokens for {n_examples} examples: rollout is for "
            "attention of all tokens to all"
        )
    if weights.ndim == 3 and len(weights) % n_examples:
        return
    on_attention(weights.reshape(n_examples, -1, tokens, tokens))
