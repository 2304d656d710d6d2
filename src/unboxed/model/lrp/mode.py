"""The mode under which a model runs so that what then goes down its graph is relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ...errors import RuleError
from ..hooks import tensors_in
from ..op_mode import OpMode, is_in_place
from ..op_tables import plain_op_name
from . import composite_ops
from . import op_rules as names
from .arguments import Args, Func, Named, among, called, detached, negative, noisy, one_sided, opened, out_of_place
from .autograd_functions import BOUNDED, GATE, SIGNAL, by_gradient, by_secant, note, noted, ruled
from .linear_rules import Linear, Send, SendPixels, Transposed, transposed_conv, transposed_dense
from .recurrent import CELLS, recurrent


@dataclass(frozen=True)
class Recipe:
    """Which rule is for which layer: `pixels`, if any, for those that see the pixels themselves."""

    dense: Send
    conv: Send
    pixels: SendPixels | None = None


class Propagation(OpMode):
    """While open, each op of a model whose parameters are `constant` sends down relevance, by the recipe.

    Raises RuleError, from within the forward, at an op that no rule is for.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(self._op)
        self.recipe = recipe

    def copy_in_place_input(self, tensor: Tensor) -> Tensor:
        known = noted(tensor)
        return note(tensor.clone(), rank=known.rank, bounds=known.bounds, linear=known.linear)

    def write_in_place(self, target: Tensor, out: Tensor) -> Tensor:
        known = noted(out)
        return note(target.copy_(out), rank=known.rank, bounds=known.bounds)

    def _op(self, name: str, func: Func, args: Args, named: Named) -> Any:
        key = name.strip("_") if name.startswith("__") else name
        variables = [t for t in tensors_in((args, named)) if t.requires_grad]  # parameters are constant
        if not variables or key in names.LEFT or not torch.is_grad_enabled():
            return NotImplemented
        if is_in_place(func, args, {}):  # on a copy, which what is noted of the copy does not survive
            func = partial(out_of_place, func)
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):  # else a checkpoint would run ops again, unruled
            return self._ruled(key, func, args, named, variables)

    def _ruled(self, key: str, func: Func, args: Args, named: Named, variables: list[Tensor]) -> Any:
        if key in names.EXPANDED and isinstance(func, FunctionType):
            return self._inside(func, args, named)
        if key in names.CONVS or key == "linear":
            return self._layer(key, func, args, named)
        if key in names.PRODUCTS or (key in names.AFFINE and key.lstrip("ri") in ("mul", "multiply")):
            return self._product(key, func, args, named, variables)
        if key in names.ELEMENTWISE:
            return self._elementwise(key, func, args, named, variables)
        if key in names.BY_GRADIENT:
            run = partial(called, func, args, named, variables[:1])
            return note(by_gradient(run, variables[:1], names.BY_GRADIENT[key]), rank=_rank(key))
        if key in NORMS:
            return NORMS[key](*args, **named)
        if key in OWN:
            return OWN[key](self, func, args, named)
        return self._plain(key, func, args, named, variables)

    def _plain(self, key: str, func: Func, args: Args, named: Named, variables: list[Tensor]) -> Any:
        """What its own gradient is right for, what is not differentiable, and what is neither."""
        if key in names.INVERSES:  # a scale, which bears no relevance
            return func(*detached(args), **detached(named))
        if key in ("div", "divide", "true_divide", "truediv", "itruediv", "idiv"):
            args = (args[0], *detached(args[1:]))
            named = {k: detached(v) if k == "other" else v for k, v in named.items()}
            variables = [t for t in tensors_in((args, named)) if t.requires_grad]
        out = func(*args, **named)
        if key in names.PASSES:
            self._carry(key, func, args, named, variables, out)
            return out
        if not any(t.requires_grad for t in tensors_in(out)):
            return out
        if isinstance(func, FunctionType) and func.__module__ in ("torch.nn.functional", "torch.functional"):
            return self._inside(func, args, named)
        raise RuleError(
            f"LRP has no rule for the op {key}: write it in ops that it knows, or use a method without rules, such as "
            "gradient"
        )

    def _inside(self, func: Func, args: Args, named: Named) -> Any:
        """Run a function of torch.nn.functional so that the ops that it is made of are seen."""
        with self:
            return opened(func)(*args, **named)

    # -- ops of one variable -----------------------------------------------------------------------------------------

    def _carry(self, key: str, func: Func, args: Args, named: Named, variables: list[Tensor], out: Any) -> None:
        """What was known of the variables holds for what only moves or scales them."""
        if key not in names.CARRIES or not variables:
            return
        known = [noted(v) for v in variables]
        one = len(variables) == 1
        rank = known[0].rank if one else SIGNAL
        lows: list[Tensor | None] = [None] * len(list(tensors_in(out)))
        highs = lows
        if all(k.bounds for k in known) and (one or key in names.JOINS) and not noisy(key, args, named):
            ends = [
                list(tensors_in(called(func, args, named, variables, *(k.bounds[i] for k in known if k.bounds))))
                for i in (0, 1)
            ]
            lows = [torch.minimum(*pair) for pair in zip(*ends, strict=True)]
            highs = [torch.maximum(*pair) for pair in zip(*ends, strict=True)]
        for h, low, high in zip(tensors_in(out), lows, highs, strict=True):
            if h.requires_grad:
                linear = known[0].linear if one and key in ("clone", "contiguous") else None
                note(h, rank=rank, bounds=None if low is None else (low, high), linear=linear)

    def _elementwise(self, key: str, func: Func, args: Args, named: Named, variables: list[Tensor]) -> Any:
        if len(variables) != 1 or next(tensors_in((args, named))) is not variables[0]:
            raise RuleError(f"LRP has no rule for {key} with settings that depend on the input")
        if key in ("pow", "ipow") and negative(args, named):
            return func(*detached(args), **detached(named))
        f = partial(called, func, args, named, variables)
        return note(by_secant(f, variables[0]), rank=SIGNAL if one_sided(key, args, named) else _rank(key))

    # -- ops with weights --------------------------------------------------------------------------------------------

    def _layer(self, key: str, func: Func, args: Args, named: Named) -> Any:
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **named}
        x, w, b = (given.pop(k, None) for k in ("input", "weight", "bias"))
        rest = args[3:]
        if w.requires_grad or (b is not None and b.requires_grad) or not x.requires_grad:
            out = self._product(key, func, (x, w, None, *rest), given, [t for t in (x, w) if t.requires_grad])
            return out if b is None else out + _beside(b, w, key)
        transposed = "transpose" in key or (key == "convolution" and bool(rest[3]))
        f = partial(_weighted, func, rest, given)
        beside = None if b is None else _beside(b, w, key)
        back = transposed_dense if key == "linear" else _conv_back(key, x, w, rest, given)
        op = Linear(f, x, w, beside, key != "linear", None if transposed else 0, back)
        return self._linear(func(*args, **named), op, x)

    def _linear(self, out: Any, op: Linear, x: Tensor) -> Tensor:
        source = ruled(x.detach().clone(), lambda c: (c,), x)
        b = None if op.b is None else op.b.detach()
        op = replace(op, a=source.detach().to(op.w.dtype), w=op.w.detach(), b=b)
        bounds = noted(x).bounds or ()
        known = all(bool(b.isfinite().all()) for b in bounds)  # columns of a table have no range
        return self._sent(out.detach(), op, source, *(bounds if known else ()))

    def _sent(self, out: Tensor, op: Linear, source: Tensor, *bounds: Tensor) -> Tensor:
        """The op's output, whose relevance goes to the source (and, for pixels, to their bounds) by its rule."""

        def back(c: Tensor) -> Sequence[Tensor | None]:
            c = c.to(op.w.dtype)
            if self.recipe.pixels and bounds:
                low, high = (b.detach().to(op.w.dtype) for b in bounds)
                return self.recipe.pixels(op, low, high, c)
            return ((self.recipe.conv if op.conv else self.recipe.dense)(op, c),)

        return note(ruled(out, back, source, *bounds), linear=(op, source, *bounds))

    def _product(self, key: str, func: Func, args: Args, named: Named, variables: list[Tensor]) -> Any:
        """By a constant: a layer or a scale. By another variable: the gate bears none, equals bear half each."""
        if len(variables) == 1:
            if key in names.AFFINE:
                return self._plain(key, func, args, named, variables)
            others = [t for t in tensors_in((args, named)) if t is not variables[0]]
            if len(others) == 1:
                f = lambda a, w: called(func, args, named, [variables[0], others[0]], a, w)  # noqa: E731
                op = Linear(f, variables[0], others[0], None, conv=False)
                return self._linear(func(*args, **named), op, variables[0])
        ranks = [noted(v).rank for v in variables]
        bear = [i for i, r in enumerate(ranks) if r < max(ranks)] or list(range(len(ranks)))
        run = partial(among, func, args, named, variables, bear)
        return note(by_gradient(run, [variables[i] for i in bear], 1 / len(bear)), rank=min(ranks))

    def _added(self, func: Func, args: Args, named: Named) -> Any:
        """addmm and its kin: beta * bias + alpha * (a @ b)."""
        bias, a, b = args
        if a.requires_grad and not (bias.requires_grad or b.requires_grad or named):
            return self._linear(func(*args), Linear(torch.matmul, a, b, bias, conv=False), a)
        with self:
            return named.get("beta", 1) * bias + named.get("alpha", 1) * (a @ b)

    def _attention(self, func: Func, args: Args, named: Named) -> Any:
        """softmax(q k) v: the weights are a gate."""
        given = {**dict(zip(("query", "key", "value"), args, strict=False)), **named}
        q, k, v = (given.pop(n) for n in ("query", "key", "value"))
        if not v.requires_grad:
            with self:
                weights, v = composite_ops.attention(q, k, v, *args[3:], **given)
                return weights @ v
        with torch.no_grad():
            weights, _ = composite_ops.attention(q, k, v, *args[3:], **given)
        groups = weights.shape[-3] // v.shape[-3] if given.get("enable_gqa") else 1
        return by_gradient(lambda v: weights @ (v.repeat_interleave(groups, -3) if groups > 1 else v), [v])

    def _batch_norm(self, func: Func, args: Args, named: Named) -> Any:
        """An affine map by its statistics; one with the convolution or linear layer that it directly follows."""
        x = args[0]
        scale, shift = composite_ops.batch_statistics(*args, **named)
        merged = noted(x).linear
        if merged is not None and merged[0].axis is not None and (merged[0].conv or x.ndim == 2):
            op, *sources = merged
            out = func(*detached(args), **detached(named))
            return self._sent(_first(out).detach(), op.scaled(scale.to(op.w), shift.to(op.w)), *sources)
        wide = (1, -1, *[1] * (x.ndim - 2))
        return x * scale.view(wide).to(x.dtype) + shift.view(wide).to(x.dtype)

    def _statistics(self, func: Func, args: Args, named: Named) -> Any:
        with self:
            return composite_ops.statistics(plain_op_name(func), *args, **named)

    def _recurrent(self, func: Func, args: Args, named: Named) -> Any:
        with self:
            return recurrent(plain_op_name(func), *args)


