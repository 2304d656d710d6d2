"""DeepLIFT's rules by the ops' plain names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import RuleError
from .composite_ops import (
    activation_pair_of_argument,
    arguments_by_name,
    batch_norm_rule,
    cross_entropy_rule,
    glu_rule,
    group_norm_rule,
    instance_norm_rule,
    layer_norm_rule,
    logsumexp_rule,
    multi_head_attention_rule,
    normalize_rule,
    scaled_dot_product_attention_rule,
    softmax_rule,
)
from .reference_run import (
    INFINITY_SUBSTITUTE,
    ActivationPair,
    DeepLiftRule,
    OpCall,
    max_gradient_source,
    with_gradient_of,
)

Func = Callable[..., Any]
ProductFn = Callable[[Tensor, Tensor], Tensor]

ELEMENTWISE_OPS = """
    relu relu6 leaky_relu prelu elu selu celu gelu silu swish mish softplus softsign tanh sigmoid logsigmoid log_sigmoid
    hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold clamp clip clamp_min clamp_max erf exp
    expm1 exp2 log log1p log2 log10 sqrt rsqrt square reciprocal pow abs absolute sin cos tan atan arctan sinh cosh
    asinh nan_to_num float_power __pow__ __ipow__ __rpow__ __rdiv__ __rtruediv__ __abs__
