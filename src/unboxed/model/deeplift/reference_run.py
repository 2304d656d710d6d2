"""DeepLIFT's multipliers: each op's mean slope between its input on the baseline and on the example.

Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences", arXiv:1704.02685. The
model runs on the baseline, which is noted op by op, and then on the example, whose backward pass hands down multipliers
in place of gradients (Ancona et al. 2018, arXiv:1711.06104, section 3.3, write the rescale rule so).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import RuleError
from ..relu_rules import graph_nodes

Function = Callable[[Tensor], Tensor]


class _Instead(torch.autograd.Function):
    """A value that hands its gradient to another tensor of its shape, from which it may not have been computed."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], other: Tensor) -> Tensor:
        ctx.dtype = other.dtype
        return value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


class _Scaled(torch.autograd.Function):
    """A value whose slope in x is a given multiplier, held apart from what torch saves."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], x: Tensor, multiplier: Tensor) -> Tensor:
        ctx.multiplier, ctx.dtype = multiplier, x.dtype
        return value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, (grad * ctx.multiplier).to(ctx.dtype), None


def instead(value: Tensor, other: Tensor) -> Tensor:
    """`value` with the gradient of `other`."""
    value = value.detach()
    given: Tensor = _Instead.apply(lambda: value.clone() if value._is_view() else value, other)  # type: ignore[no-untyped-call]
    return given


@dataclass(frozen=True, eq=False)
class Pair:
    """An activation on the example, whose gradient the multipliers are, and on the baseline."""

    now: Tensor
    then: Tensor

    def linear(self, f: Function) -> Pair:
        """An affine function of it: its slope is the same everywhere."""
        return Pair(f(self.now), f(self.then))

    def by(self, f: Function) -> Pair:
        """An elementwise function, by the rescale rule (equation 12): (f(a) - f(b)) / (a - b)."""
        a, b = self.now.detach(), self.then
        value, then = f(a), f(b)
        gap = a - b
        near = ~(gap.abs() > _tolerance(gap) * (a.abs() + b.abs()))  # NaN, of two infinities, too
        m = (value - then) / torch.where(near, 1, gap)
        m = torch.where(near, _slope(f, a), m) if bool(near.any()) else m
        scaled: Tensor = _Scaled.apply(lambda: value, self.now, m)  # type: ignore[no-untyped-call]
        return Pair(scaled, then)

    def times(self, other: Pair, product: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Pair:
        """A bilinear product: each factor is weighed by the mean of the other's two values, which is exact."""
        a, b = self.now.detach(), other.now.detach()
        split = product(self.now, (b + other.then) / 2) + product((a + self.then) / 2, other.now)
        return Pair(instead(product(a, b), split), product(self.then, other.then))

    def plus(self, other: Pair) -> Pair:
        return Pair(self.now + other.now, self.then + other.then)


def _tolerance(t: Tensor) -> float:
    """Of a difference, relative to what it is of: below it, the digits of a quotient are lost."""
    return float(torch.finfo(t.dtype).eps ** 0.5 / 10)


