"""The mode under which a model runs so that its backward pass propagates relevance."""

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
from ..op_mode import OpReplacementMode, is_in_place
from ..op_tables import canonical_op_name
from ..state import NULL_CONTEXT
from . import composite_ops, op_rules
from .arguments import (
    Args,
    Func,
    Kwargs,
    call_with_replaced_tensors,
    call_with_replaced_variables,
    detach_tensors,
    has_negative_exponent,
    is_active_dropout,
    is_one_sided_clamp,
    run_on_clone,
    without_torch_function_checks,
)
from .attention_rows import AttentionCall, attend_by_rows
from .autograd_functions import (
    BOUNDED_FACTOR_RANK,
    GATE_FACTOR_RANK,
    SIGNAL_FACTOR_RANK,
    activation_annotation_of,
    annotate_activation,
    run_op_with_scaled_gradient,
    run_op_with_secant_gradient,
    with_backward_rule,
)
from .constants import report_relevance_of_constants
from .ledger import OpLedger, RelevanceLedger, Report
from .linear_rules import FirstLayerRuleFn, LinearOp, LinearRuleFn, dense_input_gradient
from .recurrent import CELL_FN_BY_KIND, run_recurrent
from .weighted_ops import broadcast_bias, call_without_bias, conv_op_input_gradient_fn, first_tensor_in


@dataclass(frozen=True)
class LayerRules:
    """The rule of each kind of layer: `first_layer`, if any, for layers whose input is the pixels.

    `softmax_is_gate`: attention weights are constant (Ali et al. 2022). Else they receive half of the relevance of
    what they weigh, and a softmax passes it on by its first-order expansion (Achtibat et al. 2024).
    """

    dense: LinearRuleFn
    conv: LinearRuleFn
    first_layer: FirstLayerRuleFn | None = None
    softmax_is_gate: bool = True


