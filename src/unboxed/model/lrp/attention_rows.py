"""Attention whose backward pass computes the weights again, some queries at a time.

A layer of T tokens has (heads, T, T) weights, and its rules keep about ten such matrices. Kept here are queries, keys
and values alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import RuleError
from .autograd_functions import activation_annotation_of, annotate_activation, with_backward_rule

MAX_WEIGHTS_AT_ONCE = 2**20
"""Of all examples and heads; 4 MB in single precision. Of a few times fewer or more the time is the same."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of `F.scaled_dot_product_attention`."""

    query: Tensor  # (..., L, d)
    key: Tensor  # (..., S, d)
    value: Tensor  # (..., S, e)
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"query": self.query, "key": self.key, "value": self.value, "attn_mask": self.attn_mask}
        return {name: t for name, t in tensors.items() if t is not None}

    def with_constant_weights(self) -> AttentionCall:
        mask = None if self.attn_mask is None else self.attn_mask.detach()
        return replace(self, query=self.query.detach(), key=self.key.detach(), attn_mask=mask)

    def rows(self, start: int, stop: int) -> AttentionCall:
        """The same of the queries from `start` to `stop`: a causal mask hides all keys after the last of them."""
        query, key, value, mask = rows_of(self.query, start, stop), self.key, self.value, self.attn_mask
        if self.is_causal:
            key, value = rows_of(key, 0, stop), rows_of(value, 0, stop)
            positions = torch.arange(max(stop, key.shape[-2]), device=query.device)
            mask = positions[: key.shape[-2]] <= positions[start:stop, None]
        elif mask is not None and mask.shape[-2] > 1:
            mask = rows_of(mask, start, stop)
        return replace(self, query=query, key=key, value=value, attn_mask=mask, is_causal=False)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The first query and the one after the last of each block, the last block first.

        Of a causal mask it has most keys, so that the next blocks fit into the memory that it leaves.
        """
        n_queries = self.query.shape[-2]
        per_query = math.prod(self.query.shape[:-2]) * self.key.shape[-2]
        size = max(1, MAX_WEIGHTS_AT_ONCE // max(1, per_query))
        return ((start, min(start + size, n_queries)) for start in reversed(range(0, n_queries, size)))


def rows_of(t: Tensor, start: int, stop: int) -> Tensor:
    """These rows of (..., L, d), which are a gate's where t is one."""
    rows = t[..., start:stop, :]
    return annotate_activation(rows, gate_rank=activation_annotation_of(t).gate_rank) if t.requires_grad else rows


def attend_by_rows(call: AttentionCall, out: Tensor, attend: Callable[[AttentionCall], Tensor]) -> Tensor:
    """The output of a call, as a function of the tensors that it was computed from.

    Its backward pass runs `attend`, which computes a call of some queries in ops that have rules.
    """
    tensors = call.tensors()
    variables = {name: t for name, t in tensors.items() if t.requires_grad}
    ranks = {name: activation_annotation_of(t).gate_rank for name, t in variables.items()}
    kept: dict[str, Any] = {
        name: t.detach() if name == "attn_mask" else t.detach().clone() for name, t in tensors.items()
    }
    mask_version = _version_of(call.attn_mask)

    def backward_rule(c: Tensor) -> list[Tensor]:
        if _version_of(call.attn_mask) != mask_version:
            raise RuleError("LRP can't follow attention whose mask is written over after it was used; copy the mask")
        leaves: dict[str, Any] = {
            name: annotate_activation(kept[name].requires_grad_(), gate_rank=ranks[name]) for name in variables
        }
        sums = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for start, stop in call.blocks():
            with torch.enable_grad():
                block = attend(replace(call, **{**kept, **leaves}).rows(start, stop))
            grads = torch.autograd.grad(
                block, [*leaves.values()], c[..., start:stop, :].to(block.dtype), materialize_grads=True
            )
            for total, grad in zip(sums, grads, strict=True):
                total += grad
        return sums

    return with_backward_rule(out.detach(), backward_rule, *variables.values())


def _version_of(mask: Tensor | None) -> int:
    """How often the mask was written over; one made in inference_mode does not count."""
    return 0 if mask is None or mask.is_inference() else mask._version