def _slope(f: Function, a: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = a.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
    return slope


FAR = 1e30  # stands for infinity: padding, which never wins


def winners(pair: Pair, dim: int) -> Tensor:
    """The multipliers of the largest along an axis (not its value): each is weighed by the share of the straight way
    from baseline to example on which it is the largest; equals share alike.

    Of a ReLU, the larger of x and 0, that is the rescale rule. (captum gives all to the two winners at the ends.)
    """
    now, then = pair.now.movedim(dim, -1), pair.then.movedim(dim, -1).nan_to_num(neginf=-FAR, posinf=FAR)
    shares = _shares(then, now.detach().nan_to_num(neginf=-FAR, posinf=FAR) - then)
    return (torch.where(shares > 0, now, 0) * shares).sum(-1)


def _shares(start: Tensor, way: Tensor) -> Tensor:
    """For lines start + t way (..., K), the part of 0 <= t <= 1 on which each is the uppermost."""
    size = (start.abs() + way.abs()).masked_fill(start <= -FAR, 0).amax(-1, keepdim=True)
    close = 16 * torch.finfo(way.dtype).eps * size
    found = []
    for k in range(way.shape[-1]):
        ahead, faster = start[..., k : k + 1] - start, way[..., k : k + 1] - way
        same = (ahead.abs() <= close) & (faster.abs() <= close)
        level = (faster.abs() <= close) & ~same
        cross = -ahead / torch.where(faster == 0, 1, faster)
        since = torch.where((faster > 0) & ~same & ~level, cross, 0).amax(-1).clamp(0, 1)
        until = torch.where((faster < 0) & ~same & ~level, cross, 1).amin(-1).clamp(0, 1)
        below = (level & (ahead < 0)).any(-1)
        found.append((until - since).clamp(min=0).masked_fill(below, 0) / same.sum(-1))
    shares = torch.stack(found, -1)
    return shares / shares.sum(-1, keepdim=True)


# -- two runs of the model ---------------------------------------------------------------------------------------------

Rule = Callable[[Callable[..., Any], "Call", "Call"], Any]
"""(func, on the example, on the baseline) -> what the op gives, or NotImplemented where it is linear as it stands."""


@dataclass(frozen=True)
class Call:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        return [t for t in _flat((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def numbers(self) -> bool:
        """Whether it is of activations: not of classes, places or masks alone."""
        return any(t.is_floating_point() for t in self.tensors())


class Tape:
    """Notes the ops that have rules on the baseline, and hands them their notes on the example."""

    def __init__(self, rules: dict[str, Rule]) -> None:
        self.rules = rules
        self.notes: list[Call] = []
        self.read = 0

    def write(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in self.rules and Call(name, args, kwargs).numbers():
            self.notes.append(Call(name, _kept(args), _kept(kwargs)))
        return NotImplemented

    def play(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = Call(name, args, kwargs)
        if name not in self.rules or not now.numbers():
            return NotImplemented
        then = self.notes[self.read] if self.read < len(self.notes) else None
        if then is None or then.name != name or [t.shape for t in now.tensors()] != [t.shape for t in then.tensors()]:
            raise RuleError("DeepLIFT compares two runs op by op, and this model runs other ops for the baseline")
        self.notes[self.read] = Call("", (), {})  # it may go
        self.read += 1
        if not any(t.requires_grad for t in now.tensors()):
            return NotImplemented
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            raise RuleError("DeepLIFT can't see into a checkpointed part, which runs again in the backward pass; "
                            "switch checkpointing off")  # fmt: skip
        if not any(t.dtype in HALF for t in now.tensors()):
            return self.rules[name](func, now, then)
        out = self.rules[name](func, *(Call(name, _to(c.args, HALF, torch.float32), _to(c.kwargs, HALF, torch.float32))
                                       for c in (now, then)))  # fmt: skip
        return out if out is NotImplemented else _to(out, {torch.float32}, next(t.dtype for t in now.tensors()))


HALF = frozenset({torch.bfloat16, torch.float16})
"""Too coarse for differences: rules work in single precision there."""


def _to(value: Any, these: Collection[torch.dtype], dtype: torch.dtype) -> Any:
    """A structure with tensors of some dtypes in another."""
    if isinstance(value, dict):
        return {k: _to(v, these, dtype) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_to(v, these, dtype) for v in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in these else value


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [t for v in value for t in _flat(v)] if isinstance(value, (tuple, list)) else [value]


def _kept(value: Any) -> Any:
    """A copy: the model may write over what it gave to an op. Parameters stand for themselves."""
    if isinstance(value, dict):
        return {k: _kept(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(_kept, value)) if not hasattr(value, "_fields") else tuple(map(_kept, value))
    return value.clone() if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else value


# -- nothing escapes ---------------------------------------------------------------------------------------------------

_AFFINE = """
    _Instead _Scaled BackwardHookFunction Add Sub Rsub Neg Sum Mean Cumsum View ViewAs ViewCopy UnsafeView Reshape
    ReshapeAlias Squeeze Unsqueeze Expand Permute Transpose T Mt Mh Select Slice Index IndexSelect IndexPut IndexPutImpl
    Gather Scatter Cat Stack Split SplitWithSizes UnsafeSplit Chunk Unbind Narrow Clone Alias Lift LiftFresh ToCopy
    Contiguous Repeat RepeatInterleave Roll Flip Rot90 ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D
    ReplicationPad1D ReplicationPad2D ReplicationPad3D AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D
    UpsampleBilinear2D UpsampleBilinear2DAa UpsampleLinear1D UpsampleBicubic2D UpsampleTrilinear3D
    UpsampleNearestExact2D Convolution ConvolutionOverrideable MkldnnConvolution CudnnConvolution Addmm Linear Mm Bmm Mv
    Dot Baddbmm Addbmm Mul Div Im2Col Col2Im Unfold AsStrided Diagonal Tril Triu MaskedFill Where NativeDropout
    FusedDropout PixelShuffle PixelUnshuffle NativeChannelShuffle NativeBatchNorm CudnnBatchNorm MiopenBatchNorm Trace
""".split()  # noqa: SIM905
AFFINE = frozenset(_AFFINE)
OTHERS = frozenset({"torch::autograd::CopyBackwards", "torch::autograd::CopySlices", "CopyBackwards", "CopySlices",
                    "torch::autograd::AccumulateGrad", "AccumulateGrad"})  # fmt: skip
CONVOLUTIONS = ("Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution")
FACTORS = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Dot", "Linear", *CONVOLUTIONS), (0, 1)),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm"), (1, 2)),
}
"""Which inputs of a node are multiplied with one another."""


def nothing_escaped(score: Tensor, leaf: Tensor) -> None:
    """Raise RuleError where an op between the leaf and the score has no rule, by its node in the graph."""
    reaching = _reaching(score, leaf)
    strange = {said for node in reaching if (said := _strange(node, reaching))}
    if strange:
        names = ", ".join(sorted(strange))
        raise RuleError(f"DeepLIFT has no rule for {names}; integrated gradients need none")


def _reaching(score: Tensor, leaf: Tensor) -> Collection[Any]:
    """The nodes through which the score depends on the leaf."""
    own = [n for n in graph_nodes(score) if getattr(n, "variable", None) is leaf]
    above: dict[Any, list[Any]] = {}
    for node in graph_nodes(score):
        for below, _ in node.next_functions:
            above.setdefault(below, []).append(node)
    found, todo = set(own), list(own)
    while todo:
        for node in above.get(todo.pop(), []):
            if node not in found:
                found.add(node)
                todo.append(node)
    return found


def _strange(node: Any, reaching: Collection[Any]) -> str:
    name: str = node.name()
    if name in OTHERS:
        return ""
    base = re.sub(r"Backward\d*$", "", name)
    below = [b in reaching for b, _ in node.next_functions]
    if base not in AFFINE:
        return f"the op {base}"
    if sum(below[i] for i in FACTORS.get(base, ()) if i < len(below)) > 1:
        return f"{base} of two activations in this spelling"
    if base == "Div" and len(below) > 1 and below[1]:
        return "Div by an activation in this spelling"
    if base.endswith(("BatchNorm", "BatchNormLegit")) and getattr(node, "_saved_training", False):
        return f"{base} over the batch in this spelling"
    return ""
