"""Pointwise ops: applied to the windows and to the base as to the full map."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_tables import canonical_op_name
from .base_run import BaseMap
from .regions import crop_rectangles, regions_covering_all_windows
from .windowed import IntArray, OpFn, WindowedTensor, WindowGroup, register_handler

UNARY_OPS = (
    "abs", "absolute", "neg", "negative", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt",
    "square", "reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "erf", "erfc", "floor",
    "ceil", "round", "trunc", "frac", "sign", "sgn", "sigmoid", "logit", "nan_to_num", "isnan", "isinf", "isfinite",
    "logical_not", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "log_sigmoid", "tanhshrink", "softshrink",
    "hardshrink", "threshold", "_threshold", "__neg__", "__abs__", "__invert__", "zeros_like", "ones_like", "full_like",
)  # fmt: skip
BINARY_OPS = (
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder",
    "fmod", "pow", "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "where", "lerp",
    "addcmul", "addcdiv", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "masked_fill",
    "heaviside", "hypot", "atan2", "xlogy", "copysign",
    *(f"__{kind}{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
      for kind in ("", "r", "i")),
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__",
)  # fmt: skip
IDENTITY_OPS = ("detach", "dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
        "feature_alpha_dropout", "requires_grad", "contiguous")  # fmt: skip
CAST_OPS = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda")


@register_handler(*UNARY_OPS, *BINARY_OPS)
def pointwise_op(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op of any number of maps, of tensors that are the same for all rows, and of numbers."""
    values = [*args, *kwargs.values()]
    maps, others = [v for v in values if isinstance(v, WindowedTensor)], [v for v in values if isinstance(v, Tensor)]
    if not all(_same_size_and_rows(p, maps[0]) for p in maps) or not all(
        _is_shared_by_rows(v, maps[0]) for v in others
    ):
        return NotImplemented
    if not _is_in_place(func, kwargs):
        return _apply_to_base_and_groups(func, args, kwargs, maps)
    x = args[0]
    if not isinstance(x, WindowedTensor):
        return NotImplemented
    out_of_place_func, new_kwargs = _out_of_place_op_and_kwargs(func, kwargs)
    if len(maps) == 1 and not others:
        base = x.base_pass.run(out_of_place_func, *_replace_maps_by_tensors(args, [x], [x.base_map]), **new_kwargs)
        return x.assign_in_place(
            x.map_windows(base, lambda h: func(*_replace_maps_by_tensors(args, [x], [h]), **kwargs))
        )
    out = _apply_to_base_and_groups(out_of_place_func, args, new_kwargs, maps)
    if (out.base_map.shape, out.base_map.dtype) != (x.base_map.shape, x.base_map.dtype):
        return NotImplemented
    return x.assign_in_place(out)


def _same_size_and_rows(a: WindowedTensor, b: WindowedTensor) -> bool:
    """Whether two maps have the same positions and rows."""
    return a.base_map.shape[-2:] == b.base_map.shape[-2:] and a.n_rows == b.n_rows and a.base_pass is b.base_pass


def _is_shared_by_rows(tensor: Tensor, windowed: WindowedTensor) -> bool:
    """Whether a tensor is the same for all rows, and does not broadcast the maps."""
    size = (1, 1, *tensor.shape)[-2:]
    is_shared = tensor.ndim < 4 or (tensor.ndim == 4 and len(tensor) == 1)
    return is_shared and all(a in (1, b) for a, b in zip(size, windowed.base_map.shape[-2:], strict=True))


def _apply_to_base_and_groups(
    func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any], maps: list[WindowedTensor]
) -> WindowedTensor:
    """The op on the base, and on each group of windows."""
    first = maps[0]
    bases = [p.base_map for p in maps]
    base_kwargs = dict(zip(kwargs, _replace_maps_by_tensors(tuple(kwargs.values()), maps, bases), strict=True))
    base = first.base_pass.run(func, *_replace_maps_by_tensors(args, maps, bases), **base_kwargs)
    groups = []
    for rows, top, left, cuts in regions_covering_all_windows(maps):

        def crop_for_group(value: Any, top: IntArray = top, left: IntArray = left, cuts: list[Tensor] = cuts) -> Any:
            (value,) = _replace_maps_by_tensors((value,), maps, cuts)
            needs_crop = isinstance(value, Tensor) and not any(value is c for c in cuts) and _has_positions(value)
            return _crop_windows(value, base, top, left, cuts[0]) if needs_crop else value

        new = func(*map(crop_for_group, args), **{name: crop_for_group(value) for name, value in kwargs.items()})
        groups.append(WindowGroup(rows, top, left, new))
        first.base_pass.n_local_values += new.numel()
        first.base_pass.record_bytes_per_row(len(rows), *cuts, new)
    for p in maps:
        first.base_pass.free_unless_read_by_windows(p.base_map)
    return WindowedTensor(first.base_pass, base, groups, first.n_rows)