OWN: dict[str, Callable[[Propagation, Func, Args, Named], Any]] = {
    **dict.fromkeys(("addmm", "baddbmm"), Propagation._added),
    "scaled_dot_product_attention": Propagation._attention,
    "batch_norm": Propagation._batch_norm,
    **dict.fromkeys(("std_mean", "var_mean"), Propagation._statistics),
    **dict.fromkeys(CELLS, Propagation._recurrent),
}
NORMS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": composite_ops.layer_norm,
    "rms_norm": composite_ops.rms_norm,
    "group_norm": composite_ops.group_norm,
    "instance_norm": composite_ops.instance_norm,
    "glu": composite_ops.glu,
}


def _same(t: Tensor) -> Tensor:
    return t


def _rank(key: str) -> int:
    return GATE if key in names.GATES else BOUNDED if key in names.BOUNDED else SIGNAL


def _first(out: Any) -> Tensor:
    return next(tensors_in(out))


def _weighted(func: Func, rest: Args, named: Named, a: Tensor, w: Tensor) -> Any:
    return func(a, w, None, *rest, **named)


def _conv_back(key: str, x: Tensor, w: Tensor, rest: Args, named: Named) -> Transposed | None:
    if key not in ("conv1d", "conv2d", "conv3d") or x.ndim != w.ndim:
        return None
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return transposed_conv(w.ndim - 2, {**settings, **dict(zip(settings, rest, strict=False)), **named})


def _beside(b: Tensor, w: Tensor, key: str) -> Tensor:
    """A bias (K,) beside the op's output."""
    return b if key == "linear" else b.view(-1, *[1] * (w.ndim - 2))
