"""DeepLIFT's multipliers: each op's mean slope between its inputs for the baseline and for the example.

Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences", arXiv:1704.02685. The
model runs on the baseline, recorded op by op, and then on the example, whose backward pass propagates multipliers
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
from torch.utils._pytree import tree_leaves, tree_map_only

from ...errors import RuleError
from ..relu_rules import graph_nodes

TensorFn = Callable[[Tensor], Tensor]


class _SubstituteGradient(torch.autograd.Function):
    """A value that passes its gradient to another tensor of its shape, from which it need not be computed."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Tensor], gradient_source: Tensor) -> Tensor:
        ctx.dtype = gradient_source.dtype
        return compute()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


class _ScaleGradient(torch.autograd.Function):
    """A value whose derivative in x is a given multiplier, which torch's saved-tensor hooks do not see."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Tensor], x: Tensor, multiplier: Tensor) -> Tensor:
        ctx.multiplier, ctx.dtype = multiplier, x.dtype
        return compute()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, (grad * ctx.multiplier).to(ctx.dtype), None


def with_gradient_of(value: Tensor, gradient_source: Tensor) -> Tensor:
    """`value` with the gradient of another tensor."""
    value = value.detach()
    out: Tensor = _SubstituteGradient.apply(lambda: value.clone() if value._is_view() else value, gradient_source)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True, eq=False)
class ActivationPair:
    """An activation of the example and of the baseline."""

    x: Tensor  # of the example; multipliers are propagated through it
    ref: Tensor  # of the baseline

    def apply_affine_function(self, f: TensorFn) -> ActivationPair:
        """An affine function of it, whose gradient is the multiplier."""
        return ActivationPair(f(self.x), f(self.ref))

    def apply_elementwise(self, f: TensorFn) -> ActivationPair:
        """An elementwise function, by the rescale rule (equation 12): (f(a) - f(b)) / (a - b)."""
        a, b = self.x.detach(), self.ref
        value, ref_value = f(a), f(b)
        delta = a - b
        is_close = ~(delta.abs() > _relative_tolerance(delta) * (a.abs() + b.abs()))  # also for NaN of infinities
        multiplier = (value - ref_value) / torch.where(is_close, 1, delta)
        multiplier = (
            torch.where(is_close, _elementwise_derivative(f, a), multiplier) if bool(is_close.any()) else multiplier
        )
        scaled: Tensor = _ScaleGradient.apply(lambda: value, self.x, multiplier)  # type: ignore[no-untyped-call]
        return ActivationPair(scaled, ref_value)

    def multiply(
        self, other: ActivationPair, product: Callable[[Tensor, Tensor], Tensor] = torch.mul
    ) -> ActivationPair:
        """A bilinear product: each factor is weighted by the mean of the other's two values, which is exact."""
        a, b = self.x.detach(), other.x.detach()
        split = product(self.x, (b + other.ref) / 2) + product((a + self.ref) / 2, other.x)
        return ActivationPair(with_gradient_of(product(a, b), split), product(self.ref, other.ref))

    def add(self, other: ActivationPair) -> ActivationPair:
        return ActivationPair(self.x + other.x, self.ref + other.ref)


def _relative_tolerance(t: Tensor) -> float:
    """Of a difference, relative to its terms: below it, a quotient loses its precision."""
    return float(torch.finfo(t.dtype).eps ** 0.5 / 10)


