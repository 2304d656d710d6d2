"""Which op has which multipliers: DeepLIFT's rules by the ops' plain names, in every spelling."""

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
    arguments,
    of_batch_norm,
    of_cross_entropy,
    of_glu,
    of_group_norm,
    of_instance_norm,
    of_layer_norm,
    of_logsumexp,
    of_multi_head_attention,
    of_normalize,
    of_scaled_dot_product_attention,
    of_softmax,
    pair_of,
)
from .reference_run import FAR, Call, Pair, Rule, instead, winners

Func = Callable[..., Any]
Product = Callable[[Tensor, Tensor], Tensor]

ELEMENTWISE = """
    relu relu6 leaky_relu prelu elu selu celu gelu silu swish mish softplus softsign tanh sigmoid logsigmoid log_sigmoid
    hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold clamp clip clamp_min clamp_max erf exp
    expm1 exp2 log log1p log2 log10 sqrt rsqrt square reciprocal pow abs absolute sin cos tan atan arctan sinh cosh
    asinh nan_to_num float_power __pow__ __ipow__ __rpow__ __rdiv__ __rtruediv__ __abs__
""".split()  # noqa: SIM905


def _same(now: Any, then: Any) -> bool:
    """Whether what was given on the example is what was given on the baseline, and no function of either."""
    if not isinstance(now, Tensor) or now is then:
        return True
    return not now.requires_grad and torch.equal(now, then)


# -- elementwise, products ---------------------------------------------------------------------------------------------


def _elementwise(func: Func, now: Call, then: Call) -> Any:
    """f of one activation; all else that goes in is the same on the baseline."""
    at = next((i for i, t in enumerate(now.args) if isinstance(t, Tensor)), None)
    if at is None:  # by name
        return NotImplemented
    others = [*((a, b) for i, (a, b) in enumerate(zip(now.args, then.args, strict=True)) if i != at),
              *((now.kwargs[k], then.kwargs[k]) for k in now.kwargs)]  # fmt: skip
    if not all(_same(a, b) for a, b in others):
        return _largest_of_two(func, now, then)

    def f(t: Tensor) -> Tensor:  # on a copy: the op may be one in place
        out: Tensor = func(*now.args[:at], t.clone(), *now.args[at + 1 :], **now.kwargs)
        return out

    return pair_of(now, then, at).by(f).now


def _product(func: Func, now: Call, then: Call, product: Product) -> Any:
    """Two activations multiplied, or one by a constant, which is linear."""
    if len(now.tensors()) < 2 or any(_same(a, b) for a, b in zip(now.args[:2], then.args[:2], strict=True)):
        return NotImplemented
    return pair_of(now, then).times(pair_of(now, then, 1), product).now


def _divided(func: Func, now: Call, then: Call) -> Any:
    if _same(now.args[1], then.args[1]):
        return NotImplemented
    if now.kwargs.get("rounding_mode") is not None:
        raise RuleError("DeepLIFT has no rule for a rounded division")
    a = pair_of(now, then) if isinstance(now.args[0], Tensor) else None
    below = pair_of(now, then, 1).by(torch.reciprocal)
    return below.linear(lambda t: now.args[0] * t).now if a is None else a.times(below).now


