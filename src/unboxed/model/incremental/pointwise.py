"""Ops that take each position by itself: they act on the windows, and on the base, as they would on the whole."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_tables import name_of
from .base_run import Map
from .regions import crop, together
from .windowed import Group, Ints, Op, Windowed, handles

UNARY = (
    "abs", "absolute", "neg", "negative", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt",
    "square", "reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "erf", "erfc", "floor",
    "ceil", "round", "trunc", "frac", "sign", "sgn", "sigmoid", "logit", "nan_to_num", "isnan", "isinf", "isfinite",
    "logical_not", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "log_sigmoid", "tanhshrink", "softshrink",
    "hardshrink", "threshold", "_threshold", "__neg__", "__abs__", "__invert__", "zeros_like", "ones_like", "full_like",
)  # fmt: skip
BINARY = (
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder",
    "fmod", "pow", "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "where", "lerp",
    "addcmul", "addcdiv", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "masked_fill",
    "heaviside", "hypot", "atan2", "xlogy", "copysign",
    *(f"__{kind}{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
      for kind in ("", "r", "i")),
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__",
)  # fmt: skip
SAME = ("detach", "dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
        "feature_alpha_dropout", "requires_grad", "contiguous")  # fmt: skip
CASTS = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda")


@handles(*UNARY, *BINARY)
def pointwise(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any number of maps, of tensors that are the same for all rows, and of numbers."""
    values = [*args, *kwargs.values()]
    parts, others = [v for v in values if isinstance(v, Windowed)], [v for v in values if isinstance(v, Tensor)]
    if not all(_beside(p, parts[0]) for p in parts) or not all(_fits(v, parts[0]) for v in others):
        return NotImplemented
    if not _in_place(func, kwargs):
        return _each(func, args, kwargs, parts)
    x = args[0]
    if not isinstance(x, Windowed):
        return NotImplemented
    spare, changed = _out_of_place(func, kwargs)
    if len(parts) == 1 and not others:
        base = x.base_pass.run(spare, *_with(args, [x], [x.base_map]), **changed)
        return x.become(x.mapped(base, lambda h: func(*_with(args, [x], [h]), **kwargs)))
    out = _each(spare, args, changed, parts)
    if (out.base_map.shape, out.base_map.dtype) != (x.base_map.shape, x.base_map.dtype):
        return NotImplemented
    return x.become(out)


def _beside(a: Windowed, b: Windowed) -> bool:
    """Whether two maps have the same positions and rows."""
    return a.base_map.shape[-2:] == b.base_map.shape[-2:] and a.n_rows == b.n_rows and a.base_pass is b.base_pass


def _fits(v: Tensor, part: Windowed) -> bool:
    """Whether a tensor is the same for all rows, and the maps are not spread to it."""
    own = (1, 1, *v.shape)[-2:]
    alone = v.ndim < 4 or (v.ndim == 4 and len(v) == 1)
    return alone and all(a in (1, b) for a, b in zip(own, part.base_map.shape[-2:], strict=True))


def _each(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any], parts: list[Windowed]) -> Windowed:
    """The op on the base, and on each group of windows."""
    first = parts[0]
    bases = [p.base_map for p in parts]
    named = dict(zip(kwargs, _with(tuple(kwargs.values()), parts, bases), strict=True))
    base = first.base_pass.run(func, *_with(args, parts, bases), **named)
    groups = []
    for rows, top, left, cuts in together(parts):

        def put(value: Any, top: Ints = top, left: Ints = left, cuts: list[Tensor] = cuts) -> Any:
            (value,) = _with((value,), parts, cuts)
            own = isinstance(value, Tensor) and not any(value is c for c in cuts) and _has_positions(value)
            return _cut(value, base, top, left, cuts[0]) if own else value

        new = func(*map(put, args), **{name: put(value) for name, value in kwargs.items()})
        groups.append(Group(rows, top, left, new))
        first.base_pass.local += new.numel()
        first.base_pass.note(len(rows), *cuts, new)
    for p in parts:
        first.base_pass.spent(p.base_map)
    return Windowed(first.base_pass, base, groups, first.n_rows)


def _with(args: tuple[Any, ...], parts: list[Windowed], tensors: Sequence[Tensor | Map]) -> tuple[Any, ...]:
    """The arguments with a tensor in each map's place."""
    return tuple(next((t for p, t in zip(parts, tensors, strict=True) if p is v), v) for v in args)


