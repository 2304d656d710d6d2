"""Backward rules of ReLU and its variants: what is propagated in place of their gradient.

A rule hooks the nodes of the finished autograd graph, so it applies alike to ReLU modules, `F.relu`, `Tensor.relu_`
(also when its result is ignored), scripted and (non-reentrant) checkpointed ReLUs; to ReLU6, hardtanh, thresholds,
leaky and parametric ReLUs; and to a ReLU written as a clamp from below at 0 or a maximum with 0. The graph is then
checked: a ReLU written as a minimum or a clamp from above is an error, and ops that may be ReLUs (a mask,
`torch.where`, a maximum of two activations, a clamp to other bounds) give a warning. Smooth ops (GELU, SiLU, ELU,
hardswish) and hard sigmoids keep their gradient.

The papers define the rules for ReLU. With R the gradient from above and f' the op's derivative at its input, we use
- guided backprop: f' * max(R, 0). Springenberg et al. 2015, section 3.4: (f > 0) * (R > 0) * R, whose first factor is a
  ReLU's derivative. So ReLU6 propagates inside its interval only, and a leaky ReLU's negative side by its slope.
- deconvnet: max(R, 0), whatever the input. Zeiler & Fergus 2014, section 2.1, rectify the signal so that each
  reconstruction is positive; they do not apply the model's own op to it. ReLU6's cap at 6 is not applied to the signal:
  it is not an activation, has no scale of its own, and a map would no longer double with the score.
Captum overrides `nn.ReLU` only: there, all the others keep their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RuleError, warn
from .op_tables import (
    ADVICE_BY_OPAQUE_NODE_NAME,
    RELU_NODES,
    SHAPE_NODE_NAME_PREFIXES,
    is_hard_sigmoid,
    is_negated_relu,
    may_be_masked_relu,
    rectified_input_index,
)
from .state import NULL_CONTEXT, RefCountedContext

BackwardFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ReluRule:
    """A rule: `backward(grad_input, grad_output)` gives the gradient of an op's input."""

    name: str
    backward: BackwardFn


GUIDED_BACKPROP_RULE = ReluRule(
    "guided backprop", lambda grad_input, grad_output: grad_input.masked_fill(grad_output < 0, 0)
)
DECONVNET_RULE = ReluRule("deconvnet", lambda grad_input, grad_output: grad_output.clamp(min=0))


def applying_rule(rule: ReluRule | None, root: Tensor) -> AbstractContextManager[None]:
    """While open, a backward pass from `root` uses the rule. Raises RuleError if it would miss an op."""
    return NULL_CONTEXT if rule is None else _applying_rule(rule, root)


@contextmanager
def _applying_rule(rule: ReluRule, root: Tensor) -> Iterator[None]:
    with ExitStack() as stack:
        for node, i in _rectifier_nodes(rule, root):
            stack.callback(node.register_hook(_make_gradient_hook(rule.backward, i)).remove)
        yield


def _make_gradient_hook(backward: BackwardFn, input_index: int = 0) -> Callable[[Any, Any], Any]:
    """A node's hook that replaces the gradient of its input i."""

    def hook(grad_inputs: tuple[Tensor, ...], grad_outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (
            None
            if grad_inputs[input_index] is None
            else (
                *grad_inputs[:input_index],
                backward(grad_inputs[input_index], grad_outputs[0]),
                *grad_inputs[input_index + 1 :],
            )
        )

    return hook


def _rectifier_nodes(rule: ReluRule, root: Tensor) -> list[tuple[Any, int]]:
    """All rectifier nodes below `root`, each with the index of its rectified input. Raises RuleError."""
    nodes = list(graph_nodes(root))
    for node in nodes:
        if (advice := _opaque_reason(node)) is not None:
            raise RuleError(f"{rule.name} can't see into {advice}")
    if disguised := sorted({n.name() for n in nodes if is_negated_relu(n)}):
        raise RuleError(
            f"{rule.name} has a rule for ReLU; this model also has {', '.join(disguised)} at 0, a ReLU of the negated "
            "input that would silently keep its plain gradient. Write it as relu"
        )
    rectifiers = [(node, i) for node in nodes if (i := rectified_input_index(node)) is not None]
    consumers = _consumers_by_node(nodes, [node for node, _ in rectifiers])
    rectifiers = [(node, i) for node, i in rectifiers if not is_hard_sigmoid(node, consumers[node])]
    if not rectifiers:
        raise RuleError(
            f"{rule.name} has a rule for ReLU, ReLU6 and leaky ReLU, and there is none between the input and this "
            "target: use gradient"
        )
    _warn_of_possible_relus(rule, nodes)
    return rectifiers


def _consumers_by_node(nodes: Sequence[Any], targets: Sequence[Any]) -> dict[Any, list[Any]]:
    """For some nodes of a graph, the nodes that use their output."""
    consumers: dict[Any, list[Any]] = {node: [] for node in targets}
    for node in nodes:
        for below, _ in node.next_functions:
            if below in consumers:
                consumers[below].append(node)
    return consumers


def _warn_of_possible_relus(rule: ReluRule, nodes: Sequence[Any]) -> None:
    if gates := sorted({n.name() for n in nodes if may_be_masked_relu(n)}):
        warn(
            f"{rule.name} has a rule for ReLU, ReLU6 and leaky ReLU only; if {', '.join(gates)} is one in another "
            "spelling, it keeps its plain gradient"
        )


def _opaque_reason(node: Any) -> str | None:
    name: str = node.name()
    for start, advice in ADVICE_BY_OPAQUE_NODE_NAME.items():
        if name.startswith(start):
            return advice
    is_harmless = name.startswith("BackwardHookFunction")  # of a module's full backward hooks
    if isinstance(node, torch.autograd.function.BackwardCFunction) and not is_harmless:
        return f"the custom autograd function {name.removesuffix('Backward')}, which may hide a ReLU"
    return None


def graph_nodes(root: Tensor) -> Iterator[Any]:
    """Every node of the autograd graph below a tensor, once."""
    todo, seen = [root.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [below for below, _ in node.next_functions]


def relu_node_producing(h: Tensor) -> Any | None:
    """The autograd node of the ReLU whose output h is, if any."""
    node = h.grad_fn
    while node is not None and node.name().startswith(SHAPE_NODE_NAME_PREFIXES):
        node = node.next_functions[0][0]
    return node if node is not None and is_relu_node(node) else None


@contextmanager
def straight_through_relus(relus: Sequence[Any]) -> Iterator[None]:
    """While open, these ReLUs pass on the full gradient: that before their clamps."""
    with ExitStack() as stack:
        for node in relus:
            stack.callback(node.register_hook(_make_gradient_hook(lambda grad_input, grad_output: grad_output)).remove)
        yield


def is_relu_node(node: Any) -> bool:
    return bool(node.name().startswith(RELU_NODES))


@contextmanager
def leaving_scripts_unoptimized(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """While open, scripted code records each op: after its first runs it would be one opaque node."""
    scripts = [m for m in modules if isinstance(m, torch.jit.ScriptModule)]
    if not scripts:
        yield
        return
    with UNOPTIMIZED_SCRIPTS_CONTEXT:
        for module in scripts:
            for name in module._c._method_names():
                module._c._get_method(name)._debug_flush_compilation_cache()
        yield


@contextmanager
def _disabling_script_optimizer() -> Iterator[None]:
    n_before = torch._C._jit_set_num_profiled_runs(1_000_000)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch._C._jit_set_num_profiled_runs(n_before)


UNOPTIMIZED_SCRIPTS_CONTEXT = RefCountedContext(_disabling_script_optimizer)