""".split()  # noqa: SIM905


def _is_shared_constant(x: Any, ref: Any) -> bool:
    """Whether an argument is the same for the example and the baseline, and depends on neither."""
    if not isinstance(x, Tensor) or x is ref:
        return True
    return not x.requires_grad and torch.equal(x, ref)


# -- elementwise, products ---------------------------------------------------------------------------------------------


def _elementwise_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    """A function of one activation; the other arguments are the same for the baseline."""
    arg_index = next((i for i, t in enumerate(x_call.args) if isinstance(t, Tensor)), None)
    if arg_index is None:  # by name
        return NotImplemented
    others = [*((a, b) for i, (a, b) in enumerate(zip(x_call.args, ref_call.args, strict=True)) if i != arg_index),
              *((x_call.kwargs[k], ref_call.kwargs[k]) for k in x_call.kwargs)]  # fmt: skip
    if not all(_is_shared_constant(a, b) for a, b in others):
        return _max_or_min_of_two_rule(func, x_call, ref_call)

    def op_of_varied_argument(t: Tensor) -> Tensor:  # on a copy: the op may be in place
        out: Tensor = func(*x_call.args[:arg_index], t.clone(), *x_call.args[arg_index + 1 :], **x_call.kwargs)
        return out

    return activation_pair_of_argument(x_call, ref_call, arg_index).apply_elementwise(op_of_varied_argument).x


def _product_rule(func: Func, x_call: OpCall, ref_call: OpCall, product: ProductFn) -> Any:
    """Two activations multiplied, or one by a constant, which is linear."""
    if len(x_call.tensors()) < 2 or any(
        _is_shared_constant(a, b) for a, b in zip(x_call.args[:2], ref_call.args[:2], strict=True)
    ):
        return NotImplemented
    return (
        activation_pair_of_argument(x_call, ref_call)
        .multiply(activation_pair_of_argument(x_call, ref_call, 1), product)
        .x
    )


def _division_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    if _is_shared_constant(x_call.args[1], ref_call.args[1]):
        return NotImplemented
    if x_call.kwargs.get("rounding_mode") is not None:
        raise RuleError("DeepLIFT has no rule for a rounded division")
    a = activation_pair_of_argument(x_call, ref_call) if isinstance(x_call.args[0], Tensor) else None
    reciprocal = activation_pair_of_argument(x_call, ref_call, 1).apply_elementwise(torch.reciprocal)
    return reciprocal.apply_affine_function(lambda t: x_call.args[0] * t).x if a is None else a.multiply(reciprocal).x


def _einsum_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    equation, *operands = x_call.args
    ref_operands = list(ref_call.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands, ref_operands = list(operands[0]), list(ref_operands[0])
    if sum(not _is_shared_constant(a, b) for a, b in zip(operands, ref_operands, strict=True)) < 2:
        return NotImplemented
    if len(operands) != 2:
        raise RuleError("DeepLIFT has no rule for an einsum of more than two activations")
    (a, b), (a0, b0) = operands, ref_operands
    return ActivationPair(a, a0).multiply(ActivationPair(b, b0), partial(func, equation)).x


def _baddbmm_rule(func: Func, x_call: OpCall, ref_call: OpCall) -> Any:
    """baddbmm, addbmm: input + a @ b."""
    if any(_is_shared_constant(a, b) for a, b in zip(x_call.args[1:3], ref_call.args[1:3], strict=True)):
        return NotImplemented

    def product(a: Tensor, b: Tensor) -> Tensor:
        return x_call.kwargs.get("alpha", 1) * torch.matmul(a, b)  # type: ignore[no-any-return]

    return (
        x_call.kwargs.get("beta", 1) * x_call.args[0]
        + activation_pair_of_argument(x_call, ref_call, 1)
        .multiply(activation_pair_of_argument(x_call, ref_call, 2), product)
        .x
    )


# -- maxima ------------------------------------------------------------------------------------------------------------


def _max_pool_rule(func: Func, x_call: OpCall, ref_call: OpCall, n_axes: int) -> Any:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    settings = arguments_by_name(x_call, names, stride=None, padding=0, dilation=1, ceil_mode=False)
    with torch.no_grad():
        result = func(*x_call.args, **x_call.kwargs)
    out: Tensor = result[0] if isinstance(result, tuple) else result
    kernel = _one_value_per_axis(settings.kernel_size, n_axes)
    stride = _one_value_per_axis(settings.stride, n_axes) if settings.stride not in (None, [], ()) else kernel
    padding, dilation = _one_value_per_axis(settings.padding, n_axes), _one_value_per_axis(settings.dilation, n_axes)
    h = _pooling_windows(activation_pair_of_argument(x_call, ref_call), out, n_axes, kernel, stride, padding, dilation)
    largest = with_gradient_of(out, max_gradient_source(h, 2).view_as(out))
    return (largest, *result[1:]) if isinstance(result, tuple) else largest


def _adaptive_max_pool_rule(func: Func, x_call: OpCall, ref_call: OpCall, n_axes: int) -> Any:
    with torch.no_grad():
        result = func(*x_call.args, **x_call.kwargs)
    out: Tensor = result[0] if isinstance(result, tuple) else result
    sizes = list(zip(x_call.args[0].shape[-n_axes:], out.shape[-n_axes:], strict=True))
    if any(a % b for a, b in sizes):
        raise RuleError("DeepLIFT has no rule for adaptive max pooling into windows of unequal size")
    kernel = [a // b for a, b in sizes]
    h = _pooling_windows(
        activation_pair_of_argument(x_call, ref_call), out, n_axes, kernel, kernel, [0] * n_axes, [1] * n_axes
    )
    largest = with_gradient_of(out, max_gradient_source(h, 2).view_as(out))
    return (largest, *result[1:]) if isinstance(result, tuple) else largest


def _one_value_per_axis(value: Any, n_axes: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * n_axes if len(values) == 1 else values


def _pooling_windows(
    x: ActivationPair,
    out: Tensor,
    n_axes: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> ActivationPair:
    """The windows of a pooling op, (n, C, K, positions)."""
    if x.x.ndim != n_axes + 2:
        raise RuleError("DeepLIFT's rule for max pooling is for batches (N, C, ...)")
    ends = [(o - 1) * s + d * (k - 1) + 1 - (size + p) for o, s, d, k, size, p in
            zip(out.shape[2:], stride, dilation, kernel, x.x.shape[2:], padding, strict=True)]  # fmt: skip
    pad_sizes = [side for p, end in reversed(list(zip(padding, ends, strict=True))) for side in (p, end)]
    if n_axes == 1:
        kernel, stride, dilation, pad_sizes = [1, *kernel], [1, *stride], [1, *dilation], [*pad_sizes, 0, 0]

    def unfold_windows(t: Tensor) -> Tensor:
        t = F.pad(t.unsqueeze(2) if n_axes == 1 else t, pad_sizes, value=-INFINITY_SUBSTITUTE)  # a negative pad crops
        windows: Tensor = F.unfold(t, tuple(kernel), tuple(dilation), 0, tuple(stride)).view(
            len(t), t.shape[1], math.prod(kernel), -1
        )
        return windows

    return x.apply_affine_function(unfold_windows)


def _max_or_min_rule(func: Func, x_call: OpCall, ref_call: OpCall, sign: int = 1) -> Any:
    """max and amax (min, amin) along axes; max and min of two tensors, too."""
    settings = arguments_by_name(x_call, "input dim keepdim", dim=None, keepdim=False)
    if isinstance(settings.dim, Tensor) or hasattr(settings, "other"):
        return _max_or_min_of_two_rule(func, x_call, ref_call, sign)
    x = activation_pair_of_argument(x_call, ref_call).apply_affine_function(lambda t: sign * t)
    dims = [settings.dim] if isinstance(settings.dim, int) else list(settings.dim or range(x.x.ndim))
    dims = [d % x.x.ndim for d in dims]
    if 0 in dims:
        raise RuleError("DeepLIFT has no rule for a maximum over the batch")
    rest = [d for d in range(x.x.ndim) if d not in dims]
    h = sign * max_gradient_source(x.apply_affine_function(lambda t: t.permute(*rest, *dims).flatten(len(rest))), -1)
    with torch.no_grad():
        result = func(*x_call.args, **x_call.kwargs)
    out = result if isinstance(result, Tensor) else result[0]
    largest = with_gradient_of(out, h.view_as(out))
    return largest if isinstance(result, Tensor) else type(result)((largest, result[1]))


def _max_or_min_of_two_rule(func: Func, x_call: OpCall, ref_call: OpCall, sign: int | None = None) -> Any:
    """maximum, minimum, and clamp with an activation as one bound."""
    name, values, ref_values = x_call.name, x_call.tensors(), ref_call.tensors()
    op_signs = {
        "maximum": 1,
        "fmax": 1,
        "clamp_min": 1,
        "max": 1,
        "minimum": -1,
        "fmin": -1,
        "clamp_max": -1,
        "min": -1,
    }
    if name in ("clamp", "clip"):
        op_signs[name] = 1 if arguments_by_name(x_call, "input min max", min=None, max=None).max is None else -1
    sign = sign if sign is not None else op_signs.get(name)
    if sign is None or len(values) != 2:
        raise RuleError(f"DeepLIFT has no rule for {name} of two activations")
    known_sign = sign

    def stack_signed(tensors: list[Tensor]) -> Tensor:
        return known_sign * torch.stack(torch.broadcast_tensors(*tensors), -1)  # type: ignore[no-untyped-call]

    largest = sign * max_gradient_source(ActivationPair(stack_signed(values), stack_signed(ref_values)), -1)
    with torch.no_grad():
        value: Tensor = func(*x_call.args, **x_call.kwargs)
    return with_gradient_of(value, largest)


def _build_rule_by_op_name() -> dict[str, DeepLiftRule]:
    rules: dict[str, DeepLiftRule] = dict.fromkeys(ELEMENTWISE_OPS, _elementwise_rule)
    rules |= dict.fromkeys(("mul", "multiply", "__mul__", "__imul__"), partial(_product_rule, product=torch.mul))
    matrices = ("matmul", "mm", "bmm", "mv", "dot", "__matmul__", "__imatmul__")
    rules |= dict.fromkeys(matrices, partial(_product_rule, product=torch.matmul))
    rules |= dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__"), _division_rule)
    rules |= {"einsum": _einsum_rule, "baddbmm": _baddbmm_rule, "softmax": softmax_rule, "logsumexp": logsumexp_rule}
    rules |= {"log_softmax": partial(softmax_rule, log=True), "cross_entropy": cross_entropy_rule, "glu": glu_rule}
    rules |= {
        "layer_norm": layer_norm_rule,
        "rms_norm": partial(layer_norm_rule, centered=False),
        "group_norm": group_norm_rule,
    }
    rules |= {"instance_norm": instance_norm_rule, "batch_norm": batch_norm_rule, "normalize": normalize_rule}
    for axes in (1, 2):
        rules |= dict.fromkeys(
            (f"max_pool{axes}d", f"max_pool{axes}d_with_indices"), partial(_max_pool_rule, n_axes=axes)
        )
        names = (f"adaptive_max_pool{axes}d", f"adaptive_max_pool{axes}d_with_indices")
        rules |= dict.fromkeys(names, partial(_adaptive_max_pool_rule, n_axes=axes))
    rules |= dict.fromkeys(("max", "amax"), _max_or_min_rule) | dict.fromkeys(
        ("min", "amin"), partial(_max_or_min_rule, sign=-1)
    )
    rules |= dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _max_or_min_of_two_rule)
    rules |= {
        "multi_head_attention_forward": multi_head_attention_rule,
        "scaled_dot_product_attention": scaled_dot_product_attention_rule,
    }
    return rules


RULE_BY_OP_NAME = _build_rule_by_op_name()