class LRPMode(OpReplacementMode):
    """While open, the backward pass of each op of a model with constant parameters propagates relevance, by the rules.

    A `ledger` counts what no variable receives. Raises RuleError, within the forward pass, at an op without a rule.
    """

    def __init__(self, rules: LayerRules, ledger: RelevanceLedger | None = None) -> None:
        super().__init__(self._run_op_with_rule)
        self.rules, self.ledger = rules, ledger

    def copy_in_place_input(self, tensor: Tensor) -> Tensor:
        annotation = activation_annotation_of(tensor)
        return annotate_activation(
            tensor.clone(),
            gate_rank=annotation.gate_rank,
            bounds=annotation.bounds,
            linear_source=annotation.linear_source,
        )

    def write_in_place(self, target: Tensor, out: Tensor) -> Tensor:
        annotation = activation_annotation_of(out)
        return annotate_activation(target.copy_(out), gate_rank=annotation.gate_rank, bounds=annotation.bounds)

    def _run_op_with_rule(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        op_name = name.strip("_") if name.startswith("__") else name
        variables = [t for t in tensors_in((args, kwargs)) if t.requires_grad]  # parameters are constant
        if not variables or op_name in op_rules.OPS_WITHOUT_COMPUTATION or not torch.is_grad_enabled():
            return NotImplemented
        if is_in_place(func, args, {}):  # on a copy, which has no annotations
            func = partial(run_on_clone, func)
        with torch.autograd.graph.saved_tensors_hooks(
            _identity, _identity
        ):  # else a checkpoint would run ops again, without rules
            out = self._apply_rule(op_name, func, args, kwargs, variables)
        if self.ledger is not None:
            self.ledger.locate_new_sites(out)
            self.ledger.follow(op_name, variables, out)
        return out

    def _factor_rank(self, op_name: str) -> int:
        if op_name == "softmax" and not self.rules.softmax_is_gate:
            return SIGNAL_FACTOR_RANK
        if op_name in op_rules.GATE_OPS:
            return GATE_FACTOR_RANK
        return BOUNDED_FACTOR_RANK if op_name in op_rules.BOUNDED_FACTOR_OPS else SIGNAL_FACTOR_RANK

    def _make_report_fn_or_none(self) -> Report | None:
        """Where an op reports what it holds back, if that is counted."""
        return None if self.ledger is None else self.ledger.make_report_fn()

    def _apply_rule(self, op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor]) -> Any:
        if op_name in op_rules.DECOMPOSED_FUNCTIONS and isinstance(func, FunctionType):
            return self._run_decomposed(func, args, kwargs)
        if op_name in op_rules.CONV_OPS or op_name == "linear":
            return self._conv_or_linear_rule(op_name, func, args, kwargs)
        if op_name in op_rules.PRODUCT_OPS or (
            op_name in op_rules.AFFINE_OPS and op_name.lstrip("ri") in ("mul", "multiply")
        ):
            return self._product_rule(op_name, func, args, kwargs, variables)
        if op_name in op_rules.ELEMENTWISE_OPS:
            return self._elementwise_rule(op_name, func, args, kwargs, variables)
        if op_name in op_rules.GRADIENT_SCALE_BY_OP:
            run = partial(call_with_replaced_tensors, func, args, kwargs, variables[:1])
            scale, report = op_rules.GRADIENT_SCALE_BY_OP[op_name], self._make_report_fn_or_none()
            return annotate_activation(
                run_op_with_scaled_gradient(run, variables[:1], scale, report), gate_rank=self._factor_rank(op_name)
            )
        if op_name in COMPOSITE_OP_BY_NAME:
            with NULL_CONTEXT if self.ledger is None else self:  # which sees its bias
                return COMPOSITE_OP_BY_NAME[op_name](*args, **kwargs)
        if op_name in RULE_METHOD_BY_OP_NAME:
            return RULE_METHOD_BY_OP_NAME[op_name](self, func, args, kwargs)
        return self._apply_default_rule(op_name, func, args, kwargs, variables)

    def _apply_default_rule(self, op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor]) -> Any:
        """An op without a special rule: its gradient, nothing where it is not differentiable, or an error."""
        if op_name in op_rules.RECIPROCAL_OPS:  # a scale, which receives no relevance
            return func(*detach_tensors(args), **detach_tensors(kwargs))
        if op_name in ("div", "divide", "true_divide", "truediv", "itruediv", "idiv"):
            args = (args[0], *detach_tensors(args[1:]))
            kwargs = {k: detach_tensors(v) if k == "other" else v for k, v in kwargs.items()}
            variables = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        out = func(*args, **kwargs)
        if op_name in op_rules.PLAIN_GRADIENT_OPS:
            if self.ledger is not None:
                report_relevance_of_constants(self.ledger.make_report_fn(), op_name, func, args, kwargs, variables, out)
            self._propagate_annotations(op_name, func, args, kwargs, variables, out)
            return out
        if not any(t.requires_grad for t in tensors_in(out)):
            return out
        if isinstance(func, FunctionType) and func.__module__ in ("torch.nn.functional", "torch.functional"):
            return self._run_decomposed(func, args, kwargs)
        raise RuleError(
            f"LRP has no rule for the op {op_name}: write it in ops that it knows, or use a method without rules, such "
            "as gradient"
        )

    def _run_decomposed(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Run a function of torch.nn.functional so that the ops inside it get their rules."""
        with self:
            return without_torch_function_checks(func)(*args, **kwargs)

    # -- ops of one variable -----------------------------------------------------------------------------------------

    def _propagate_annotations(
        self, op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor], out: Any
    ) -> None:
        """Carry annotations of the variables to ops that only move or scale them."""
        if op_name not in op_rules.ANNOTATION_PRESERVING_OPS or not variables:
            return
        annotations, is_single = [activation_annotation_of(v) for v in variables], len(variables) == 1
        rank = annotations[0].gate_rank if is_single else SIGNAL_FACTOR_RANK
        linear = annotations[0].linear_source if is_single and op_name in ("clone", "contiguous") else None
        bounds: list[tuple[Tensor, Tensor]] | list[None] = [None] * len(list(tensors_in(out)))
        joins = is_single or op_name in op_rules.CONCATENATION_OPS
        if joins and all(k.bounds for k in annotations) and not is_active_dropout(op_name, args, kwargs):
            run = partial(call_with_replaced_tensors, func, args, kwargs, variables)
            ends = [list(tensors_in(run(*(k.bounds[i] for k in annotations if k.bounds)))) for i in (0, 1)]
            bounds = [(torch.minimum(*pair), torch.maximum(*pair)) for pair in zip(*ends, strict=True)]
        for h, h_bounds in zip(tensors_in(out), bounds, strict=True):
            if h.requires_grad:
                annotate_activation(h, gate_rank=rank, bounds=h_bounds, linear_source=linear)

    def _elementwise_rule(self, op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor]) -> Any:
        if len(variables) != 1 or next(tensors_in((args, kwargs))) is not variables[0]:
            raise RuleError(f"LRP has no rule for {op_name} with settings that depend on the input")
        if op_name in ("pow", "ipow") and has_negative_exponent(args, kwargs):
            return func(*detach_tensors(args), **detach_tensors(kwargs))
        f = partial(call_with_replaced_tensors, func, args, kwargs, variables)
        return annotate_activation(
            run_op_with_secant_gradient(f, variables[0], self._make_report_fn_or_none()),
            gate_rank=SIGNAL_FACTOR_RANK if is_one_sided_clamp(op_name, args, kwargs) else self._factor_rank(op_name),
        )

    # -- ops with weights --------------------------------------------------------------------------------------------

    def _conv_or_linear_rule(self, op_name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        arguments = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        x, w, b = (arguments.pop(k, None) for k in ("input", "weight", "bias"))
        rest = args[3:]
        if w.requires_grad or (b is not None and b.requires_grad) or not x.requires_grad:
            out = self._product_rule(
                op_name, func, (x, w, None, *rest), arguments, [t for t in (x, w) if t.requires_grad]
            )
            with self:
                return out if b is None else out + broadcast_bias(b, w, op_name)
        is_transposed = "transpose" in op_name or (op_name == "convolution" and bool(rest[3]))
        f = partial(call_without_bias, func, rest, arguments)
        bias = None if b is None else broadcast_bias(b, w, op_name)
        input_gradient = (
            dense_input_gradient if op_name == "linear" else conv_op_input_gradient_fn(op_name, x, w, rest, arguments)
        )
        op = LinearOp(f, x, w, bias, op_name != "linear", None if is_transposed else 0, input_gradient)
        return self._attach_rule_to_linear_op(func(*args, **kwargs), op, x)

    def _attach_rule_to_linear_op(self, out: Any, op: LinearOp, x: Tensor) -> Tensor:
        source = with_backward_rule(x.detach().clone(), lambda c: (c,), x)
        if self.ledger is not None:
            self.ledger.follow("copy", [x], source)
        b = None if op.b is None else op.b.detach()
        op = replace(op, a=source.detach().to(op.w.dtype), w=op.w.detach(), b=b)
        bounds = activation_annotation_of(x).bounds or ()
        known = all(bool(b.isfinite().all()) for b in bounds)  # columns of a table have no range
        return self._attach_rule(out.detach(), op, source, *(bounds if known else ()))

    def _attach_rule(self, out: Tensor, op: LinearOp, source: Tensor, *bounds: Tensor) -> Tensor:
        """The op's output, whose relevance goes to the source (and, for pixels, to their bounds) by its rule."""

        report = self._make_report_fn_or_none()

        def backward_rule(c: Tensor) -> Sequence[Tensor | None]:
            c = c.to(op.w.dtype)
            if self.rules.first_layer and bounds:
                low, high = (b.detach().to(op.w.dtype) for b in bounds)
                return self.rules.first_layer(op, low, high, c)
            return ((self.rules.conv if op.is_conv else self.rules.dense)(op, c, report),)

        return annotate_activation(
            with_backward_rule(out, backward_rule, source, *bounds), linear_source=(op, source, *bounds)
        )

    def _product_rule(self, op_name: str, func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor]) -> Any:
        """By a constant: a layer or a scale. By another variable: a gate receives none, equals half each."""
        if len(variables) == 1:
            if op_name in op_rules.AFFINE_OPS:
                return self._apply_default_rule(op_name, func, args, kwargs, variables)
            others = [t for t in tensors_in((args, kwargs)) if t is not variables[0]]
            if len(others) == 1:
                f = lambda a, w: call_with_replaced_tensors(func, args, kwargs, [variables[0], others[0]], a, w)  # noqa: E731
                op = LinearOp(f, variables[0], others[0], None, is_conv=False)
                return self._attach_rule_to_linear_op(func(*args, **kwargs), op, variables[0])
        ranks = [activation_annotation_of(v).gate_rank for v in variables]
        receivers = [i for i, r in enumerate(ranks) if r < max(ranks)] or list(range(len(ranks)))
        run = partial(call_with_replaced_variables, func, args, kwargs, variables, receivers)
        return annotate_activation(
            run_op_with_scaled_gradient(run, [variables[i] for i in receivers], 1 / len(receivers)),
            gate_rank=min(ranks),
        )

    def _addmm_rule(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """addmm and baddbmm: beta * bias + alpha * (a @ b)."""
        bias, a, b = args
        if a.requires_grad and not (bias.requires_grad or b.requires_grad or kwargs):
            return self._attach_rule_to_linear_op(func(*args), LinearOp(torch.matmul, a, b, bias, is_conv=False), a)
        with self:
            return kwargs.get("beta", 1) * bias + kwargs.get("alpha", 1) * (a @ b)

    def _attention_rule(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """softmax(q k) v: the weights are a gate, or signals as the values are."""
        call = AttentionCall(*args, **kwargs)
        if self.rules.softmax_is_gate and call.value.requires_grad:
            call = call.with_constant_weights()
        if call.dropout_p > 0 or (self.ledger is not None and self.ledger.follows_each_op):
            return self._attend_in_plain_ops(call)
        report = self._make_report_fn_or_none()
        mode = LRPMode(self.rules, None if report is None else OpLedger(report))
        return attend_by_rows(call, func(*args, **kwargs), mode._attend_in_plain_ops)

    def _attend_in_plain_ops(self, call: AttentionCall) -> Tensor:
        if not (self.rules.softmax_is_gate and call.value.requires_grad):
            with self:
                weights, v = composite_ops.attention_weights_and_values(call)
                return weights @ v
        with torch.no_grad():
            weights, _ = composite_ops.attention_weights_and_values(call)
        n_repeats = weights.shape[-3] // call.value.shape[-3] if call.enable_gqa else 1
        return run_op_with_scaled_gradient(
            lambda v: weights @ (v.repeat_interleave(n_repeats, -3) if n_repeats > 1 else v), [call.value]
        )

    def _batch_norm_rule(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """An affine map by its statistics; one with the convolution or linear layer that it directly follows."""
        x = args[0]
        scale, shift = composite_ops.batch_norm_scale_and_shift(*args, **kwargs)
        linear_source = activation_annotation_of(x).linear_source
        if linear_source is not None and linear_source[0].can_scale_outputs(x):
            op, *sources = linear_source
            out = func(*detach_tensors(args), **detach_tensors(kwargs))
            merged = op.with_affine_outputs(scale.to(op.w), shift.to(op.w))
            return self._attach_rule(first_tensor_in(out).detach(), merged, *sources)
        channel_shape = (1, -1, *[1] * (x.ndim - 2))
        with NULL_CONTEXT if self.ledger is None else self:
            return x * scale.view(channel_shape).to(x.dtype) + shift.view(channel_shape).to(x.dtype)

    def _std_or_var_mean_rule(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        with self:
            return composite_ops.std_or_var_mean(canonical_op_name(func), *args, **kwargs)

    def _recurrent_rule(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        with self:
            return run_recurrent(canonical_op_name(func), *args)


RULE_METHOD_BY_OP_NAME: dict[str, Callable[[LRPMode, Func, Args, Kwargs], Any]] = {
    **dict.fromkeys(("addmm", "baddbmm"), LRPMode._addmm_rule),
    "scaled_dot_product_attention": LRPMode._attention_rule,
    "batch_norm": LRPMode._batch_norm_rule,
    **dict.fromkeys(("std_mean", "var_mean"), LRPMode._std_or_var_mean_rule),
    **dict.fromkeys(CELL_FN_BY_KIND, LRPMode._recurrent_rule),
}
COMPOSITE_OP_BY_NAME: dict[str, Callable[..., Tensor]] = {
    "layer_norm": composite_ops.layer_norm,
    "rms_norm": composite_ops.rms_norm,
    "group_norm": composite_ops.group_norm,
    "instance_norm": composite_ops.instance_norm,
    "glu": composite_ops.glu,
}


def _identity(t: Tensor) -> Tensor:
    return t
