"""Backward rules: what a ReLU sends back instead of its gradient.

A rule hooks the nodes of the finished autograd graph, so it holds for ReLU modules, `F.relu`, `Tensor.relu_`, in-place
with the result ignored, scripted and (non-reentrant) checkpointed ReLUs alike. Afterwards nothing may have escaped:
not ruled are ReLUs spelled as clamp, hardtanh (ReLU6), threshold or maximum, which are refused, and masks
(`x * (x > 0)`, `torch.where`), which can't be told from other products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RuleError, warn
from .ops import OPAQUE, RULED, SHAPE_ONLY, looks_like_relu, may_gate

Signal = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """`signal(below, above)`: a ReLU's own gradient below it and the signal from above -> what it sends down."""

    name: str
    signal: Signal


guided = Rule("guided backprop", lambda below, above: below.clamp(min=0))
deconvnet = Rule("deconvnet", lambda below, above: above.clamp(min=0))


@contextmanager
def ruled(rule: Rule | None, root: Tensor) -> Iterator[None]:
    """While open, a backward pass from `root` obeys the rule. Raises RuleError if an op would escape it."""
    with ExitStack() as stack:
        if rule is not None:
            for node in _relus(rule, root):
                stack.callback(node.register_hook(_sends(rule.signal)).remove)
        yield


def _sends(signal: Signal) -> Callable[[Any, Any], Any]:
    def hook(below: tuple[Tensor, ...], above: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if below[0] is None else (signal(below[0], above[0]), *below[1:])

    return hook


def _relus(rule: Rule, root: Tensor) -> list[Any]:
    """The ReLUs below `root`, all of them, or an error."""
    nodes = list(graph(root))
    for node in nodes:
        if (advice := _opaque(node)) is not None:
            raise RuleError(f"{rule.name} can't see into {advice}")
    if clamps := sorted({n.name() for n in nodes if looks_like_relu(n)}):
        raise RuleError(
            f"{rule.name} has a rule for ReLU only; this net also has {', '.join(clamps)} at 0, a ReLU in another "
            "spelling that would silently keep its plain gradient. Write it as relu"
        )
    relus = [n for n in nodes if is_relu(n)]
    if not relus:
        raise RuleError(
            f"{rule.name} has a rule for ReLU, and none lies between the input and this target: use gradient"
        )
    if masks := sorted({n.name() for n in nodes if may_gate(n)}):
        warn(
            f"{rule.name} has a rule for ReLU only; if {', '.join(masks)} is a ReLU written as a mask, it keeps its "
            "plain gradient"
        )
    return relus


def _opaque(node: Any) -> str | None:
    name: str = node.name()
    for start, advice in OPAQUE.items():
        if name.startswith(start):
            return advice
    harmless = name.startswith("BackwardHookFunction")  # what a module's own full backward hooks put in
    if isinstance(node, torch.autograd.function.BackwardCFunction) and not harmless:
        return f"the custom autograd function {name.removesuffix('Backward')}, which may hide a ReLU"
    return None


def graph(root: Tensor) -> Iterator[Any]:
    """Every node of the autograd graph below a tensor, once."""
    todo, seen = [root.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [below for below, _ in node.next_functions]


def final_relu(h: Tensor) -> Any | None:
    """The autograd node of the ReLU that h comes out of, if it comes out of one."""
    node = h.grad_fn
    while node is not None and node.name().startswith(SHAPE_ONLY):
        node = node.next_functions[0][0]
    return node if node is not None and is_relu(node) else None


@contextmanager
def opened(relus: Sequence[Any]) -> Iterator[None]:
    """While open, these ReLUs let all of the signal through: the gradient is then that before their clamps."""
    with ExitStack() as stack:
        for node in relus:
            stack.callback(node.register_hook(_sends(lambda below, above: above)).remove)
        yield


def is_relu(node: Any) -> bool:
    return bool(node.name().startswith(RULED))


@contextmanager
def unoptimized_scripts(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """While open, scripted code records each of its ops: after its first runs it would be one opaque node."""
    scripts = [m for m in modules if isinstance(m, torch.jit.ScriptModule)]
    if not scripts:
        yield
        return
    runs = torch._C._jit_set_num_profiled_runs(1_000_000)  # type: ignore[arg-type]
    try:
        for module in scripts:
            for name in module._c._method_names():
                module._c._get_method(name)._debug_flush_compilation_cache()
        yield
    finally:
        torch._C._jit_set_num_profiled_runs(runs)
