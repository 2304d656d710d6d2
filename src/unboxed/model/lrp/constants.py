"""What an op gives where its variables are zero: the part of its output that belongs to constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..hooks import tensors_in
from .arguments import Args, Func, Kwargs, call_with_replaced_tensors
from .ledger import Kind, Report, relevance_of
from .op_rules import CONCATENATION_OPS

ADDING_OPS = frozenset({"add", "sub", "subtract", "radd", "rsub", "iadd", "isub"})
OFFSET_OPS = ADDING_OPS | CONCATENATION_OPS | frozenset({
    "where", "masked_fill", "pad", "constant_pad_nd", "masked_scatter", "index_put", "index_fill", "index_add",
    "index_copy", "scatter", "scatter_add", "copy", "addr",
})  # fmt: skip
"""Ops without a rule that may have a constant besides their variables; all others give zero for zero."""
SELECTING_OPS = frozenset({"maximum", "minimum", "fmax", "fmin"})


def report_relevance_of_constants(
    report: Report, op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor], out: Any
) -> None:
    """Have the relevance of an op's constants reported in the backward pass."""
    if not isinstance(out, Tensor) or not out.requires_grad:
        return
    offset = _constant_part(op_name, func, args, kwargs, variables, out)
    if offset is not None:
        constants = [t for t in tensors_in((args, kwargs)) if not t.requires_grad]
        is_bias = op_name in ADDING_OPS and all(_is_bias(t, out) for t in constants)
        kind: Kind = "biases" if is_bias else "constants"
        out.register_hook(lambda c: report(kind, relevance_of(offset, c)))  # type: ignore[no-untyped-call]


def _constant_part(
    op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor], out: Tensor
) -> Tensor | None:
    with torch.no_grad():
        if op_name in SELECTING_OPS:
            is_selected = [v.expand_as(out) == out for v in variables]
            return torch.where(torch.stack(is_selected).any(0), 0, out) if len(variables) == 1 else None
        if op_name not in OFFSET_OPS:
            return None
        if op_name in ADDING_OPS and len(variables) == 2:
            return None
        zeros = [torch.zeros_like(v) for v in variables]
        offset = call_with_replaced_tensors(func, args, kwargs, variables, *zeros)
        return offset if bool((offset != 0).any()) else None


def _is_bias(t: Tensor, out: Tensor) -> bool:
    """Whether one value per channel is added, at all positions; else positions or examples may differ."""
    if t.ndim <= 1:
        return True
    is_before_positions = t.ndim == out.ndim - 1 and t.numel() == t.shape[0]  # (C, 1, 1) of (N, C, H, W)
    return is_before_positions or (t.ndim == out.ndim > 2 and t.numel() == t.shape[1])