def _has_positions(v: Tensor) -> bool:
    return (1, 1, *v.shape)[-2:] != (1, 1)


def _cut(v: Tensor, base: Map, top: Ints, left: Ints, beside: Tensor) -> Tensor:
    """A tensor with positions, where the windows are."""
    whole = v.reshape(*[1] * (4 - v.ndim), *v.shape).expand(-1, -1, *base.shape[-2:])
    return crop(whole, top, left, (beside.shape[2], beside.shape[3])).permute(0, 3, 1, 2)


def _in_place(func: Op, kwargs: dict[str, Any]) -> bool:
    name = func.__name__.partition(".")[0]
    if name.startswith("__"):
        return name.startswith("__i") and name != "__invert__"
    return name.endswith("_") or bool(kwargs.get("inplace"))


def _out_of_place(func: Op, kwargs: dict[str, Any]) -> tuple[Op, dict[str, Any]]:
    """The same op, leaving its argument alone."""
    if kwargs.get("inplace"):
        return func, {**kwargs, "inplace": False}
    name = name_of(func)
    if name.startswith("__i"):
        return getattr(operator, name.replace("__i", "__", 1)), kwargs
    return getattr(torch, name, None) or getattr(F, name, None) or _on_a_copy(func), kwargs


@cache
def _on_a_copy(func: Op) -> Op:
    """One function for each op: what was asked of the base is told by it."""

    def on_a_copy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = func(x.clone(), *args, **kwargs)
        return out

    return on_a_copy


@handles("prelu")
def prelu(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Its slopes are one a channel, although they look like one a column."""
    x, rest = args[0], args[1:]
    if not isinstance(x, Windowed) or any(isinstance(v, Windowed) for v in (*rest, *kwargs.values())):
        return NotImplemented
    return x.mapped(x.base_pass.run(func, x.base_map, *rest, **kwargs), lambda h: func(h, *rest, **kwargs))


@handles(*SAME)
def same(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What gives its own argument back: dropout that is off, contiguous of what is."""
    x, asked = args[0], args[2] if len(args) > 2 else True
    on = "dropout" in name_of(func) and kwargs.get("training", kwargs.get("train", asked))
    return NotImplemented if on or not isinstance(x, Windowed) else x


@handles(*CASTS)
def cast(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another dtype (or device); itself where it is of that dtype."""
    x = args[0]
    if not isinstance(x, Windowed):
        return func(x, *(a.placeholder() if isinstance(a, Windowed) else a for a in args[1:]), **kwargs)
    args = tuple(a.base_map.like if isinstance(a, Windowed) and a is not x else a for a in args)
    base = x.base
    probe = func(base, *args[1:], **kwargs)
    if not isinstance(probe, Tensor) or probe.device != base.device:
        return NotImplemented
    return x if probe is base else _each(func, args, kwargs, [x])


@handles("clone")
def clone(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    return x.mapped(x.base_map, torch.clone)  # base maps are never written


@handles("batch_norm")
def batch_norm(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """On running statistics it is a line for each channel."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, training = given.pop("input"), given.pop("training", False)
    if training or not isinstance(x, Windowed) or any(isinstance(v, Windowed) for v in given.values()):
        return NotImplemented
    weight, bias, mean, var = (given.get(k) for k in ("weight", "bias", "running_mean", "running_var"))
    fixed = {"momentum": 0.1, "eps": given.get("eps", 1e-5)}

    def normed(h: Tensor) -> Tensor:
        return F.batch_norm(h, mean, var, weight, bias, False, **fixed)

    base = x.base_pass.run(F.batch_norm, x.base_map, mean, var, weight, bias, False, **fixed)
    return x.mapped(base, normed)


@handles("cat", "concat", "concatenate")
def cat(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of channels."""
    parts = list(args[0] if args else kwargs["tensors"])
    axis = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    if axis not in (1, -3) or not all(isinstance(p, Windowed) for p in parts):
        return NotImplemented
    first = parts[0]
    if any(p.base_map.shape[-2:] != first.base_map.shape[-2:] or p.n_rows != first.n_rows for p in parts):
        return NotImplemented
    base = first.base_pass.run(torch.cat, [p.base_map for p in parts], 1)
    groups = [Group(rows, top, left, torch.cat(cuts, 1)) for rows, top, left, cuts in together(parts)]
    first.base_pass.local += sum(g.values.numel() for g in groups)
    return Windowed(first.base_pass, base, groups, first.n_rows)