def _einsum(func: Func, now: Call, then: Call) -> Any:
    equation, *operands = now.args
    before = list(then.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands, before = list(operands[0]), list(before[0])
    if sum(not _same(a, b) for a, b in zip(operands, before, strict=True)) < 2:
        return NotImplemented
    if len(operands) != 2:
        raise RuleError("DeepLIFT has no rule for an einsum of more than two activations")
    (a, b), (a0, b0) = operands, before
    return Pair(a, a0).times(Pair(b, b0), partial(func, equation)).now


def _added_product(func: Func, now: Call, then: Call) -> Any:
    """baddbmm, addbmm: input + a @ b."""
    if any(_same(a, b) for a, b in zip(now.args[1:3], then.args[1:3], strict=True)):
        return NotImplemented

    def product(a: Tensor, b: Tensor) -> Tensor:
        return now.kwargs.get("alpha", 1) * torch.matmul(a, b)  # type: ignore[no-any-return]

    return now.kwargs.get("beta", 1) * now.args[0] + pair_of(now, then, 1).times(pair_of(now, then, 2), product).now


# -- the largest -------------------------------------------------------------------------------------------------------


def _max_pool(func: Func, now: Call, then: Call, axes: int) -> Any:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    given = arguments(now, names, stride=None, padding=0, dilation=1, ceil_mode=False)
    with torch.no_grad():
        made = func(*now.args, **now.kwargs)
    out: Tensor = made[0] if isinstance(made, tuple) else made
    kernel = _each(given["kernel_size"], axes)
    stride = _each(given["stride"], axes) if given["stride"] not in (None, [], ()) else kernel
    padding, dilation = _each(given["padding"], axes), _each(given["dilation"], axes)
    h = _windows(pair_of(now, then), out, axes, kernel, stride, padding, dilation)
    largest = instead(out, winners(h, 2).view_as(out))
    return (largest, *made[1:]) if isinstance(made, tuple) else largest


def _adaptive_max_pool(func: Func, now: Call, then: Call, axes: int) -> Any:
    with torch.no_grad():
        made = func(*now.args, **now.kwargs)
    out: Tensor = made[0] if isinstance(made, tuple) else made
    sizes = list(zip(now.args[0].shape[-axes:], out.shape[-axes:], strict=True))
    if any(a % b for a, b in sizes):
        raise RuleError("DeepLIFT has no rule for adaptive max pooling into windows of unequal size")
    kernel = [a // b for a, b in sizes]
    h = _windows(pair_of(now, then), out, axes, kernel, kernel, [0] * axes, [1] * axes)
    largest = instead(out, winners(h, 2).view_as(out))
    return (largest, *made[1:]) if isinstance(made, tuple) else largest


def _each(value: Any, axes: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * axes if len(values) == 1 else values


def _windows(
    x: Pair, out: Tensor, axes: int, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Pair:
    """The windows of a pooling, (n, C, K, positions)."""
    if x.now.ndim != axes + 2:
        raise RuleError("DeepLIFT's rule for max pooling is for batches (N, C, ...)")
    ends = [(o - 1) * s + d * (k - 1) + 1 - (size + p) for o, s, d, k, size, p in
            zip(out.shape[2:], stride, dilation, kernel, x.now.shape[2:], padding, strict=True)]  # fmt: skip
    around = [side for p, end in reversed(list(zip(padding, ends, strict=True))) for side in (p, end)]
    if axes == 1:
        kernel, stride, dilation, around = [1, *kernel], [1, *stride], [1, *dilation], [*around, 0, 0]

    def cut(t: Tensor) -> Tensor:
        t = F.pad(t.unsqueeze(2) if axes == 1 else t, around, value=-FAR)  # a negative end is cut off
        windows: Tensor = F.unfold(t, tuple(kernel), tuple(dilation), 0, tuple(stride)).view(
            len(t), t.shape[1], math.prod(kernel), -1
        )
        return windows

    return x.linear(cut)


def _largest(func: Func, now: Call, then: Call, sign: int = 1) -> Any:
    """max and amax (min, amin) along axes; of two tensors, too."""
    given = arguments(now, "input dim keepdim", dim=None, keepdim=False)
    if isinstance(given["dim"], Tensor) or "other" in given:
        return _largest_of_two(func, now, then, sign)
    x = pair_of(now, then).linear(lambda t: sign * t)
    dims = [given["dim"]] if isinstance(given["dim"], int) else list(given["dim"] or range(x.now.ndim))
    dims = [d % x.now.ndim for d in dims]
    if 0 in dims:
        raise RuleError("DeepLIFT has no rule for the largest of a batch")
    rest = [d for d in range(x.now.ndim) if d not in dims]
    h = sign * winners(x.linear(lambda t: t.permute(*rest, *dims).flatten(len(rest))), -1)
    with torch.no_grad():
        made = func(*now.args, **now.kwargs)
    out = made if isinstance(made, Tensor) else made[0]
    largest = instead(out, h.view_as(out))
    return largest if isinstance(made, Tensor) else type(made)((largest, made[1]))


def _largest_of_two(func: Func, now: Call, then: Call, sign: int | None = None) -> Any:
    """maximum, minimum, and clamp by an activation on one side."""
    name, values, before = now.name, now.tensors(), then.tensors()
    known = {"maximum": 1, "fmax": 1, "clamp_min": 1, "max": 1, "minimum": -1, "fmin": -1, "clamp_max": -1, "min": -1}
    if name in ("clamp", "clip"):
        known[name] = 1 if arguments(now, "input min max", min=None, max=None)["max"] is None else -1
    sign = sign if sign is not None else known.get(name)
    if sign is None or len(values) != 2:
        raise RuleError(f"DeepLIFT has no rule for {name} of two activations")
    side = sign

    def both(tensors: list[Tensor]) -> Tensor:
        return side * torch.stack(torch.broadcast_tensors(*tensors), -1)  # type: ignore[no-untyped-call]

    largest = sign * winners(Pair(both(values), both(before)), -1)
    with torch.no_grad():
        value: Tensor = func(*now.args, **now.kwargs)
    return instead(value, largest)


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = dict.fromkeys(ELEMENTWISE, _elementwise)
    rules |= dict.fromkeys(("mul", "multiply", "__mul__", "__imul__"), partial(_product, product=torch.mul))
    matrices = ("matmul", "mm", "bmm", "mv", "dot", "__matmul__", "__imatmul__")
    rules |= dict.fromkeys(matrices, partial(_product, product=torch.matmul))
    rules |= dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__"), _divided)
    rules |= {"einsum": _einsum, "baddbmm": _added_product, "softmax": of_softmax, "logsumexp": of_logsumexp}
    rules |= {"log_softmax": partial(of_softmax, log=True), "cross_entropy": of_cross_entropy, "glu": of_glu}
    rules |= {
        "layer_norm": of_layer_norm,
        "rms_norm": partial(of_layer_norm, centered=False),
        "group_norm": of_group_norm,
    }
    rules |= {"instance_norm": of_instance_norm, "batch_norm": of_batch_norm, "normalize": of_normalize}
    for axes in (1, 2):
        rules |= dict.fromkeys((f"max_pool{axes}d", f"max_pool{axes}d_with_indices"), partial(_max_pool, axes=axes))
        names = (f"adaptive_max_pool{axes}d", f"adaptive_max_pool{axes}d_with_indices")
        rules |= dict.fromkeys(names, partial(_adaptive_max_pool, axes=axes))
    rules |= dict.fromkeys(("max", "amax"), _largest) | dict.fromkeys(("min", "amin"), partial(_largest, sign=-1))
    rules |= dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _largest_of_two)
    rules |= {
        "multi_head_attention_forward": of_multi_head_attention,
        "scaled_dot_product_attention": of_scaled_dot_product_attention,
    }
    return rules


RULES = _rules()