def _elementwise_derivative(f: TensorFn, a: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = a.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(f(leaf).sum(), leaf)
    return grad


INFINITY_SUBSTITUTE = 1e30  # in place of infinity: padding, which is never the maximum


def max_gradient_source(pair: ActivationPair, dim: int) -> Tensor:
    """A tensor whose gradient is the multipliers of the maximum along an axis (its value is not the maximum).

    Each input is weighted by the part of the straight line from baseline to example on which it is the maximum; equal
    ones have equal parts. For a ReLU, the maximum of x and 0, that is the rescale rule. (captum gives all to the two
    maxima at the ends.)
    """
    x, ref = (
        pair.x.movedim(dim, -1),
        pair.ref.movedim(dim, -1).nan_to_num(neginf=-INFINITY_SUBSTITUTE, posinf=INFINITY_SUBSTITUTE),
    )
    shares = _fractions_of_line_where_largest(
        ref, x.detach().nan_to_num(neginf=-INFINITY_SUBSTITUTE, posinf=INFINITY_SUBSTITUTE) - ref
    )
    return (torch.where(shares > 0, x, 0) * shares).sum(-1)


def _fractions_of_line_where_largest(start: Tensor, direction: Tensor) -> Tensor:
    """For lines start + t direction (..., K), the part of 0 <= t <= 1 on which each is the largest."""
    scale = (start.abs() + direction.abs()).masked_fill(start <= -INFINITY_SUBSTITUTE, 0).amax(-1, keepdim=True)
    tolerance = 16 * torch.finfo(direction.dtype).eps * scale
    lengths = []
    for k in range(direction.shape[-1]):
        lead, lead_rate = start[..., k : k + 1] - start, direction[..., k : k + 1] - direction
        is_equal = (lead.abs() <= tolerance) & (lead_rate.abs() <= tolerance)
        is_parallel = (lead_rate.abs() <= tolerance) & ~is_equal
        crossing = -lead / torch.where(lead_rate == 0, 1, lead_rate)
        t_start = torch.where((lead_rate > 0) & ~is_equal & ~is_parallel, crossing, 0).amax(-1).clamp(0, 1)
        t_end = torch.where((lead_rate < 0) & ~is_equal & ~is_parallel, crossing, 1).amin(-1).clamp(0, 1)
        is_below = (is_parallel & (lead < 0)).any(-1)
        lengths.append((t_end - t_start).clamp(min=0).masked_fill(is_below, 0) / is_equal.sum(-1))
    shares = torch.stack(lengths, -1)
    return shares / shares.sum(-1, keepdim=True)


# -- two runs of the model ---------------------------------------------------------------------------------------------

DeepLiftRule = Callable[[Callable[..., Any], "OpCall", "OpCall"], Any]
"""(func, call for the example, for the baseline) -> the op's output, or NotImplemented where its gradient is right."""


@dataclass(frozen=True)
class OpCall:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def has_floating_tensors(self) -> bool:
        """Whether it has activations: not only classes, indices or masks."""
        return any(t.is_floating_point() for t in self.tensors())

    def cast_half_to_float32(self) -> OpCall:
        """The call with half-precision tensors as float32."""
        args, kwargs = _cast_tensors((self.args, self.kwargs), HALF_PRECISION_DTYPES, torch.float32)
        return OpCall(self.name, args, kwargs)


class ReferenceTape:
    """Records the ops that have rules for the baseline, and applies the rules for the example."""

    def __init__(self, rules: dict[str, DeepLiftRule]) -> None:
        self.rules = rules
        self.calls: list[OpCall] = []
        self.position = 0

    def record(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in self.rules and OpCall(name, args, kwargs).has_floating_tensors():
            self.calls.append(OpCall(name, _clone_tensors(args), _clone_tensors(kwargs)))
        return NotImplemented

    def apply_rule(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x_call = OpCall(name, args, kwargs)
        if name not in self.rules or not x_call.has_floating_tensors():
            return NotImplemented
        ref_call = self._next_reference_call(x_call)
        if not any(t.requires_grad for t in x_call.tensors()):
            return NotImplemented
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            raise RuleError("DeepLIFT can't see into a checkpointed part, which runs again in the backward pass; "
                            "switch checkpointing off")  # fmt: skip
        if not any(t.dtype in HALF_PRECISION_DTYPES for t in x_call.tensors()):
            return self.rules[name](func, x_call, ref_call)
        out = self.rules[name](func, x_call.cast_half_to_float32(), ref_call.cast_half_to_float32())
        dtype = next(t.dtype for t in x_call.tensors())
        return out if out is NotImplemented else _cast_tensors(out, {torch.float32}, dtype)

    def _next_reference_call(self, x_call: OpCall) -> OpCall:
        """The baseline's call of the same op. Raises RuleError where it ran another."""
        ref_call = self.calls[self.position] if self.position < len(self.calls) else None
        shapes = [t.shape for t in x_call.tensors()]
        if ref_call is None or ref_call.name != x_call.name or shapes != [t.shape for t in ref_call.tensors()]:
            raise RuleError("DeepLIFT compares two runs op by op, and this model runs different ops for the baseline")
        self.calls[self.position] = OpCall("", (), {})  # frees its tensors
        self.position += 1
        return ref_call


HALF_PRECISION_DTYPES = frozenset({torch.bfloat16, torch.float16})
"""Too coarse for differences: their rules work in single precision."""


def _cast_tensors(value: Any, from_dtypes: Collection[torch.dtype], dtype: torch.dtype) -> Any:
    """A structure with its tensors of some dtypes cast to another."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.dtype in from_dtypes else t, value)


def _clone_tensors(value: Any) -> Any:
    """A copy, as the model may overwrite an op's arguments; parameters are not copied."""
    return tree_map_only(Tensor, lambda t: t if isinstance(t, nn.Parameter) else t.clone(), value)


# -- every op has a rule -----------------------------------------------------------------------------------------------

_AFFINE_NODE_NAMES = """
    _SubstituteGradient _ScaleGradient BackwardHookFunction Add Sub Rsub Neg Sum Mean Cumsum View ViewAs ViewCopy
    UnsafeView Reshape
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
AFFINE_NODES = frozenset(_AFFINE_NODE_NAMES)
PASSTHROUGH_NODES = frozenset(
    {
        "torch::autograd::CopyBackwards",
        "torch::autograd::CopySlices",
        "CopyBackwards",
        "CopySlices",
        "torch::autograd::AccumulateGrad",
        "AccumulateGrad",
    }
)
CONVOLUTION_NODES = ("Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution")
FACTOR_INPUT_INDICES_BY_NODE = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Dot", "Linear", *CONVOLUTION_NODES), (0, 1)),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm"), (1, 2)),
}
"""Which inputs of a node are multiplied with each other."""


def check_every_op_has_rule(score: Tensor, leaf: Tensor) -> None:
    """Raise RuleError where an op between the leaf and the score has no rule, judged by its graph node."""
    path_nodes = _nodes_between(score, leaf)
    unsupported = {description for node in path_nodes if (description := _unsupported_op_description(node, path_nodes))}
    if unsupported:
        names = ", ".join(sorted(unsupported))
        raise RuleError(f"DeepLIFT has no rule for {names}; integrated gradients need none")


def _nodes_between(score: Tensor, leaf: Tensor) -> Collection[Any]:
    """The nodes through which the score depends on the leaf."""
    leaf_nodes = [n for n in graph_nodes(score) if getattr(n, "variable", None) is leaf]
    consumers: dict[Any, list[Any]] = {}
    for node in graph_nodes(score):
        for input_node, _ in node.next_functions:
            consumers.setdefault(input_node, []).append(node)
    reached, pending = set(leaf_nodes), list(leaf_nodes)
    while pending:
        for node in consumers.get(pending.pop(), []):
            if node not in reached:
                reached.add(node)
                pending.append(node)
    return reached


def _unsupported_op_description(node: Any, path_nodes: Collection[Any]) -> str:
    name: str = node.name()
    if name in PASSTHROUGH_NODES:
        return ""
    op_name = re.sub(r"Backward\d*$", "", name)
    is_on_path = [b in path_nodes for b, _ in node.next_functions]
    if op_name not in AFFINE_NODES:
        return f"the op {op_name}"
    if sum(is_on_path[i] for i in FACTOR_INPUT_INDICES_BY_NODE.get(op_name, ()) if i < len(is_on_path)) > 1:
        return f"{op_name} of two activations in this spelling"
    if op_name == "Div" and len(is_on_path) > 1 and is_on_path[1]:
        return "Div by an activation in this spelling"
    if op_name.endswith(("BatchNorm", "BatchNormLegit")) and getattr(node, "_saved_training", False):
        return f"{op_name} over the batch in this spelling"
    return ""