def _replace_maps_by_tensors(
    args: tuple[Any, ...], maps: list[WindowedTensor], tensors: Sequence[Tensor | BaseMap]
) -> tuple[Any, ...]:
    """The arguments with each map replaced by a tensor."""
    return tuple(next((t for p, t in zip(maps, tensors, strict=True) if p is v), v) for v in args)


def _has_positions(tensor: Tensor) -> bool:
    return (1, 1, *tensor.shape)[-2:] != (1, 1)


def _crop_windows(tensor: Tensor, base: BaseMap, top: IntArray, left: IntArray, like: Tensor) -> Tensor:
    """A tensor with positions, cropped to the windows."""
    full = tensor.reshape(*[1] * (4 - tensor.ndim), *tensor.shape).expand(-1, -1, *base.shape[-2:])
    return crop_rectangles(full, top, left, (like.shape[2], like.shape[3])).permute(0, 3, 1, 2)


def _is_in_place(func: OpFn, kwargs: dict[str, Any]) -> bool:
    name = func.__name__.partition(".")[0]
    if name.startswith("__"):
        return name.startswith("__i") and name != "__invert__"
    return name.endswith("_") or bool(kwargs.get("inplace"))


def _out_of_place_op_and_kwargs(func: OpFn, kwargs: dict[str, Any]) -> tuple[OpFn, dict[str, Any]]:
    """The out-of-place version of an op."""
    if kwargs.get("inplace"):
        return func, {**kwargs, "inplace": False}
    name = canonical_op_name(func)
    if name.startswith("__i"):
        return getattr(operator, name.replace("__i", "__", 1)), kwargs
    return getattr(torch, name, None) or getattr(F, name, None) or _make_out_of_place(func), kwargs


@cache
def _make_out_of_place(func: OpFn) -> OpFn:
    """Cached: a call of the base pass is identified by its function."""

    def run_on_clone(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = func(x.clone(), *args, **kwargs)
        return out

    return run_on_clone


@register_handler("prelu")
def prelu(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Its slopes are per channel, although their shape looks like per column."""
    x, rest = args[0], args[1:]
    if not isinstance(x, WindowedTensor) or any(isinstance(v, WindowedTensor) for v in (*rest, *kwargs.values())):
        return NotImplemented
    return x.map_windows(x.base_pass.run(func, x.base_map, *rest, **kwargs), lambda h: func(h, *rest, **kwargs))


@register_handler(*IDENTITY_OPS)
def identity_op(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Ops that return their argument: inactive dropout, contiguous."""
    x, training = args[0], args[2] if len(args) > 2 else True
    drops_units = "dropout" in canonical_op_name(func) and kwargs.get("training", kwargs.get("train", training))
    return NotImplemented if drops_units or not isinstance(x, WindowedTensor) else x


@register_handler(*CAST_OPS)
def cast(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A change of dtype; the tensor itself where it has that dtype."""
    x = args[0]
    if not isinstance(x, WindowedTensor):
        return func(x, *(a.placeholder_tensor() if isinstance(a, WindowedTensor) else a for a in args[1:]), **kwargs)
    args = tuple(a.base_map.like if isinstance(a, WindowedTensor) and a is not x else a for a in args)
    base = x.base_values
    probe = func(base, *args[1:], **kwargs)
    if not isinstance(probe, Tensor) or probe.device != base.device:
        return NotImplemented
    return x if probe is base else _apply_to_base_and_groups(func, args, kwargs, [x])


@register_handler("clone")
def clone(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    return x.map_windows(x.base_map, torch.clone)  # base maps are never written


@register_handler("batch_norm")
def batch_norm(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """With running statistics it is affine per channel."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    x, training = arguments.pop("input"), arguments.pop("training", False)
    if training or not isinstance(x, WindowedTensor) or any(isinstance(v, WindowedTensor) for v in arguments.values()):
        return NotImplemented
    weight, bias, mean, var = (arguments.get(k) for k in ("weight", "bias", "running_mean", "running_var"))
    options = {"momentum": 0.1, "eps": arguments.get("eps", 1e-5)}

    def normalize(h: Tensor) -> Tensor:
        return F.batch_norm(h, mean, var, weight, bias, False, **options)

    base = x.base_pass.run(F.batch_norm, x.base_map, mean, var, weight, bias, False, **options)
    return x.map_windows(base, normalize)


@register_handler("cat", "concat", "concatenate")
def cat(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along channels."""
    maps = list(args[0] if args else kwargs["tensors"])
    axis = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    if axis not in (1, -3) or not all(isinstance(p, WindowedTensor) for p in maps):
        return NotImplemented
    first = maps[0]
    if any(p.base_map.shape[-2:] != first.base_map.shape[-2:] or p.n_rows != first.n_rows for p in maps):
        return NotImplemented
    base = first.base_pass.run(torch.cat, [p.base_map for p in maps], 1)
    groups = [
        WindowGroup(rows, top, left, torch.cat(cuts, 1)) for rows, top, left, cuts in regions_covering_all_windows(maps)
    ]
    first.base_pass.n_local_values += sum(g.values.numel() for g in groups)
    return WindowedTensor(first.base_pass, base, groups, first.n_rows)
